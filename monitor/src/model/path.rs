use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An absolute path as the host sees it: any bytes but NUL.
///
/// In text, bytes that are not UTF-8 stand as `\xNN`, and so does a backslash itself (`\x5c`): the text form of
/// two different paths is never the same, and parses back to the same bytes.
///
/// Copies share the bytes: the judge, the sensor and the records of a busy node hold the same path many times.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPath(Arc<[u8]>);

impl HostPath {
    /// Takes the bytes as they are.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path for system calls.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// This directory's entry of that name.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Self {
        let slash: &[u8] = if self.0.last() == Some(&b'/') { b"" } else { b"/" };
        Self([&self.0, slash, name].concat().into())
    }

    /// The directory it lies in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.as_path().parent().map(Self::from)
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.as_path().file_name().map_or(&[], OsStr::as_bytes)
    }

    /// What follows `dir/`, if this path lies below `dir`.
    #[must_use]
    pub fn below(&self, dir: &Self) -> Option<&[u8]> {
        let rest = self.0.strip_prefix(&*dir.0)?;
        if dir.0.ends_with(b"/") { Some(rest) } else { rest.strip_prefix(b"/") }
    }

    /// Parses the text form.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        // Nearly every path is what it says.
        if !text.as_bytes().contains(&b'\\') {
            return Self(text.as_bytes().into());
        }
        let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
        while at < bytes.len() {
            let escaped = bytes[at..].strip_prefix(b"\\x").and_then(|rest| rest.get(..2));
            let value = escaped
                .and_then(|two| std::str::from_utf8(two).ok())
                .and_then(|two| u8::from_str_radix(two, 16).ok());
            if let Some(value) = value {
                out.push(value);
                at += 4;
            } else {
                out.push(bytes[at]);
                at += 1;
            }
        }
        Self(out.into())
    }
}

impl From<&Path> for HostPath {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().into())
    }
}

impl From<&str> for HostPath {
    /// Takes the bytes of the string, without looking for escapes (see [`HostPath::from_text`]).
    fn from(path: &str) -> Self {
        Self(path.as_bytes().into())
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for part in chunk.valid().split_inclusive('\\') {
                match part.strip_suffix('\\') {
                    Some(before) => write!(f, "{before}\\x5c")?,
                    None => f.write_str(part)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for HostPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self::from_text(&String::deserialize(d)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::HostPath;

    proptest! {
        #[test]
        fn text_form_is_reversible(bytes in proptest::collection::vec(1_u8..=255, 0..64)) {
            let path = HostPath::new(bytes);
            prop_assert_eq!(HostPath::from_text(&path.to_string()), path);
        }
    }

    #[test]
    fn hostile_names_keep_their_bytes() {
        assert_eq!(HostPath::new(b"/a\xff\n\\x41".to_vec()).to_string(), "/a\\xff\n\\x5cx41");
    }

    #[test]
    fn below_takes_whole_components() {
        assert_eq!(HostPath::from("/a/bc").below(&HostPath::from("/a/b")), None);
        assert_eq!(HostPath::from("/a/b/c").below(&HostPath::from("/a/b")), Some(b"c".as_slice()));
        assert_eq!(HostPath::from("/a").below(&HostPath::from("/")), Some(b"a".as_slice()));
    }
}
