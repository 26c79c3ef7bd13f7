//! Arguments as they lie in memory.

use crate::attribution::redact;

/// A command line to keep. `argv` is as it lies in memory: each argument ends with NUL.
pub(super) fn render(argv: &[u8], truncated: bool) -> String {
    let argv = argv.strip_suffix(b"\0").unwrap_or(argv);
    let args: Vec<&[u8]> = argv.split(|byte| *byte == 0).collect();
    redact::render(&args, truncated)
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn arguments_end_with_nul() {
        for (argv, expected) in [
            ("sed\0-i\0s/a/b/\0/etc/x\0", "sed -i s/a/b/ /etc/x"),
            ("x\0--token\0abc\0--quiet\0", "x --token [redacted] --quiet"),
            ("curl\0-H\0Authorization: Bearer 5\0", "curl -H Authorization: [redacted]"),
            ("/usr/bin/token=1\0a\0", "/usr/bin/token=1 a"),
            ("", ""),
        ] {
            assert_eq!(render(argv.as_bytes(), false), expected);
        }
    }

    #[test]
    fn odd_bytes_do_no_harm() {
        assert_eq!(render(b"a\xff\0\0b\nc", true), "a\u{fffd}  b\nc…");
    }
}
