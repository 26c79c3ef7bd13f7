//! The entries of a layer: what tar headers and the extended headers before them say.
//!
//! Extended headers are read here, not by the library: it ends a record at the first newline, and the bytes of a file
//! capability may well have one.

use std::io::{self, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::members::Members;
use super::sparse::{self, Expanded};
use crate::baseline::seal::SealedBytes;
use crate::baseline::secret::SecretKey;

/// Longest path, and longest target of a link, in bytes.
const PATH_MAX: usize = 4096;
/// Longest name.
const NAME_MAX: usize = 255;
/// Most directories above a file; each of them is kept.
const DEPTH_MAX: usize = 100;
/// Most extended attributes of one file.
pub(super) const XATTRS_MAX: usize = 256;
/// A file shorter than this is looked at for private keys.
const WHOLE_MAX: u64 = 256 * 1024;
/// The attribute that has a file's capabilities.
pub(super) const CAPABILITY: &str = "security.capability";
/// Bytes read at a time.
const CHUNK: usize = 128 * 1024;
/// Prefix of extended attributes in pax headers, as GNU tar, bsdtar and Go's archive/tar write them.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Prefix of what pax headers say of a sparse file.
const SPARSE: &[u8] = b"GNU.sparse.";

/// Extended attributes, by name.
pub type Xattrs = Vec<(String, Vec<u8>)>;

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, without `.` and `..`, with `/` before each component; empty for the root.
    pub path: Vec<u8>,
    /// Mode, owner and attributes.
    pub meta: Meta,
    /// What it is.
    pub what: What,
}

/// Mode, owner and attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A file; `None` for a secret that cannot be sealed without the cluster's key.
    File(Option<Rc<SealedBytes>>),
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// Another name of the file at this path.
    Hardlink(Vec<u8>),
    /// A device or FIFO.
    Special,
}

/// What the headers before an entry say of it.
#[derive(Debug, Default)]
pub(super) struct Extended {
    /// GNU tar's own headers of long names; they go before pax records.
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Records,
}

/// The records of a pax header.
#[derive(Debug, Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    xattrs: Xattrs,
    sparse: sparse::Records,
}

impl Extended {
    /// Takes a header up if it is of this kind; whether it was.
    ///
    /// # Errors
    /// It is not well formed.
    pub(super) fn take(&mut self, header: &tar::Header, members: &mut Members<'_>) -> Result<bool, String> {
        use tar::EntryType;

        let kind = header.entry_type();
        let mut read = || {
            members.data_follows(or_zero(header, SIZE, header.entry_size()).map_err(said)?);
            members.header_data()
        };
        let until_nul = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
            bytes
        };
        match kind {
            EntryType::GNULongName => self.long_path = Some(until_nul(read()?)),
            EntryType::GNULongLink => self.long_link = Some(until_nul(read()?)),
            EntryType::XHeader => {
                // The last one alone counts.
                self.records = Records::default();
                self.records.read(&read()?).ok_or("extended headers of `length key=value`")?;
            }
            // For all entries after it; runtimes pass it over, and with it what stood before.
            EntryType::XGlobalHeader => {
                read()?;
                *self = Self::default();
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The entry that these headers stand before.
    ///
    /// # Errors
    /// It is hostile, or of a kind that no layer has.
    pub(super) fn entry(
        self,
        header: &tar::Header,
        members: &mut Members<'_>,
        key: Option<&SecretKey>,
    ) -> Result<Entry, String> {
        use tar::EntryType;

        let header = &with_version(header);
        let Self { long_path, long_link, records } = self;
        let kind = header.entry_type();
        let named = records.sparse.name.clone().or(long_path).or(records.path);
        let named = named.unwrap_or_else(|| header.path_bytes().into_owned());
        let path = clean(&named)?;
        let shown = String::from_utf8_lossy(&path).into_owned();
        let owner = |pax: Option<u32>, value: io::Result<u64>, what: &str| match pax {
            Some(id) => Ok(id),
            None => value
                .ok()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| format!("a {what} of {shown} below 2^32")),
        };
        let mode =
            or_zero(header, MODE, header.mode()).map_err(|e| format!("a mode of {shown} ({e})"))? & 0o7777;
        let meta = Meta {
            mode: u16::try_from(mode).unwrap_or(0),
            uid: owner(records.uid, or_zero(header, UID, header.uid()), "owner")?,
            gid: owner(records.gid, or_zero(header, GID, header.gid()), "group")?,
            xattrs: records.xattrs,
        };
        let target = || {
            let own = || header.link_name_bytes().unwrap_or_default().into_owned();
            let target = long_link.or(records.link).unwrap_or_else(own);
            let fine = !target.is_empty() && target.len() <= PATH_MAX && !target.contains(&0);
            fine.then_some(target)
                .ok_or_else(|| format!("a link {shown} with a target of 1 to {PATH_MAX} bytes"))
        };
        // Before there was a type for them, directories were files with a slash at the end.
        let is_old_directory = header.as_bytes()[156] == 0 && named.ends_with(b"/");
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        if is_file && !is_old_directory {
            let stored = match records.size {
                Some(size) => size,
                None => or_zero(header, SIZE, header.entry_size())
                    .map_err(|e| format!("a size of {shown} ({e})"))?,
            };
            members.data_follows(stored);
        }
        let what = match kind {
            // Nothing follows these, whatever size their headers say.
            EntryType::Directory => What::Directory,
            EntryType::Symlink => What::Symlink(target()?),
            EntryType::Link => What::Hardlink(clean(&target()?)?),
            EntryType::Char | EntryType::Block | EntryType::Fifo => What::Special,
            _ if is_old_directory => What::Directory,
            _ if is_file => {
                let map = match kind {
                    EntryType::GNUSparse => sparse::own(header, members).map(Some),
                    _ => records.sparse.map(members),
                };
                let map = map.map_err(|expected| format!("{expected}; the sparse file {shown}"))?;
                members.content_begins();
                let content = match map {
                    Some(map) => {
                        let size = map.size;
                        content(&mut Expanded::new(members, map)?, size, key)?
                    }
                    None => content(members, members.left(), key)?,
                };
                What::File(content.map(Rc::new))
            }
            _ => return Err(format!("files, directories and links only; {shown} is something else")),
        };
        Ok(Entry { path, meta, what })
    }
}

impl Records {
    /// `length key=value\n`, the length being that of the whole record (pax(1)).
    fn read(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            bytes = &bytes[length..];
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let number = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
            match key {
                // As if it were not there (pax(1)).
                b"size" | b"uid" | b"gid" if value.is_empty() => {}
                // Nothing takes an earlier one away.
                b"path" => self.path = Some(value.to_vec()).filter(|path| !path.is_empty()),
                b"linkpath" => self.link = Some(value.to_vec()).filter(|path| !path.is_empty()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(u32::try_from(number()?).ok()?),
                b"gid" => self.gid = Some(u32::try_from(number()?).ok()?),
                _ => {
                    if let Some(key) = key.strip_prefix(SPARSE) {
                        self.sparse.take(key, value)?;
                    } else if let Some(name) = key.strip_prefix(XATTR) {
                        let name = std::str::from_utf8(name).ok()?.to_owned();
                        if name.starts_with("trusted.") {
                            // No runtime sets these from a layer.
                            continue;
                        }
                        self.xattrs.retain(|(known, _)| *known != name);
                        let value = if name == CAPABILITY { capability(value) } else { value.to_vec() };
                        self.xattrs.push((name, value));
                        (self.xattrs.len() <= XATTRS_MAX).then_some(())?;
                    }
                }
            }
        }
        Some(())
    }
}

/// Fields of numbers in a header.
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;

/// A number of a header; a field without any digit is zero, as Go has it.
fn or_zero<T: From<u8>>(
    header: &tar::Header,
    field: std::ops::Range<usize>,
    value: io::Result<T>,
) -> io::Result<T> {
    let blank = header.as_bytes()[field].iter().all(|byte| matches!(byte, 0 | b' '));
    if blank { Ok(T::from(0)) } else { value }
}

/// The header with the version that its magic number is of: the library looks for both, Go for the one.
fn with_version(header: &tar::Header) -> tar::Header {
    let mut header = header.clone();
    let bytes = header.as_mut_bytes();
    if &bytes[257..263] == b"ustar\0" {
        bytes[263..265].copy_from_slice(b"00");
    }
    header
}

/// A file capability as the kernel gives it back: one of the initial user namespace without the number of that (`cap_inode_getsecurity`).
fn capability(value: &[u8]) -> Vec<u8> {
    const REVISION_3: u32 = 0x0300_0000;
    const REVISION_2: u32 = 0x0200_0000;
    let word = |at: usize| value.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    match (value.len(), word(0), word(20)) {
        (24, Some(magic), Some(0)) if magic & 0xff00_0000 == REVISION_3 => {
            let magic = magic & !0xff00_0000 | REVISION_2;
            [&magic.to_le_bytes(), &value[4..20]].concat()
        }
        _ => value.to_vec(),
    }
}

/// Says what a layer should have been.
#[expect(clippy::needless_pass_by_value, reason = "what map_err hands on")]
pub(super) fn said(e: io::Error) -> String {
    format!("a layer as a tar archive, plain, gzip or zstd ({e})")
}

/// Hashes a file of that size as it passes.
fn content(entry: &mut impl Read, size: u64, key: Option<&SecretKey>) -> Result<Option<SealedBytes>, String> {
    let whole = |seen: u64| {
        let message = "a layer with as many bytes of each file as its header says";
        if seen == size { Ok(()) } else { Err(message.to_owned()) }
    };
    if size < WHOLE_MAX {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(said)?;
        return whole(bytes.len() as u64).map(|()| SealedBytes::of(&bytes, false, key));
    }
    let (mut hash, mut seen, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                seen += n as u64;
                hash.update(&buffer[..n]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(said(e)),
        }
    }
    whole(seen)?;
    let sha256 = Some(hex::encode(hash.finalize()));
    Ok(Some(SealedBytes { sha256, hmac: None, public_key: None, size }))
}

/// A path that stays inside.
fn clean(path: &[u8]) -> Result<Vec<u8>, String> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(256)]).into_owned();
    if path.len() > PATH_MAX || path.contains(&0) {
        return Err(format!("paths of at most {PATH_MAX} bytes, not {}...", shown()));
    }
    let (mut clean, mut depth) = (Vec::with_capacity(path.len() + 1), 0);
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(format!("paths inside the image, not {}", shown())),
            part if part.len() > NAME_MAX => {
                return Err(format!("names of at most {NAME_MAX} bytes, not {}...", shown()));
            }
            part => {
                clean.push(b'/');
                clean.extend_from_slice(part);
            }
        }
        depth += 1;
        if depth > DEPTH_MAX {
            return Err(format!("at most {DEPTH_MAX} directories, one in the other, not {}...", shown()));
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::Records;

    #[test]
    fn records_end_where_their_length_says() {
        let mut extended = Records::default();
        let value = b"\x01\x00\n23 path=/elsewhere\n";
        let mut bytes = b"7 uid=5\n".to_vec();
        bytes[0] = b'8';
        let length = b"99 SCHILY.xattr.user.x=".len() + value.len() + 1;
        bytes.extend(format!("{length} SCHILY.xattr.user.x=").as_bytes());
        bytes.extend(value);
        bytes.push(b'\n');
        assert_eq!(extended.read(&bytes), Some(()));
        assert_eq!((extended.uid, extended.path), (Some(5), None));
        assert_eq!(extended.xattrs, [("user.x".to_owned(), value.to_vec())]);
    }

    #[test]
    fn records_that_lie_are_refused() {
        for bad in [
            b"99 uid=5\n".as_slice(),
            b"8 uid=5x",
            b"uid=5\n",
            b"0 uid=5\n",
            b"3 uid=5\n",
            b"8 uid=x\n",
            b"7 uid5\n",
            b"20 size=99999999999999999999999999\n",
            b"-1 uid=5\n",
        ] {
            assert_eq!(Records::default().read(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
