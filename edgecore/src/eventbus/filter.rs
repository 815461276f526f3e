//! Filters of topics, as MQTT has them, and which of them hold no more than another one.

/// A valid one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter(Box<str>);

impl Filter {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("$share/") {
            return Err("is a shared subscription; name its filter alone, which allows those, too");
        }
        if !mqtt5::is_valid_topic_filter(text) {
            return Err("is no topic filter; + and # stand alone between slashes, and # only at the end");
        }
        Ok(Self(text.into()))
    }

    /// Whether all topics of a valid filter are topics of this one. A topic is a filter, too.
    pub(super) fn covers(&self, asked: &str) -> bool {
        covers(&self.0, asked)
    }
}

fn covers(allowed: &str, asked: &str) -> bool {
    // Wildcards at the start leave out topics that begin with $.
    if asked.starts_with('$') && allowed.starts_with(['#', '+']) {
        return false;
    }
    // Every topic has a first level, so that these two have the same topics.
    let allowed = if allowed == "+/#" { "#" } else { allowed };
    let (mut allowed, mut asked) = (allowed.split('/'), asked.split('/'));
    loop {
        match (allowed.next(), asked.next()) {
            // `a/#` is `a`, too.
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use mqtt5::topic_matches_filter;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_asked_is_no_more_than_what_is_allowed() {
        for (allowed, asked) in [
            ("a", "a"),
            ("a/b", "a/b"),
            ("a/#", "a/#"),
            ("a/#", "a"),
            ("a/#", "a/"),
            ("a/#", "a/b"),
            ("a/#", "a/+"),
            ("a/#", "a/+/c"),
            ("a/#", "a/+/#"),
            ("a/+", "a/b"),
            ("a/+", "a/"),
            ("a/+", "a/+"),
            ("a/+/c", "a/b/c"),
            ("+/+", "a/b"),
            ("+/+", "/b"),
            ("+", "+"),
            ("#", "#"),
            ("#", "+"),
            ("#", "a/b"),
            ("#", "+/#"),
            ("+/#", "#"),
            ("#", "a/$b"),
            ("$hw/#", "$hw"),
            ("$hw/#", "$hw/#"),
            ("$hw/#", "$hw/events/+/x"),
            ("$hw/events/device/+/+/twin/update", "$hw/events/device/default/pump/twin/update"),
        ] {
            assert!(covers(allowed, asked), "{allowed} covers {asked}");
        }
        for (allowed, asked) in [
            ("a", "b"),
            ("a", "A"),
            ("a", "a/"),
            ("a", "/a"),
            ("a", "a/b"),
            ("a", "+"),
            ("a", "#"),
            ("a", "a/#"),
            ("a/b", "a"),
            ("a/b", "a/+"),
            ("a/b", "ab"),
            ("a/+", "a"),
            ("a/+", "a/#"),
            ("a/+", "a/b/c"),
            ("a/+", "a/+/#"),
            ("a/+", "+/b"),
            ("a/+/#", "a/#"),
            ("+", "#"),
            ("+/+", "#"),
            ("+/b", "+/+"),
            ("a/#", "#"),
            ("a/#", "+/#"),
            ("a/#", "ab"),
            ("#", "$hw/#"),
            ("#", "$hw"),
            ("+/#", "$hw/events"),
            ("+/events", "$hw/events"),
            ("$hw/#", "#"),
            ("$hw/#", "$ke/#"),
            ("$hw/events/device/+/+/twin/update", "$hw/events/device/default/pump/twin/update/delta"),
            ("$hw/events/device/+/+/twin/update", "$hw/events/device/default/pump/twin/get"),
            ("$hw/events/device/+/+/twin/update", "$hw/events/device/pump/twin/update"),
        ] {
            assert!(!covers(allowed, asked), "{allowed} does not cover {asked}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in ["#", "+", "/", "a//b", "+/a/#", "$hw/events/#"] {
            assert!(Filter::parse(text).is_ok(), "{text}");
        }
        for text in ["", "a#", "#/a", "a/#/b", "a+", "a/+b", "a\0"] {
            assert!(Filter::parse(text).is_err_and(|reason| reason.contains("no topic filter")), "{text:?}");
        }
        assert!(Filter::parse("$share/all/#").is_err_and(|reason| reason.contains("shared")));
    }

    /// Of one to three levels, and perhaps all that is below.
    fn filters() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["a", "b", "$x", "+"]);
        (prop::collection::vec(level, 0..4), any::<bool>()).prop_filter_map("empty", |(mut levels, below)| {
            if below {
                levels.push("#");
            }
            (!levels.is_empty()).then(|| levels.join("/"))
        })
    }

    /// All of one to four levels, one of which is in no filter.
    fn topics() -> Vec<String> {
        let levels = ["a", "b", "$x", "c"];
        let mut all: Vec<String> = levels.map(str::to_owned).into();
        let mut last = all.clone();
        for _ in 1..4 {
            last = last.iter().flat_map(|topic| levels.map(|level| format!("{topic}/{level}"))).collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    proptest! {
        #[test]
        fn a_filter_covers_another_if_it_matches_all_that_the_other_does(allowed in filters(), asked in filters()) {
            let is_more = |topic: &String| {
                topic_matches_filter(topic, &asked) && !topic_matches_filter(topic, &allowed)
            };
            prop_assert_eq!(covers(&allowed, &asked), !topics().iter().any(is_more));
        }
    }
}
