//! The Merkle tree of RFC 6962 over all records, kept as the stored hashes of `tlog_tiles` in one side file.
//!
//! The file is an array of 32-byte hashes in the order of `tlog_tiles::stored_hash_index`: hash `i` never changes once
//! written, so appending is all the writer ever does, and the file can be made again from the records.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use tlog_tiles::tlog::{self, Hash, HashReader};

pub(super) const HASH: u64 = 32;

/// The stored hashes: a prefix in the file, the rest still in memory.
#[derive(Debug)]
pub(super) struct Tree {
    file: File,
    /// Leaves, those in memory included.
    leaves: u64,
    /// Hashes in the file.
    written: u64,
    /// Hashes behind those.
    pending: Vec<Hash>,
    /// The last read error, which `HashReader` cannot carry.
    error: RefCell<Option<io::Error>>,
}

/// How many leaves are whole in a file of `len` bytes.
pub(super) fn leaves_in(len: u64) -> u64 {
    let hashes = len / HASH;
    // stored_hash_count(n) lies between n and 2n, and grows with n.
    let (mut low, mut high) = (hashes / 2, hashes);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if tlog::stored_hash_count(middle) <= hashes { low = middle } else { high = middle - 1 }
    }
    low
}

impl Tree {
    /// Takes the first `leaves` leaves of the file.
    pub(super) fn new(file: File, leaves: u64) -> Self {
        let written = tlog::stored_hash_count(leaves);
        Self { file, leaves, written, pending: Vec::new(), error: RefCell::new(None) }
    }

    pub(super) const fn leaves(&self) -> u64 {
        self.leaves
    }

    /// Bytes the file has once flushed.
    pub(super) fn len(&self) -> u64 {
        tlog::stored_hash_count(self.leaves) * HASH
    }

    /// Adds a leaf, in memory.
    pub(super) fn push(&mut self, payload: &[u8]) -> io::Result<()> {
        self.push_hash(tlog::record_hash(payload))
    }

    /// Adds a leaf by its hash, in memory.
    pub(super) fn push_hash(&mut self, leaf: Hash) -> io::Result<()> {
        let stored = tlog::stored_hashes_for_record_hash(self.leaves, leaf, self);
        let mut hashes = self.checked(stored)?;
        self.pending.append(&mut hashes);
        self.leaves += 1;
        Ok(())
    }

    /// Forgets the leaves behind the first `leaves`, which must be in memory only.
    pub(super) fn rollback(&mut self, leaves: u64) {
        let keep = tlog::stored_hash_count(leaves).saturating_sub(self.written);
        self.pending.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.leaves = leaves;
    }

    /// Writes what is in memory to the file.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.flush_to(self.leaves)
    }

    /// Writes what is in memory of the first `leaves` leaves to the file.
    pub(super) fn flush_to(&mut self, leaves: u64) -> io::Result<()> {
        let ready = tlog::stored_hash_count(leaves).saturating_sub(self.written);
        let ready = usize::try_from(ready).unwrap_or(usize::MAX).min(self.pending.len());
        let bytes: Vec<u8> = self.pending.iter().take(ready).flat_map(|h| h.0).collect();
        self.file.write_all_at(&bytes, self.written * HASH)?;
        self.written += ready as u64;
        self.pending.drain(..ready);
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Root of the tree of the first `leaves` leaves.
    pub(super) fn root(&self, leaves: u64) -> io::Result<Hash> {
        if leaves > self.leaves {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let root = tlog::tree_hash(leaves, self);
        self.checked(root)
    }

    /// The hash of leaf `index` (from 0).
    pub(super) fn leaf(&self, index: u64) -> io::Result<Hash> {
        let hashes = self.read_hashes(&[tlog::stored_hash_index(0, index)]);
        self.checked(hashes).and_then(|h| h.first().copied().ok_or(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Proof that leaf `index` (from 0) is in the tree of the first `size` leaves.
    pub(super) fn prove_leaf(&self, size: u64, index: u64) -> io::Result<Vec<Hash>> {
        if size > self.leaves || index >= size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let proof = tlog::prove_record(size, index, self);
        self.checked(proof)
    }

    /// Proof that the tree of the first `old` leaves is a prefix of that of the first `new`.
    pub(super) fn prove_prefix(&self, old: u64, new: u64) -> io::Result<Vec<Hash>> {
        if new > self.leaves || old == 0 || old > new {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let proof = tlog::prove_tree(new, old, self);
        self.checked(proof)
    }

    fn checked<T>(&self, result: Result<T, tlog::Error>) -> io::Result<T> {
        result.map_err(|e| self.error.take().unwrap_or_else(|| io::Error::other(e.to_string())))
    }
}

impl HashReader for Tree {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog::Error> {
        let one = |index: u64| -> io::Result<Hash> {
            if let Some(at) = index.checked_sub(self.written) {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                return self.pending.get(at).copied().ok_or(io::ErrorKind::UnexpectedEof.into());
            }
            let mut hash = Hash::default();
            self.file.read_exact_at(&mut hash.0, index * HASH)?;
            Ok(hash)
        };
        indexes.iter().map(|&index| one(index)).collect::<io::Result<_>>().map_err(|e| {
            let text = e.to_string();
            self.error.replace(Some(e));
            tlog::Error::InvalidInput(text)
        })
    }
}

#[cfg(test)]
mod tests {
    use tlog_tiles::tlog;

    use super::{HASH, Tree, leaves_in};

    #[test]
    fn whole_leaves_are_counted() {
        for n in 0..200 {
            let count = tlog::stored_hash_count(n);
            assert_eq!(leaves_in(count * HASH), n);
            assert_eq!(leaves_in(count * HASH + 31), n);
            assert_eq!(leaves_in((tlog::stored_hash_count(n + 1) - 1) * HASH), n);
        }
    }

    #[test]
    fn roots_are_those_of_rfc_6962() {
        // Roots of the eight leaves of Certificate Transparency's own test vectors (RFC 6962 reference tests).
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let mut tree = Tree::new(tempfile::tempfile().unwrap(), 0);
        for (i, leaf) in leaves.iter().enumerate() {
            tree.push(leaf).unwrap();
            if i % 3 == 0 {
                tree.flush().unwrap();
            }
        }
        assert_eq!(
            hex::encode(tree.root(8).unwrap().0),
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
        );
        assert_eq!(
            hex::encode(tree.root(1).unwrap().0),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        let (root, leaf) = (tree.root(8).unwrap(), tree.leaf(5).unwrap());
        assert_eq!(leaf, tlog::record_hash(leaves[5]));
        tlog::check_record(&tree.prove_leaf(8, 5).unwrap(), 8, root, 5, leaf).unwrap();
        let old = tree.root(3).unwrap();
        tlog::check_tree(&tree.prove_prefix(3, 8).unwrap(), 8, root, 3, old).unwrap();
        assert!(tree.prove_leaf(9, 0).is_err());
    }

    #[test]
    fn rollback_forgets_leaves() {
        let mut tree = Tree::new(tempfile::tempfile().unwrap(), 0);
        tree.push(b"a").unwrap();
        tree.flush().unwrap();
        let before = tree.root(1).unwrap();
        tree.push(b"b").unwrap();
        tree.push(b"c").unwrap();
        tree.rollback(1);
        assert_eq!((tree.leaves(), tree.root(1).unwrap()), (1, before));
        tree.push(b"d").unwrap();
        tree.push(b"e").unwrap();
        // Some of it, as where a segment ends inside a batch.
        tree.flush_to(2).unwrap();
        assert_eq!(tree.file.metadata().unwrap().len(), tlog::stored_hash_count(2) * HASH);
        tree.rollback(2);
        tree.flush().unwrap();
        assert_eq!(tree.root(2).unwrap(), tlog::node_hash(tlog::record_hash(b"a"), tlog::record_hash(b"d")));
    }
}
