//! Names and values within one word: `--x=password=X`, `a=b,auth.token=X`, `?y=1&token=X`, `{"password":"X"}`.

use super::{HIDDEN, closing_quote, names};

/// Longest name that ends the value before it, in bytes: bounds how far is looked ahead.
const KEY_MAX: usize = 64;

/// Writes a word without the values of secrets. Returns the value that reached the word's end, if it is a secret:
/// empty after a colon, where it is still to come.
pub(super) fn redact<'a>(text: &'a str, out: &mut String) -> Option<&'a str> {
    let bytes = text.as_bytes();
    let (mut at, mut shown, mut name_at) = (0, 0, 0);
    // What separates pairs here. None was seen: what looks like one belongs to the value.
    let mut separator = None;
    let mut in_path = false;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'=' | b':' => {
                let (name, value) = (&text[name_at..at], &text[at + 1..]);
                if is_secret(name, *byte, value, in_path) {
                    let end = value_end(bytes, at + 1, separator);
                    let value = &text[at + 1..end];
                    if value.is_empty() {
                        if *byte == b':' {
                            out.push_str(&text[shown..]);
                            return Some("");
                        }
                    } else if !matches!(value, "true" | "false") {
                        out.push_str(&text[shown..=at]);
                        out.push_str(HIDDEN);
                        out.push_str(closing_quote(value));
                        if end == text.len() {
                            return Some(value);
                        }
                        (at, shown, name_at) = (end, end, end);
                        continue;
                    }
                }
                (name_at, in_path) = (at + 1, false);
            }
            b',' | b'&' | b';' => {
                separator = Some(*byte);
                (name_at, in_path) = (at + 1, false);
            }
            b'?' | b'{' => {
                separator = Some(if *byte == b'?' { b'&' } else { b',' });
                (name_at, in_path) = (at + 1, false);
            }
            b'[' | b'(' | b'|' | b'#' | b'@' => (name_at, in_path) = (at + 1, false),
            b'/' => (name_at, in_path) = (at + 1, true),
            _ => {}
        }
        at += 1;
    }
    out.push_str(&text[shown..]);
    None
}

fn is_secret(name: &str, sign: u8, value: &str, in_path: bool) -> bool {
    // `image/token:1`, `token:/mounted/here` and `scheme://` are no headers.
    let no_header = sign == b':' && (in_path || value.starts_with('/'));
    !no_header && names::is_secret(name)
}

/// A separator ends a value only where another name follows: it may be part of the secret.
fn value_end(bytes: &[u8], from: usize, separator: Option<u8>) -> usize {
    let Some(separator) = separator else { return bytes.len() };
    (from..bytes.len())
        .find(|at| bytes[*at] == separator && starts_with_name(&bytes[at + 1..]))
        .unwrap_or(bytes.len())
}

fn starts_with_name(bytes: &[u8]) -> bool {
    let named = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-[]\"'".contains(byte);
    let length = bytes.iter().take(KEY_MAX).take_while(|byte| named(byte)).count();
    length > 0 && matches!(bytes.get(length), Some(b'=' | b':'))
}
