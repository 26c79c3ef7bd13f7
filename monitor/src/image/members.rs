//! The members of a layer: headers and data of a tar archive, split up as Go's `archive/tar` does it, since that is what runtimes unpack with.
//!
//! The library reads headers here, and no more: its iterator goes by the sizes in headers alone, while a size may stand in pax
//! records, and the map of a sparse file may lie between header and data.

use std::io::{self, Read};

use super::entry::said;
use super::layer::Guard;

/// Most bytes of headers before the data of one entry: long names, extended attributes, maps of sparse files.
const HEADERS_MAX: u64 = 1 << 20;
const BLOCK: usize = 512;

/// A tar archive as a stream of members.
pub(super) struct Members<'b> {
    source: Guard<'b>,
    /// Bytes of data of this member that are still to come.
    data: u64,
    /// Bytes after them, up to the next header.
    padding: u64,
    /// Bytes that may still be read as headers; `None` for content, which is bounded by what may be unpacked.
    headers: Option<u64>,
}

impl<'b> Members<'b> {
    /// Of an archive that begins here.
    pub(super) fn new(source: Guard<'b>) -> Self {
        Self { source, data: 0, padding: 0, headers: Some(HEADERS_MAX) }
    }

    /// What follows the end of the archive.
    pub(super) fn into_source(self) -> Guard<'b> {
        self.source
    }

    /// The next header; `None` at the end. What its kind has of data must be said by [`Self::data_follows`] before it is asked for again.
    ///
    /// # Errors
    /// It is no header, or has no end.
    pub(super) fn header(&mut self) -> Result<Option<tar::Header>, String> {
        let rest = self.data + self.padding;
        if io::copy(&mut (&mut self.source).take(rest), &mut io::sink()).map_err(said)? != rest {
            return Err("a layer with as many bytes of each file as its header says".into());
        }
        (self.data, self.padding) = (0, 0);
        let Some(header) = self.block()? else { return Ok(None) };
        if header != [0; BLOCK] {
            let header = tar::Header::from_byte_slice(&header).clone();
            let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
            // Its own place counts as blanks.
            let expected = sum(header.as_bytes()) - sum(&header.as_bytes()[148..156]) + 8 * u32::from(b' ');
            if header.cksum().ok() != Some(expected) {
                return Err(said(io::Error::other("a header that its checksum is not of")));
            }
            return Ok(Some(header));
        }
        match self.block()? {
            None => Ok(None),
            Some(block) if block == [0; BLOCK] => Ok(None),
            Some(_) => Err(said(io::Error::other("something after half of an end"))),
        }
    }

    /// A block of headers; `None` if nothing is there.
    ///
    /// # Errors
    /// There is less than one, or there were too many.
    pub(super) fn block(&mut self) -> Result<Option<[u8; BLOCK]>, String> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(said(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(said(e)),
            }
        }
        self.headers_took(BLOCK as u64).map_err(said)?;
        Ok(Some(block))
    }

    /// So many bytes of data follow the header.
    pub(super) fn data_follows(&mut self, bytes: u64) {
        self.data = bytes;
        self.padding = bytes.wrapping_neg() % BLOCK as u64;
    }

    /// Bytes of data that are still to come.
    pub(super) fn left(&self) -> u64 {
        self.data
    }

    /// All data of this member, which is a header itself.
    ///
    /// # Errors
    /// It is cut off, or too long.
    pub(super) fn header_data(&mut self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let length = self.data;
        self.read_to_end(&mut bytes).map_err(said)?;
        if bytes.len() as u64 != length {
            return Err(said(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }

    /// What is read from now on, up to the next entry's header, is content.
    pub(super) fn content_begins(&mut self) {
        self.headers = None;
    }

    /// The next entry's headers begin.
    pub(super) fn content_ended(&mut self) {
        self.headers = Some(HEADERS_MAX);
    }

    /// The content has so many bytes that are in no archive; they count as unpacked.
    ///
    /// # Errors
    /// They are too many.
    pub(super) fn holes(&mut self, bytes: u64) -> io::Result<()> {
        self.source.holes(bytes)
    }

    fn headers_took(&mut self, bytes: u64) -> io::Result<()> {
        let Some(left) = self.headers else { return Ok(()) };
        let many = || io::Error::other(format!("more than {HEADERS_MAX} bytes of headers before one entry"));
        self.headers = Some(left.checked_sub(bytes).ok_or_else(many)?);
        Ok(())
    }
}

/// The data of this member, as it lies there.
impl Read for Members<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.source.read(&mut buffer[..most])?;
        self.data -= n as u64;
        self.headers_took(n as u64)?;
        Ok(n)
    }
}
