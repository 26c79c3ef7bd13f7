//! Arguments as they lie in memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};

use crate::attribution::redact;

/// Command lines that are kept: a process that writes often is told of often, and to redact takes some ten microseconds.
const KEPT: usize = 64;

/// Command lines by what they were made of, the latest first.
#[derive(Debug)]
struct Rendered {
    key: RandomState,
    lines: VecDeque<(u64, String)>,
}

thread_local! {
    static RENDERED: RefCell<Rendered> =
        RefCell::new(Rendered { key: RandomState::new(), lines: VecDeque::with_capacity(KEPT) });
}

/// A command line to keep. `argv` is as it lies in memory: each argument ends with NUL.
pub(super) fn render(argv: &[u8], truncated: bool) -> String {
    RENDERED.with_borrow_mut(|rendered| {
        // What it was made of may hold secrets, and is not kept.
        let of = rendered.key.hash_one((argv, truncated));
        if let Some((_, line)) = rendered.lines.iter().find(|(known, _)| *known == of) {
            return line.clone();
        }
        let line = anew(argv, truncated);
        rendered.lines.truncate(KEPT - 1);
        rendered.lines.push_front((of, line.clone()));
        line
    })
}

fn anew(argv: &[u8], truncated: bool) -> String {
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
            assert_eq!(render(argv.as_bytes(), false), expected, "once more");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_of_the_same_arguments() {
        for at in 0..200 {
            let (argv, expected) = (format!("x\0{at}\0"), format!("x {at}"));
            assert_eq!(render(argv.as_bytes(), false), expected);
            assert_eq!(render(argv.as_bytes(), true), format!("{expected}…"));
        }
        assert_eq!(super::RENDERED.with_borrow(|rendered| rendered.lines.len()), super::KEPT);
    }

    #[test]
    fn odd_bytes_do_no_harm() {
        assert_eq!(render(b"a\xff\0\0b\nc", true), "a\u{fffd}  b\nc…");
    }
}
