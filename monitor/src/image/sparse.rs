//! Sparse files of a layer: which bytes of a file are in the archive, the others being zero.
//!
//! GNU tar has four formats (its manual, appendix "Storing Sparse Files"): one of its own header, and 0.0, 0.1 and 1.0 in pax records. A map that
//! does not account for each byte of data, in order, is refused, as Go's `archive/tar` does it.

use std::io::{self, Read};

use super::entry::said;
use super::members::Members;

/// What a map must be.
const EXPECTED: &str = "a map in order, within the file, of as many bytes as there are";

/// Of the largest number.
const DIGITS_MAX: usize = 20;

/// A file's pieces that are in the archive; the rest is holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    /// Length of the file, with its holes.
    pub(super) size: u64,
    /// Offset and length, in order, none empty.
    pieces: Vec<(u64, u64)>,
}

impl Map {
    /// Of a file of that length, with so many bytes in the archive.
    fn of(size: u64, pieces: &[(u64, u64)], stored: u64) -> Option<Self> {
        let (mut end, mut sum) = (0, 0_u64);
        for (offset, length) in pieces {
            if *offset < end {
                return None;
            }
            end = offset.checked_add(*length).filter(|end| *end <= size)?;
            sum += length;
        }
        let pieces = pieces.iter().filter(|(_, length)| *length > 0).copied().collect();
        (sum == stored).then_some(Self { size, pieces })
    }

    fn stored(&self) -> u64 {
        self.pieces.iter().map(|(_, length)| length).sum()
    }
}

/// What pax records say of a sparse file, 0.0 to 1.0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    major: Option<u64>,
    minor: Option<u64>,
    /// The file's name, that of the entry being one for programs that know nothing of this.
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    count: Option<u64>,
    /// Offsets and lengths by turns.
    numbers: Option<Vec<u64>>,
}

impl Records {
    /// Takes a record up; `None` if it is malformed, or none that is known.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(number(value)?),
            b"minor" => self.minor = Some(number(value)?),
            b"name" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            // One or the other.
            b"size" | b"realsize" => self.size.replace(number(value)?).is_none().then_some(())?,
            b"numblocks" => self.count = Some(number(value)?),
            b"map" if value.is_empty() => self.numbers = Some(Vec::new()),
            b"map" => self.numbers = Some(value.split(|b| *b == b',').map(number).collect::<Option<_>>()?),
            b"offset" | b"numbytes" => {
                let numbers = self.numbers.get_or_insert_default();
                (numbers.len() % 2 == usize::from(key == b"numbytes")).then_some(())?;
                numbers.push(number(value)?);
            }
            _ => return None,
        }
        Some(())
    }

    /// The map, if these are of a sparse file; that of 1.0 is read from the data.
    ///
    /// # Errors
    /// It is not well formed, or of a format that is not known.
    pub(super) fn map(&self, members: &mut Members<'_>) -> Result<Option<Map>, String> {
        if *self == Self::default() {
            return Ok(None);
        }
        let (numbers, count) = match (self.major, self.minor) {
            (Some(1), Some(0)) => {
                let numbers = in_data(members)?;
                let count = numbers.len() as u64 / 2;
                (numbers, count)
            }
            (None, None) | (Some(0), Some(0 | 1)) => {
                (self.numbers.clone().ok_or(EXPECTED)?, self.count.ok_or(EXPECTED)?)
            }
            _ => return Err("a map in the format 0.0, 0.1 or 1.0".into()),
        };
        let pieces = pairs(&numbers).filter(|pieces| pieces.len() as u64 == count).ok_or(EXPECTED)?;
        let size = self.size.ok_or("the length of the file")?;
        Map::of(size, &pieces, members.left()).map(Some).ok_or_else(|| EXPECTED.to_owned())
    }
}

/// Decimal digits, and no sign.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.first()?.is_ascii_digit();
    std::str::from_utf8(text).ok()?.parse().ok().filter(|_| digits)
}

fn pairs(numbers: &[u64]) -> Option<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

/// The map of 1.0: decimal numbers before newlines, how many pairs first, in whole blocks. It counts as headers, which bounds it.
fn in_data(members: &mut Members<'_>) -> Result<Vec<u64>, String> {
    let (mut numbers, mut text) = (Vec::new(), Vec::new());
    let mut wanted: Option<u64> = None;
    loop {
        let mut block = [0; 512];
        members.read_exact(&mut block).map_err(said)?;
        for byte in block {
            if byte != b'\n' {
                text.push(byte);
                if text.len() > DIGITS_MAX {
                    return Err(EXPECTED.into());
                }
                continue;
            }
            let value = number(&text).ok_or(EXPECTED)?;
            text.clear();
            match wanted {
                None => wanted = Some(value.checked_mul(2).ok_or(EXPECTED)?),
                Some(_) => numbers.push(value),
            }
            if wanted == Some(numbers.len() as u64) {
                return Ok(numbers);
            }
        }
    }
}

/// The map of GNU tar's own header, and of the blocks that follow it; the member's data must have been announced.
///
/// # Errors
/// It is not well formed.
pub(super) fn own(header: &tar::Header, members: &mut Members<'_>) -> Result<Map, String> {
    let gnu = header.as_gnu().ok_or("a header of GNU tar")?;
    let size = gnu.real_size().map_err(|e| format!("the length of the file ({e})"))?;
    let mut pieces = Vec::new();
    add(&mut pieces, &gnu.sparse)?;
    let mut more = gnu.isextended[0] != 0;
    while more {
        let mut block = tar::GnuExtSparseHeader::new();
        *block.as_mut_bytes() = members.block()?.ok_or("the rest of the map")?;
        add(&mut pieces, &block.sparse)?;
        more = block.isextended[0] != 0;
    }
    Map::of(size, &pieces, members.left()).ok_or_else(|| EXPECTED.to_owned())
}

fn add(pieces: &mut Vec<(u64, u64)>, headers: &[tar::GnuSparseHeader]) -> Result<(), String> {
    let bad = |e: io::Error| format!("{EXPECTED} ({e})");
    for header in headers.iter().take_while(|header| header.offset[0] != 0) {
        pieces.push((header.offset().map_err(bad)?, header.length().map_err(bad)?));
    }
    Ok(())
}

/// A file as it is, holes and all.
pub(super) struct Expanded<'m, 'b> {
    members: &'m mut Members<'b>,
    map: Map,
    at: u64,
    piece: usize,
}

impl<'m, 'b> Expanded<'m, 'b> {
    /// Its holes are counted as unpacked here, before any of them is read.
    ///
    /// # Errors
    /// They are too many.
    pub(super) fn new(members: &'m mut Members<'b>, map: Map) -> Result<Self, String> {
        members.holes(map.size - map.stored()).map_err(said)?;
        Ok(Self { members, map, at: 0, piece: 0 })
    }
}

impl Read for Expanded<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (offset, length) = self.map.pieces.get(self.piece).copied().unwrap_or((self.map.size, 0));
        let (end, hole) = if self.at < offset { (offset, true) } else { (offset + length, false) };
        let most = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let n = if hole {
            buffer[..most].fill(0);
            most
        } else {
            self.members.read(&mut buffer[..most])?
        };
        self.at += n as u64;
        if !hole && self.at == end {
            self.piece += 1;
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::{Map, Records, pairs};

    #[test]
    fn a_map_accounts_for_each_byte() {
        let map = Map::of(100, &[(0, 10), (20, 0), (20, 30), (100, 0)], 40);
        assert_eq!(map, Some(Map { size: 100, pieces: vec![(0, 10), (20, 30)] }));
        assert_eq!(Map::of(7, &[], 0), Some(Map { size: 7, pieces: vec![] }));
        for (what, size, pieces, stored) in [
            ("more data than it names", 100, vec![(0, 10)], 11),
            ("less", 100, vec![(0, 10)], 9),
            ("overlapping", 100, vec![(0, 10), (9, 10)], 20),
            ("unsorted", 100, vec![(50, 10), (0, 10)], 20),
            ("beyond the end", 100, vec![(95, 10)], 10),
            ("beyond all numbers", u64::MAX, vec![(u64::MAX, 2)], 2),
            ("an empty piece beyond the end", 100, vec![(101, 0)], 0),
        ] {
            assert_eq!(Map::of(size, &pieces, stored), None, "{what}");
        }
    }

    #[test]
    fn records_are_read_in_each_format() {
        let read = |records: &[(&str, &str)]| {
            let mut read = Records::default();
            let all =
                records.iter().all(|(key, value)| read.take(key.as_bytes(), value.as_bytes()).is_some());
            all.then_some(read)
        };
        let old = [("size", "9"), ("numblocks", "2")];
        let by_turns = [("offset", "0"), ("numbytes", "1"), ("offset", "5"), ("numbytes", "2")];
        let as_one = read(&[&old[..], &[("map", "0,1,5,2")]].concat()).unwrap();
        assert_eq!(read(&[&old[..], &by_turns].concat()), Some(as_one.clone()));
        assert_eq!(pairs(as_one.numbers.as_deref().unwrap()), Some(vec![(0, 1), (5, 2)]));
        for bad in [
            &[("size", "-1")][..],
            &[("size", "+1")],
            &[("map", "1,,2")],
            &[("map", "1,")],
            &[("numbytes", "1")],
            &[("offset", "1"), ("offset", "2")],
            &[("realsize", "99999999999999999999")],
            &[("colour", "red")],
            &[("size", "1"), ("realsize", "1")],
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
