//! Tar archives, as hostile as they are asked to be.

use std::io::Write as _;

use sha2::{Digest as _, Sha256};

/// `VFS_CAP_REVISION_2` with two capabilities, effective; one byte of it is a newline.
pub(super) const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 10, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A tar archive in ustar format, entry by entry, as hostile as it is asked to be.
#[derive(Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn entry(mut self, kind: u8, name: &str, mode: u32, link: &str, bytes: &[u8]) -> Self {
        self.header(kind, name, mode, link, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn header(&mut self, kind: u8, name: &str, mode: u32, link: &str, size: u64) {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }

    pub(super) fn file(self, name: &str, mode: u32, bytes: &[u8]) -> Self {
        self.entry(b'0', name, mode, "", bytes)
    }

    pub(super) fn directory(self, name: &str) -> Self {
        self.entry(b'5', name, 0o755, "", &[])
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, 0o777, target, &[])
    }

    pub(super) fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, 0o755, target, &[])
    }

    /// One thing about the next entry.
    pub(super) fn pax(self, name: &str, value: &[u8]) -> Self {
        self.records(&[(name, value)])
    }

    pub(super) fn records(self, records: &[(&str, &[u8])]) -> Self {
        let record = |(name, value): &(&str, &[u8])| {
            let mut length = name.len() + value.len() + 3;
            length += length.to_string().len();
            if format!("{length} {name}=").len() + value.len() + 1 != length {
                length += 1;
            }
            [format!("{length} {name}=").as_bytes(), value, b"\n"].concat()
        };
        let records: Vec<u8> = records.iter().flat_map(record).collect();
        self.entry(b'x', "PaxHeaders/x", 0o644, "", &records)
    }

    /// A file whose header says another size than what follows.
    pub(super) fn sized(mut self, name: &str, size: u64, bytes: &[u8]) -> Self {
        self.header(b'0', name, 0o644, "", size);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A sparse file in GNU tar's own format.
    pub(super) fn sparse(mut self, name: &str, size: u64, pieces: &[(u64, u64)], bytes: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_path(name).unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(bytes.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(size);
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(pieces) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}
