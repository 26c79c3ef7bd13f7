//! One layer as a stream: decompressed, checked against both of its digests, bounded.
//!
//! An archive that unpacks to far more than it is (a bomb) is stopped by a bound on the bytes of an image, and long
//! before that by a bound on the ratio; the holes of sparse files count in both. Names and extended headers are read into memory, so they have
//! bounds of their own; contents are hashed as they pass.

use std::cell::RefCell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::entry::{Entry, Extended, said};
use super::layout::LayerBlob;
use super::members::Members;
use crate::baseline::Digest;
use crate::baseline::secret::SecretKey;

/// Most bytes all layers of one image may unpack to.
pub const UNPACKED_MAX: u64 = 64 << 30;
/// Bytes that are unpacked before the ratio counts.
const RATIO_FROM: u64 = 64 << 20;
/// Most bytes a byte of a layer may unpack to; executables unpack to three or four.
const RATIO_MAX: u64 = 100;
/// Bytes read at a time.
const CHUNK: usize = 128 * 1024;

/// Bounds that all layers of an image share.
#[derive(Debug)]
pub struct Bounds {
    /// Bytes that may still be unpacked.
    pub unpacked: u64,
}

/// Reads a layer, and hands on each entry.
///
/// # Errors
/// It is not as described, beyond the bounds, or hostile; or `take` refuses an entry.
pub fn read(
    blob: Box<dyn Read + '_>,
    described: &LayerBlob,
    key: Option<&SecretKey>,
    bounds: &mut Bounds,
    mut take: impl FnMut(Entry) -> Result<(), String>,
) -> Result<(), String> {
    let stored = Rc::new(RefCell::new(Counted { count: 0, hash: Sha256::new() }));
    let tap = Tap { inner: blob, counted: Rc::clone(&stored) };
    let plain = decompress(tap)?;
    let unpacked = Rc::new(RefCell::new(Counted { count: 0, hash: Sha256::new() }));
    let guard = Guard {
        inner: plain,
        stored: Rc::clone(&stored),
        unpacked: Rc::clone(&unpacked),
        bound: bounds.unpacked,
        holes: 0,
    };
    let mut members = Members::new(guard);
    let mut extended = Extended::default();
    while let Some(header) = members.header()? {
        if extended.take(&header, &mut members)? {
            continue;
        }
        take(std::mem::take(&mut extended).entry(&header, &mut members, key)?)?;
        members.content_ended();
    }
    // What follows the end of the archive belongs to both digests.
    let mut rest = members.into_source();
    io::copy(&mut rest, &mut io::sink()).map_err(said)?;
    let holes = rest.holes;
    drop(rest);
    let (stored, unpacked) = (finished(&stored), finished(&unpacked));
    if described.size.is_some_and(|size| size != stored.0) {
        return Err(format!("a layer {} of the size its manifest says", described.name));
    }
    if described.digest.is_some_and(|digest| digest != stored.1) {
        return Err(format!("a layer {} with the digest its manifest says", described.name));
    }
    if described.diff_id != unpacked.1 {
        return Err(format!("a layer {} that unpacks to the digest its configuration says", described.name));
    }
    bounds.unpacked = bounds.unpacked.saturating_sub(unpacked.0 + holes);
    Ok(())
}

/// By its first bytes: media types are not to be trusted, and `docker save` has none.
fn decompress<'b>(tap: Tap<'b>) -> Result<Box<dyn Read + 'b>, String> {
    let mut reader = BufReader::with_capacity(CHUNK, tap);
    let start = io::BufRead::fill_buf(&mut reader).map_err(said)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(Frames { decoder: None, source: Some(reader) }),
        _ => Box::new(reader),
    })
}

type Source<'b> = io::Chain<io::Cursor<[u8; 4]>, BufReader<Tap<'b>>>;

/// zstd frames, one after the other; those that hold no data are passed over (RFC 8878, 3.1.2).
struct Frames<'b> {
    decoder: Option<ruzstd::decoding::StreamingDecoder<Source<'b>, ruzstd::decoding::FrameDecoder>>,
    source: Option<BufReader<Tap<'b>>>,
}

impl Frames<'_> {
    /// The next frame with data.
    fn next(&mut self) -> io::Result<bool> {
        let Some(mut source) = self.source.take() else { return Ok(false) };
        loop {
            if io::BufRead::fill_buf(&mut source)?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            source.read_exact(&mut magic)?;
            if !matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                let source = io::Cursor::new(magic).chain(source);
                let decoder = ruzstd::decoding::StreamingDecoder::new(source)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                self.decoder = Some(decoder);
                return Ok(true);
            }
            let mut length = [0; 4];
            source.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            if io::copy(&mut source.by_ref().take(length), &mut io::sink())? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Read for Frames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                let n = decoder.read(buffer)?;
                if n > 0 || buffer.is_empty() {
                    return Ok(n);
                }
                self.source = self.decoder.take().map(|decoder| decoder.into_inner().into_inner().1);
            }
            if !self.next()? {
                return Ok(0);
            }
        }
    }
}

struct Counted {
    count: u64,
    hash: Sha256,
}

fn finished(counted: &Rc<RefCell<Counted>>) -> (u64, Digest) {
    let counted = counted.borrow();
    (counted.count, counted.hash.clone().finalize().into())
}

/// Counts and hashes what is stored.
struct Tap<'b> {
    inner: Box<dyn Read + 'b>,
    counted: Rc<RefCell<Counted>>,
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let mut counted = self.counted.borrow_mut();
        counted.count += n as u64;
        counted.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// Counts and hashes what is unpacked, and stops what has no end.
pub(super) struct Guard<'b> {
    inner: Box<dyn Read + 'b>,
    stored: Rc<RefCell<Counted>>,
    unpacked: Rc<RefCell<Counted>>,
    bound: u64,
    /// Bytes of files that are in no archive.
    holes: u64,
}

impl Guard<'_> {
    /// Counts bytes of a file that are in no archive.
    pub(super) fn holes(&mut self, bytes: u64) -> io::Result<()> {
        self.holes = self.holes.saturating_add(bytes);
        let unpacked = self.unpacked.borrow().count;
        self.within(unpacked)
    }

    fn within(&self, unpacked: u64) -> io::Result<()> {
        let unpacked = unpacked.saturating_add(self.holes);
        if unpacked > self.bound {
            return Err(io::Error::other(format!("unpacks to more than {UNPACKED_MAX} bytes")));
        }
        let stored = self.stored.borrow().count;
        if unpacked > RATIO_FROM && unpacked / RATIO_MAX > stored {
            return Err(io::Error::other(format!("a decompression bomb: more than {RATIO_MAX} to one")));
        }
        Ok(())
    }
}

impl Read for Guard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let mut unpacked = self.unpacked.borrow_mut();
        unpacked.count += n as u64;
        unpacked.hash.update(&buffer[..n]);
        self.within(unpacked.count)?;
        Ok(n)
    }
}
