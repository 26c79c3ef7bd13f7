//! The one-line error of everything that reads what people and pipelines hand in.

use crate::text::one_line;

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

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn stays_on_one_line() {
        let error = Error::new("cannot read", "/a\nb", "a file").in_file("x\r.json");
        assert_eq!(error.to_string(), "cannot read: x\\x0d.json: /a\\x0ab: a file");
    }
}
