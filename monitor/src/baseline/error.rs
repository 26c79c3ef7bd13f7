//! The one-line error of everything that reads what people and pipelines hand in.

/// What went wrong, where, and what was expected instead: printed as `<what>: <where>: <expected>` on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {place}: {expected}")]
pub struct Error {
    /// What was being done, or what is wrong.
    pub what: String,
    /// File, and field in it where there is one.
    pub place: String,
    /// What would have been right.
    pub expected: String,
}

impl Error {
    /// Takes the three parts; line breaks and other control characters in them are escaped, so that a hostile
    /// name cannot forge a second line.
    #[must_use]
    pub fn new(
        what: impl std::fmt::Display,
        place: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        let clean = |text: String| one_line(&text);
        Self {
            what: clean(what.to_string()),
            place: clean(place.to_string()),
            expected: clean(expected.to_string()),
        }
    }

    /// The same error, found in this file: `place` becomes `file: place`.
    #[must_use]
    pub fn in_file(mut self, file: impl std::fmt::Display) -> Self {
        let file = one_line(&file.to_string());
        self.place = if self.place.is_empty() { file } else { format!("{file}: {}", self.place) };
        self
    }
}

/// Control characters as `\xNN`.
#[must_use]
pub fn one_line(text: &str) -> String {
    use std::fmt::Write as _;

    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let mut bytes = [0_u8; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                // Writing to a string cannot fail.
                write!(out, "\\x{byte:02x}").unwrap_or_default();
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn stays_on_one_line() {
        let error = Error::new("cannot read", "/a\nb", "a file").in_file("x\r.json");
        assert_eq!(error.to_string(), "cannot read: x\\x0d.json: /a\\x0ab: a file");
    }
}
