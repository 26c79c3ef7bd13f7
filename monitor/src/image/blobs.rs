//! The files of an image layout or archive, by name, read where they lie.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::baseline::{Error, Root};
use crate::model::HostPath;

/// Most entries of an archive.
const ENTRIES_MAX: usize = 100_000;
/// Most bytes of headers before one entry.
const HEADERS_MAX: usize = 64 * 1024;
/// Longest name, in bytes.
const NAME_MAX: usize = 4096;
/// Most links from one name to the next.
const LINKS_MAX: usize = 8;
/// Longest document (index, manifest, configuration), in bytes.
pub const DOCUMENT_MAX: u64 = 16 << 20;

/// A layout or an archive, opened.
#[derive(Debug)]
pub enum Blobs {
    /// A directory.
    Directory(Root),
    /// A tar archive, and where each of its files lies in it.
    Archive(File, BTreeMap<String, Place>),
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Offset and length.
    File(u64, u64),
    /// Another name, as old versions of docker wrote a layer that comes twice.
    Link(String),
}

impl Blobs {
    /// Opens it.
    ///
    /// # Errors
    /// It is neither a directory nor an uncompressed tar archive, or a name in it is hostile or comes twice.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bad = |expected: String| Error::new("bad image", path.display(), expected);
        let meta = std::fs::metadata(path).map_err(|e| bad(format!("a layout or archive ({e})")))?;
        if meta.is_dir() {
            return Ok(Self::Directory(Root::open(path)?));
        }
        if !meta.is_file() {
            return Err(bad("a directory or a tar archive".into()));
        }
        let file = File::open(path).map_err(|e| bad(format!("a readable file ({e})")))?;
        Self::archive(file).map_err(bad)
    }

    /// An archive, from where the file stands.
    ///
    /// # Errors
    /// As for [`Blobs::open`], without the place.
    pub fn archive(file: File) -> Result<Self, String> {
        let names = index(&file)?;
        Ok(Self::Archive(file, names))
    }

    /// Whether there is a file of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(root) => root.locate(&HostPath::from(format!("/{name}").as_str())).is_ok(),
            Self::Archive(_, names) => names.contains_key(name),
        }
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is longer than [`DOCUMENT_MAX`].
    pub fn document(&self, name: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let read = self.stream(name)?.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|e| format!("a readable {name} ({e})"))?;
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(format!("a {name} of at most {DOCUMENT_MAX} bytes"));
        }
        Ok(bytes)
    }

    /// A file as a stream.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub fn stream(&self, name: &str) -> Result<Box<dyn Read + '_>, String> {
        match self {
            Self::Directory(root) => {
                let path = HostPath::from(format!("/{name}").as_str());
                let file = root.open_file(&path).map_err(|e| format!("{name} in the layout ({e})"))?;
                let file = file.ok_or_else(|| format!("{name} as a regular file in the layout"))?;
                Ok(Box::new(file))
            }
            Self::Archive(file, names) => {
                let mut name = name.to_owned();
                for _ in 0..LINKS_MAX {
                    match names.get(&name) {
                        None => return Err(format!("{name} in the archive")),
                        Some(Place::Link(other)) => other.clone_into(&mut name),
                        Some(Place::File(offset, length)) => {
                            let mut file = file;
                            file.seek(SeekFrom::Start(*offset))
                                .map_err(|e| format!("a readable archive ({e})"))?;
                            return Ok(Box::new(file.take(*length)));
                        }
                    }
                }
                Err(format!("{name} as a file, not as a circle of links"))
            }
        }
    }
}

/// Nothing but headers is read of an archive; long names are held in memory, so what comes before one entry has a bound.
struct Headers<'a> {
    file: &'a File,
    left: &'a Cell<usize>,
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = buffer.len().min(self.left.get());
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!(
                "more than {HEADERS_MAX} bytes of headers before one entry"
            )));
        }
        let n = self.file.read(&mut buffer[..allowed])?;
        self.left.set(self.left.get() - n);
        Ok(n)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Reads the headers of an archive.
fn index(file: &File) -> Result<BTreeMap<String, Place>, String> {
    let mut names = BTreeMap::new();
    let left = Cell::new(HEADERS_MAX);
    let mut archive = tar::Archive::new(Headers { file, left: &left });
    let entries = archive.entries_with_seek().map_err(|e| format!("a tar archive ({e})"))?;
    for entry in entries {
        left.set(HEADERS_MAX);
        let entry = entry.map_err(|e| format!("an uncompressed tar archive ({e})"))?;
        if names.len() >= ENTRIES_MAX {
            return Err(format!("at most {ENTRIES_MAX} entries"));
        }
        let name = std::str::from_utf8(&entry.path_bytes()).map(str::to_owned);
        let name = name.map_err(|_| "names in UTF-8".to_owned())?;
        let name = plain(&name).ok_or_else(|| format!("names inside the archive, not {name}"))?;
        let place = match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                Place::File(entry.raw_file_position(), entry.size())
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = std::str::from_utf8(&target).map_err(|_| "links in UTF-8".to_owned())?;
                let from = if entry.header().entry_type() == tar::EntryType::Symlink {
                    name.rsplit_once('/').map_or("", |(dir, _)| dir)
                } else {
                    ""
                };
                let target = inside(from, target)
                    .ok_or_else(|| format!("links inside the archive, not to {target}"))?;
                Place::Link(target)
            }
            tar::EntryType::Directory | tar::EntryType::XGlobalHeader => continue,
            _ => return Err(format!("files only, {name} is something else")),
        };
        if names.insert(name.clone(), place).is_some() {
            return Err(format!("each name once, {name} comes twice"));
        }
    }
    Ok(names)
}

/// A relative name without `.` and without a way out.
fn plain(name: &str) -> Option<String> {
    if name.starts_with('/') || name.len() > NAME_MAX {
        return None;
    }
    inside("", name)
}

/// Where a link in this directory leads, if inside.
fn inside(dir: &str, target: &str) -> Option<String> {
    if target.starts_with('/') || target.len() > NAME_MAX {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
