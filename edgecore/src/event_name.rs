//! The names of the Kubernetes events that are made here. By its name alone the API server knows an event that it has been told
//! already: so no two have the same, also where the clock goes in large steps, and each is one that the API server takes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;

/// Of a name in the Kubernetes API.
const LONGEST: usize = 253;

/// The number in the last name.
static LAST: AtomicU64 = AtomicU64::new(0);

/// As the kubelet names them: what it is about, and the time in nanoseconds.
pub(crate) fn event_name(about: &str, now: Timestamp) -> String {
    let now = u64::try_from(now.as_nanosecond()).unwrap_or(0);
    let next = |last: u64| now.max(last.saturating_add(1));
    let last = LAST.fetch_update(Relaxed, Relaxed, |last| Some(next(last))).unwrap_or_else(|last| last);
    let number = format!(".{:x}", next(last));
    let room = LONGEST - number.len();
    // What it is about is a name of the API, so it is ASCII.
    let about = about.get(..room).unwrap_or(about).trim_end_matches(['-', '.']);
    format!("{about}{number}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_are_the_same_though_the_clock_stands_still_or_goes_back() {
        let noon = Timestamp::from_second(4_000_000_000).unwrap();
        let early = Timestamp::from_second(-1).unwrap();
        let names: HashSet<String> =
            [noon, noon, early, noon, early].iter().map(|now| event_name("web", *now)).collect();
        assert_eq!(names.len(), 5, "{names:?}");
        assert!(names.contains("web.3782dace9d900000"), "{names:?}");
    }

    #[test]
    fn a_long_name_is_cut_to_one_that_is_taken() {
        let dotted = format!("{}.{}", "a".repeat(235), "b".repeat(17));
        for about in ["a".repeat(253), dotted, "a".to_owned()] {
            let name = event_name(&about, Timestamp::now());
            assert!(name.len() <= LONGEST && !name.contains(".."), "{name}");
            assert!(name.starts_with(&about[..about.len().min(200)]), "{name}");
        }
    }
}
