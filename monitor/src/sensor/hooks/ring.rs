//! The ring that the programs write their records to, and how much of it is read in one go.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::ring_buf::RingBufItem;
use aya::maps::{Map, MapData, MapError, RingBuf};

/// What the kernel puts before each record (`BPF_RINGBUF_HDR_SZ` in include/uapi/linux/bpf.h), and what it rounds their sizes up to: bytes.
const HEADER: u64 = 8;

/// A ring of which the size is known.
pub(super) struct Ring {
    ring: RingBuf<MapData>,
    /// Bytes.
    size: u64,
}

/// How much of a ring is read yet in one go. Whoever writes faster than is read here would never let it end otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent(u64);

impl Extent {
    /// A record of that many bytes was read.
    const fn less(&mut self, len: usize) {
        let taken = HEADER.saturating_add((len as u64).next_multiple_of(HEADER));
        self.0 = self.0.saturating_sub(taken);
    }
}

impl Ring {
    /// # Errors
    /// The map is no ring, or cannot be mapped or asked for its size.
    pub(super) fn new(map: Map) -> Result<Self, MapError> {
        let size = match &map {
            Map::RingBuf(data) => data.info()?.max_entries(),
            _ => 0,
        };
        Ok(Self { ring: RingBuf::try_from(map)?, size: size.into() })
    }

    /// All that it may hold: once that much is read, so is what was in it when this was asked.
    pub(super) const fn now(&self) -> Extent {
        Extent(self.size)
    }

    /// The next record within `extent`.
    pub(super) fn next(&mut self, extent: &mut Extent) -> Option<RingBufItem<'_>> {
        if extent.0 == 0 {
            return None;
        }
        let record = self.ring.next()?;
        extent.less(record.len());
        Some(record)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::Extent;

    #[test]
    fn an_extent_ends_with_as_many_records_as_the_ring_can_hold() {
        let mut extent = Extent(4096);
        for _ in 0..4096 / (8 + 104) {
            assert_ne!(extent, Extent(0));
            extent.less(100);
        }
        extent.less(100);
        assert_eq!(extent, Extent(0));
    }
}
