//! `$(VAR)` in command, args, env values and subPathExpr, as Kubernetes has it: `$$` is a dollar sign, a reference to
//! what is not defined stays as it was written.

/// No program can be started with a longer string: Linux takes 128 KiB. References beyond it stay as they were written, so that a
/// few lines which double each other do not fill the memory.
const LONGEST: usize = 128 << 10;

pub(super) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            if out.len() <= LONGEST
                && let Some(value) = lookup(name)
            {
                out.push_str(&value);
            } else {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_kubernetes_does() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        let cases = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }

    #[test]
    fn what_is_too_long_for_any_program_grows_no_more() {
        let kilobyte = |_: &str| Some("x".repeat(1024));
        let expanded = expand(&"$(A)".repeat(100_000), &kilobyte);
        assert!(expanded.len() < 2 * LONGEST + 400_000, "{} bytes", expanded.len());
    }
}
