//! Text that others chose: where a line is expected, in a terminal, a log, an error; and patterns of names.

use std::fmt::Write as _;

/// The text with all control characters written as `\xNN` (or `\u{N}` above one byte).
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Bidirectional overrides and isolates reorder what a terminal shows: they count as control characters.
        let reorders =
            matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
        // Writing to a string cannot fail.
        match u32::from(c) {
            code if c.is_control() && code < 0x80 => _ = write!(out, "\\x{code:02x}"),
            code if c.is_control() || reorders => _ = write!(out, "\\u{{{code:x}}}"),
            _ => out.push(c),
        }
    }
    out
}

/// Whether a pattern, in which `*` is any number of bytes and `?` is one, means the whole name. The usual two-finger walk: on a mismatch the
/// last `*` takes one byte more.
pub(crate) fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b) if *b == name[n] || *b == b'?' => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(one_line("a\nb\u{1b}[1m\u{9b}\u{202e}ü"), "a\\x0ab\\x1b[1m\\u{9b}\\u{202e}ü");
    }
}
