//! Segment headers and frames: bytes to records and back. The format is docs/journal.md's.

/// Largest payload of one record, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Bytes before the payload: length, CRC, sequence number.
pub(super) const FRAME_HEAD: usize = 16;
/// Bytes before the first frame of a segment.
pub(super) const SEGMENT_HEAD: usize = 52;

/// What a segment file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentKind {
    /// Records in order, without holes.
    Log,
    /// Violations kept from evicted segments.
    Kept,
}

impl SegmentKind {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Log => *b"MSEALOG1",
            Self::Kept => *b"MSEALKP1",
        }
    }
}

/// First bytes of a segment: `magic[8] journal[16] first u64 prev_first u64 prev_len u64 crc u32`, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) kind: SegmentKind,
    /// The journal's id (the ULID's 128 bits).
    pub(super) journal: u128,
    /// Sequence number of its first record.
    pub(super) first: u64,
    /// First sequence number of the segment before; 0 for the first segment ever, and in kept segments.
    pub(super) prev_first: u64,
    /// Length in bytes of the segment before, when it was closed; 0 as above.
    pub(super) prev_len: u64,
}

impl SegmentHead {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEAD] {
        let mut out = [0; SEGMENT_HEAD];
        out[..8].copy_from_slice(&self.kind.magic());
        out[8..24].copy_from_slice(&self.journal.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.to_le_bytes());
        out[32..40].copy_from_slice(&self.prev_first.to_le_bytes());
        out[40..48].copy_from_slice(&self.prev_len.to_le_bytes());
        let crc = crc32c::crc32c(&out[..48]);
        out[48..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SEGMENT_HEAD)?;
        if crc32c::crc32c(&bytes[..48]) != u32_at(bytes, 48)? {
            return None;
        }
        let kind = [SegmentKind::Log, SegmentKind::Kept].into_iter().find(|k| k.magic() == bytes[..8])?;
        Some(Self {
            kind,
            journal: u128::from_le_bytes(bytes[8..24].try_into().ok()?),
            first: u64_at(bytes, 24)?,
            prev_first: u64_at(bytes, 32)?,
            prev_len: u64_at(bytes, 40)?,
        })
    }
}

/// What stands at a place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded<'a> {
    /// A whole record, and how many bytes its frame takes.
    Frame { seq: u64, payload: &'a [u8], size: usize },
    /// Nothing: the segment ends here.
    End,
    /// Fewer bytes than the frame needs.
    Short { need: usize },
    /// Bytes that are no frame.
    Bad(BadFrame),
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadFrame {
    #[error("a length of {0} bytes")]
    Length(u32),
    #[error("a CRC mismatch")]
    Crc,
}

/// Appends a frame: `len u32, crc u32, seq u64, payload`, little-endian; the CRC-32C covers length, sequence number
/// and payload.
pub(super) fn encode(out: &mut Vec<u8>, seq: u64, payload: &[u8]) -> Result<(), usize> {
    if payload.is_empty() || payload.len() > MAX_PAYLOAD {
        return Err(payload.len());
    }
    let len = u32::try_from(payload.len()).map_err(|_| payload.len())?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&crc(len, seq, payload).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Decodes the frame at the start of `bytes`.
pub(super) fn decode(bytes: &[u8]) -> Decoded<'_> {
    if bytes.is_empty() {
        return Decoded::End;
    }
    let Some(len) = u32_at(bytes, 0) else { return Decoded::Short { need: FRAME_HEAD } };
    let size = len as usize;
    if size == 0 || size > MAX_PAYLOAD {
        return Decoded::Bad(BadFrame::Length(len));
    }
    let (Some(want), Some(seq)) = (u32_at(bytes, 4), u64_at(bytes, 8)) else {
        return Decoded::Short { need: FRAME_HEAD + size };
    };
    let Some(payload) = bytes.get(FRAME_HEAD..FRAME_HEAD + size) else {
        return Decoded::Short { need: FRAME_HEAD + size };
    };
    if crc(len, seq, payload) != want {
        return Decoded::Bad(BadFrame::Crc);
    }
    Decoded::Frame { seq, payload, size: FRAME_HEAD + size }
}

fn crc(len: u32, seq: u64, payload: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(&len.to_le_bytes()), &seq.to_le_bytes());
    crc32c::crc32c_append(head, payload)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BadFrame, Decoded, FRAME_HEAD, MAX_PAYLOAD, SegmentHead, SegmentKind, decode, encode};

    proptest! {
        #[test]
        fn any_bytes_decode_to_something_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            match decode(&bytes) {
                Decoded::Frame { payload, size, .. } => {
                    prop_assert_eq!(size, FRAME_HEAD + payload.len());
                    prop_assert!(size <= bytes.len());
                }
                Decoded::End => prop_assert!(bytes.is_empty()),
                Decoded::Short { need } => prop_assert!(need > bytes.len() && need <= FRAME_HEAD + MAX_PAYLOAD),
                Decoded::Bad(_) => {}
            }
        }

        #[test]
        fn frames_come_back(seq: u64, payload in proptest::collection::vec(any::<u8>(), 1..512), rest in proptest::collection::vec(any::<u8>(), 0..16)) {
            let mut bytes = Vec::new();
            encode(&mut bytes, seq, &payload).unwrap();
            let size = bytes.len();
            bytes.extend_from_slice(&rest);
            prop_assert_eq!(decode(&bytes), Decoded::Frame { seq, payload: &payload, size });
        }

        #[test]
        fn any_flipped_bit_is_seen(seq: u64, payload in proptest::collection::vec(any::<u8>(), 1..64), at: prop::sample::Index, bit in 0_u8..8) {
            let mut bytes = Vec::new();
            encode(&mut bytes, seq, &payload).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let seen = !matches!(decode(&bytes), Decoded::Frame { .. } | Decoded::End);
            prop_assert!(seen);
        }

        #[test]
        fn any_cut_is_seen(payload in proptest::collection::vec(any::<u8>(), 1..64), at: prop::sample::Index) {
            let mut bytes = Vec::new();
            encode(&mut bytes, 7, &payload).unwrap();
            let size = bytes.len();
            bytes.truncate(1 + at.index(size - 1));
            prop_assert_eq!(decode(&bytes), Decoded::Short { need: if bytes.len() < 4 { FRAME_HEAD } else { size } });
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let mut out = Vec::new();
        assert_eq!(encode(&mut out, 1, &[]), Err(0));
        assert_eq!(encode(&mut out, 1, &vec![0; MAX_PAYLOAD + 1]), Err(MAX_PAYLOAD + 1));
        assert!(out.is_empty());
        assert_eq!(decode(&[255; 20]), Decoded::Bad(BadFrame::Length(u32::MAX)));
        assert_eq!(decode(&[0; 20]), Decoded::Bad(BadFrame::Length(0)));
    }

    #[test]
    fn head_comes_back_and_any_flip_is_seen() {
        let head =
            SegmentHead { kind: SegmentKind::Kept, journal: 77, first: 1, prev_first: 9, prev_len: 4096 };
        let bytes = head.encode();
        assert_eq!(SegmentHead::decode(&bytes), Some(head));
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(SegmentHead::decode(&bad), None);
        }
    }
}
