use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::slice::Slice;

/// An absolute path as the host sees it: any bytes but NUL.
///
/// In text, bytes that are not UTF-8 stand as `\xNN`, and so does a backslash itself (`\x5c`): the text form of
/// two different paths is never the same, and parses back to the same bytes.
///
/// Copies share the bytes: the judge, the sensor and the records of a busy node hold the same path many times. So do the
/// directories above it, and all paths of one baseline.
#[derive(Clone, PartialEq, Eq)]
pub struct HostPath(Slice);

impl HostPath {
    /// Takes the bytes as they are. Of more than 4 GiB, which no call takes, only the beginning.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Slice::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The same, to be packed with others.
    pub(crate) const fn slice_mut(&mut self) -> &mut Slice {
        &mut self.0
    }

    /// This path's own end, if it ends in these bytes.
    pub(crate) fn ending(&self, bytes: &[u8]) -> Option<Self> {
        let own = self.as_bytes();
        let start = own.len().checked_sub(bytes.len()).filter(|_| own.ends_with(bytes))?;
        self.0.part(start, own.len()).map(Self)
    }

    /// As a path for system calls.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.as_bytes()))
    }

    /// This directory's entry of that name.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Self {
        let slash: &[u8] = if self.as_bytes().last() == Some(&b'/') { b"" } else { b"/" };
        Self::new([self.as_bytes(), slash, name].concat())
    }

    /// The directory it lies in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let parent = self.as_path().parent()?.as_os_str().as_bytes();
        // It is the beginning of it, unless it is written in a strange way.
        let own = self.0.part(0, parent.len()).filter(|own| own.as_bytes() == parent);
        Some(own.map_or_else(|| Self::new(parent), Self))
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.as_path().file_name().map_or(&[], OsStr::as_bytes)
    }

    /// What follows `dir/`, if this path lies below `dir`.
    #[must_use]
    pub fn below(&self, dir: &Self) -> Option<&[u8]> {
        let (path, dir) = (self.as_bytes(), dir.as_bytes());
        let rest = path.strip_prefix(dir)?;
        if dir.ends_with(b"/") { Some(rest) } else { rest.strip_prefix(b"/") }
    }

    /// Parses the text form.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        // Nearly every path is what it says.
        if !text.as_bytes().contains(&b'\\') {
            return Self::new(text);
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
        Self::new(out)
    }
}

impl PartialOrd for HostPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HostPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for HostPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl From<&Path> for HostPath {
    fn from(path: &Path) -> Self {
        Self::new(path.as_os_str().as_bytes())
    }
}

impl From<&str> for HostPath {
    /// Takes the bytes of the string, without looking for escapes (see [`HostPath::from_text`]).
    fn from(path: &str) -> Self {
        Self::new(path)
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.as_bytes().utf8_chunks() {
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

    use super::super::slice::Slice;
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
    fn paths_share_memory_and_are_what_they_were() {
        let text = ["/a/b", "/", "/a b", "/c//d/"];
        let mut all: Vec<HostPath> = text.iter().map(|path| HostPath::from(*path)).collect();
        let before = all.clone();
        Slice::pack(all.iter_mut().map(HostPath::slice_mut).collect());
        assert_eq!(all, before);
        assert!(all[0].0.lies_with(&all[3].0));
        let parents: Vec<_> = all.iter().map(HostPath::parent).collect();
        let expected = ["/a", "", "/", "/c"].map(|path| (!path.is_empty()).then(|| HostPath::from(path)));
        assert_eq!(parents, expected);
        let end = all[0].ending(b"/b").unwrap();
        assert_eq!((end.clone(), end.parent()), (HostPath::from("/b"), Some(HostPath::from("/"))));
        assert_eq!((all[0].ending(b"/c"), all[1].ending(b"/a/b")), (None, None));
    }

    #[test]
    fn below_takes_whole_components() {
        assert_eq!(HostPath::from("/a/bc").below(&HostPath::from("/a/b")), None);
        assert_eq!(HostPath::from("/a/b/c").below(&HostPath::from("/a/b")), Some(b"c".as_slice()));
        assert_eq!(HostPath::from("/a").below(&HostPath::from("/")), Some(b"a".as_slice()));
    }
}
