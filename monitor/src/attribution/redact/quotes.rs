//! Words of a text that has quotes.

use super::is_blank;

/// Which quotes still count. One that is found to have no end does not any more: it would be looked for again from each
/// word.
#[derive(Debug, Clone)]
pub(super) struct Quotes {
    pub double: bool,
    pub single: bool,
}

impl Quotes {
    /// Where the first word of a text ends that begins with one.
    pub(super) fn word_end(&mut self, text: &str) -> usize {
        let bytes = text.as_bytes();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            // An apostrophe within a word opens nothing.
            let opens = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => return at,
                b'\\' if bytes.get(at + 1).is_some_and(|next| !is_blank(char::from(*next))) => at += 1,
                b'\'' if self.single && opens => match bytes[at + 1..].iter().position(|byte| *byte == b'\'')
                {
                    Some(length) => at += 1 + length,
                    None => self.single = false,
                },
                b'"' if self.double && opens => match double_quoted(&bytes[at + 1..]) {
                    Some(length) => at += 1 + length,
                    None => self.double = false,
                },
                _ => {}
            }
            at += 1;
        }
        text.len()
    }
}

/// How far it is to the quote's end.
fn double_quoted(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}
