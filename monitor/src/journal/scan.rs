//! Walks the frames of one segment file with bounded memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;

use super::frame::{self, BadFrame, Decoded, FRAME_HEAD, MAX_PAYLOAD, SEGMENT_HEAD};

const CHUNK: usize = 256 * 1024;

/// What stands at the place reached.
#[derive(Debug)]
pub(super) enum Found {
    Record(StoredRecord),
    End,
    /// The file ends inside a frame; so many bytes of it are there.
    Short(u64),
    Bad(BadFrame),
}

/// A record as it lies in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its sequence number.
    pub seq: u64,
    /// Its JSON, exactly as hashed.
    pub payload: Bytes,
}

/// A walk over a segment.
#[derive(Debug)]
pub(super) struct Scan {
    file: File,
    /// Bytes from `at` on, as far as read.
    buffer: Vec<u8>,
    used: usize,
    /// File offset of `buffer[used]`.
    at: u64,
}

impl Scan {
    /// Starts at the first frame.
    pub(super) fn new(file: File) -> Self {
        Self { file, buffer: Vec::new(), used: 0, at: SEGMENT_HEAD as u64 }
    }

    /// Offset of what `next` will return.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// The next frame. After `End` and `Short` it may be called again, and sees what was appended since.
    pub(super) fn next(&mut self) -> io::Result<Found> {
        loop {
            let (consumed, found) = match frame::decode(&self.buffer[self.used..]) {
                Decoded::Frame { seq, payload, size } => {
                    (size, Found::Record(StoredRecord { seq, payload: Bytes::copy_from_slice(payload) }))
                }
                Decoded::Bad(why) => return Ok(Found::Bad(why)),
                Decoded::End | Decoded::Short { .. } => {
                    if self.fill()? {
                        continue;
                    }
                    let have = self.buffer.len() - self.used;
                    return Ok(if have == 0 { Found::End } else { Found::Short(have as u64) });
                }
            };
            self.used += consumed;
            self.at += consumed as u64;
            return Ok(found);
        }
    }

    /// Forgets what was read ahead: it may have been seen half written.
    pub(super) fn forget(&mut self) {
        self.buffer.clear();
        self.used = 0;
    }

    /// Reads on; false at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let have = self.buffer.len();
        if have >= FRAME_HEAD + MAX_PAYLOAD {
            return Ok(false);
        }
        self.buffer.resize(have + CHUNK, 0);
        let got = loop {
            match self.file.read_at(&mut self.buffer[have..], self.at + have as u64) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(have + *got.as_ref().unwrap_or(&0));
        Ok(got? > 0)
    }
}
