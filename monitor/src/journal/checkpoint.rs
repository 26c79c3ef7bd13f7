//! Checkpoints: C2SP tlog-checkpoint notes, and the lines this log adds to them.

use signed_note::Note;
use tlog_tiles::checkpoint::Checkpoint as Text;
use tlog_tiles::tlog::Hash;

use super::keys::{KeyChain, NodeKey};

/// Which violations of an evicted stretch are kept, as each checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// First sequence number in the kept segment, which is its name.
    pub(super) first: u64,
    pub(super) records: u64,
    /// Hex SHA-256 over the sequence numbers in order, each eight bytes little-endian.
    pub(super) digest: String,
}

/// What a checkpoint says beside size and root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extra {
    /// Records 1 to `.0` are evicted, as record `.1` says.
    pub(super) evicted: Option<(u64, u64)>,
    pub(super) kept: Vec<Kept>,
    /// The agent stopped in good order after this.
    pub(super) clean_stop: bool,
}

impl Extra {
    fn lines(&self) -> String {
        let evicted = self.evicted.iter().map(|(to, by)| format!("meshseal/evicted {to} {by}\n"));
        let kept =
            self.kept.iter().map(|k| format!("meshseal/kept {} {} {}\n", k.first, k.records, k.digest));
        let clean = self.clean_stop.then(|| "meshseal/clean-stop\n".to_owned());
        evicted.chain(kept).chain(clean).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut out = Self::default();
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["meshseal/evicted", to, by] => out.evicted = Some((to.parse().ok()?, by.parse().ok()?)),
                ["meshseal/kept", first, records, digest] => out.kept.push(Kept {
                    first: first.parse().ok()?,
                    records: records.parse().ok()?,
                    digest: digest.to_owned(),
                }),
                ["meshseal/clean-stop"] => out.clean_stop = true,
                _ => return None,
            }
        }
        (out.lines() == text).then_some(out)
    }
}

/// A checkpoint whose signature was believed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Opened {
    pub(super) size: u64,
    pub(super) root: Hash,
    pub(super) extra: Extra,
}

/// Makes the signed note.
pub(super) fn sign(
    key: &NodeKey,
    origin: &str,
    size: u64,
    root: Hash,
    extra: &Extra,
) -> Result<String, String> {
    let text = Text::new(origin, size, root, &extra.lines()).map_err(|e| e.to_string())?;
    let mut note = Note::new(&text.to_bytes(), &[]).map_err(|e| e.to_string())?;
    note.add_sigs(&[key]).map_err(|e| e.to_string())?;
    String::from_utf8(note.to_bytes()).map_err(|e| e.to_string())
}

/// Checks a note of this log and takes it apart.
pub(super) fn open(note: &[u8], origin: &str, keys: &KeyChain) -> Result<Opened, String> {
    let parsed = Note::from_bytes(note).map_err(|e| e.to_string())?;
    if parsed.to_bytes() != note {
        return Err("not as it was written".to_owned());
    }
    let text = Text::from_bytes(parsed.text()).map_err(|e| e.to_string())?;
    if text.to_bytes() != parsed.text() {
        return Err("not as it was written".to_owned());
    }
    if text.origin() != origin {
        return Err(format!("it is of log {}: expected {origin}", text.origin()));
    }
    keys.verify(&parsed, text.size())?;
    let extra = Extra::parse(text.extension()).ok_or("unknown lines")?;
    Ok(Opened { size: text.size(), root: *text.hash(), extra })
}

/// Checks a checkpoint from elsewhere: it may carry other signatures (witnesses) and other lines.
pub(super) fn open_external(note: &[u8], origin: &str, keys: &KeyChain) -> Result<(u64, Hash), String> {
    let (parsed, text) = parse_external(note)?;
    if text.origin() != origin {
        return Err(format!("it is of log {}: expected {origin}", text.origin()));
    }
    keys.verify(&parsed, text.size())?;
    Ok((text.size(), *text.hash()))
}

/// Takes a checkpoint from elsewhere apart, and believes none of it.
pub(super) fn parse_external(note: &[u8]) -> Result<(Note, Text), String> {
    let parsed = Note::from_bytes(note).map_err(|e| e.to_string())?;
    let text = Text::from_bytes(parsed.text()).map_err(|e| e.to_string())?;
    Ok((parsed, text))
}

#[cfg(test)]
mod tests {
    use tlog_tiles::tlog::record_hash;

    use super::{Extra, Kept, open, sign};
    use crate::journal::keys::{KeyChain, NodeKey, parse_public};

    #[test]
    fn notes_come_back_and_any_flip_is_seen() {
        let key = NodeKey::generate("meshseal/n/x");
        let chain = KeyChain::single("meshseal/n/x", parse_public(&key.vkey(), "meshseal/n/x").unwrap());
        let kept = Kept { first: 3, records: 2, digest: "ab".repeat(32) };
        for extra in [Extra::default(), Extra { evicted: Some((9, 12)), kept: vec![kept], clean_stop: true }]
        {
            let note = sign(&key, "meshseal/n/x", 12, record_hash(b"x"), &extra).unwrap();
            let opened = open(note.as_bytes(), "meshseal/n/x", &chain).unwrap();
            assert_eq!((opened.size, opened.root, opened.extra), (12, record_hash(b"x"), extra));
            for at in 0..note.len() {
                let mut bad = note.clone().into_bytes();
                bad[at] ^= 1;
                assert!(open(&bad, "meshseal/n/x", &chain).is_err(), "{at}");
            }
        }
    }
}
