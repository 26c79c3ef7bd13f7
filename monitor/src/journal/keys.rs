//! Who signs a journal: its name, the node's Ed25519 key, and the chain of keys that came before.

use std::fmt;
use std::fs;
use std::path::Path;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use signed_note::{Note, Signer, StandardVerifier, Verifier, VerifierList};
use ulid::Ulid;

use super::JournalError;
use super::files::{self, KEY, KEYS, META, PUB};

/// What `meta.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    pub(super) format: u32,
    pub(super) id: String,
    pub(super) origin: String,
}

impl Meta {
    pub(super) const FORMAT: u32 = 1;

    pub(super) fn new(node: &str, id: Ulid) -> Self {
        // Names of signed notes have neither blanks nor pluses.
        let node: String = node
            .chars()
            .map(|c| if c.is_whitespace() || c.is_control() || matches!(c, '+' | '/') { '_' } else { c })
            .collect();
        Self { format: Self::FORMAT, id: id.to_string(), origin: format!("meshseal/{node}/{id}") }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    pub(super) fn load(dir: &Path) -> Result<Option<Self>, JournalError> {
        let Some(bytes) = files::read_small(&dir.join(META), 4096)? else { return Ok(None) };
        let meta: Self =
            serde_json::from_slice(&bytes).map_err(|e| JournalError::Tampered(format!("{META}: {e}")))?;
        let name_fits =
            meta.origin.starts_with("meshseal/") && meta.origin.ends_with(&format!("/{}", meta.id));
        if meta.encode() != bytes || meta.number().is_none() || !name_fits {
            return Err(JournalError::Tampered(format!("{META}: not as it was written")));
        }
        if meta.format != Self::FORMAT {
            return Err(JournalError::Tampered(format!("{META}: format {}: expected 1", meta.format)));
        }
        Ok(Some(meta))
    }

    /// The id as segments carry it.
    pub(super) fn number(&self) -> Option<u128> {
        Ulid::from_string(&self.id).ok().filter(|id| id.to_string() == self.id).map(|id| id.0)
    }
}

/// The node's key under the journal's name.
pub(super) struct NodeKey {
    origin: String,
    key: SigningKey,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").field("public", &self.vkey()).finish_non_exhaustive()
    }
}

impl NodeKey {
    pub(super) fn generate(origin: &str) -> Self {
        Self { origin: origin.to_owned(), key: SigningKey::generate(&mut rand_core::OsRng) }
    }

    /// The same key under another journal's name.
    pub(super) fn renamed(self, origin: &str) -> Self {
        Self { origin: origin.to_owned(), key: self.key }
    }

    pub(super) fn vkey(&self) -> String {
        signed_note::new_ed25519_verifier_key(&self.origin, &self.key.verifying_key())
    }

    /// Writes the private key and its public half.
    pub(super) fn save(&self, dir: &Path) -> Result<(), JournalError> {
        let pem = self.key.to_pkcs8_pem(LineEnding::LF).map_err(|e| broken(KEY, e))?;
        files::replace(dir, KEY, pem.as_bytes())?;
        files::replace(dir, PUB, public_text(&self.origin, &self.key.verifying_key())?.as_bytes())
    }

    /// Reads the private key; the public half must fit it.
    pub(super) fn load(dir: &Path, origin: &str) -> Result<Option<Self>, JournalError> {
        let Some(bytes) = files::read_small(&dir.join(KEY), 4096)? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(|e| broken(KEY, e))?;
        let key = SigningKey::from_pkcs8_pem(text).map_err(|e| broken(KEY, e))?;
        let canonical = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| broken(KEY, e))?;
        if canonical.as_str() != text {
            return Err(JournalError::Tampered(format!("{KEY}: not as it was written")));
        }
        Ok(Some(Self { origin: origin.to_owned(), key }))
    }
}

impl Signer for NodeKey {
    fn name(&self) -> &str {
        &self.origin
    }

    fn key_id(&self) -> u32 {
        key_id(&self.origin, &self.key.verifying_key())
    }

    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, ed25519_dalek::SignatureError> {
        Ok(self.key.try_sign(msg)?.to_vec())
    }
}

fn broken(file: &str, reason: impl fmt::Display) -> JournalError {
    JournalError::Tampered(format!("{file}: {reason}"))
}

fn key_id(origin: &str, key: &VerifyingKey) -> u32 {
    signed_note::key_id(origin, &[&[1], key.as_bytes().as_slice()].concat())
}

pub(super) fn public_text(origin: &str, key: &VerifyingKey) -> Result<String, JournalError> {
    let pem = key.to_public_key_pem(LineEnding::LF).map_err(|e| broken(PUB, e))?;
    Ok(format!("{}\n{pem}", signed_note::new_ed25519_verifier_key(origin, key)))
}

/// Reads a public key as `node.pub` has it, or its vkey line or PEM block alone, under the name `origin`.
pub(super) fn parse_public(text: &str, origin: &str) -> Result<VerifyingKey, String> {
    match parse_named(text)? {
        (Some(name), _) if name != origin => Err(format!("it is the key of {name}")),
        (_, key) => Ok(key),
    }
}

/// The same under any name; that name, if there is a vkey line.
pub(super) fn parse_named(text: &str) -> Result<(Option<String>, VerifyingKey), String> {
    let pem_at = text.find("-----BEGIN");
    let pem = pem_at
        .map(|at| VerifyingKey::from_public_key_pem(text[at..].trim_end()).map_err(|e| e.to_string()))
        .transpose()?;
    let line = text[..pem_at.unwrap_or(text.len())].trim();
    let named = if line.is_empty() {
        None
    } else {
        let verifier = StandardVerifier::new(line).map_err(|e| e.to_string())?;
        Some((verifier.name().to_owned(), raw_of_vkey(line)?))
    };
    match (named, pem) {
        (Some((_, a)), Some(b)) if a != b => {
            Err("its vkey line and its PEM block are different keys".to_owned())
        }
        (Some((name, key)), _) => Ok((Some(name), key)),
        (None, Some(key)) => Ok((None, key)),
        (None, None) => Err("empty".to_owned()),
    }
}

fn raw_of_vkey(vkey: &str) -> Result<VerifyingKey, String> {
    use base64::Engine as _;
    let encoded = vkey.splitn(3, '+').nth(2).ok_or("no vkey")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|e| e.to_string())?;
    let raw: &[u8; 32] = bytes.get(1..).and_then(|raw| raw.try_into().ok()).ok_or("not an Ed25519 key")?;
    VerifyingKey::from_bytes(raw).map_err(|e| e.to_string())
}

/// The keys of a journal, oldest first, and up to which tree size each may sign.
#[derive(Debug, Clone)]
pub(super) struct KeyChain {
    origin: String,
    keys: Vec<(VerifyingKey, u64)>,
}

impl KeyChain {
    /// One key for everything.
    pub(super) fn single(origin: &str, key: VerifyingKey) -> Self {
        Self { origin: origin.to_owned(), keys: vec![(key, u64::MAX)] }
    }

    /// `node.pub` and the rotations that led to it.
    pub(super) fn load(dir: &Path, origin: &str) -> Result<Self, JournalError> {
        let (text, rotations) = public_parts(dir)?;
        Self::from_parts(&text, &rotations, origin)
    }

    /// The same from their texts.
    pub(super) fn from_parts(text: &str, rotations: &[String], origin: &str) -> Result<Self, JournalError> {
        let current = parse_public(text, origin).map_err(|e| broken(PUB, e))?;
        if public_text(origin, &current)? != text {
            return Err(broken(PUB, "not as it was written"));
        }
        let mut chain = Self::single(origin, current);
        for (at, note) in rotations.iter().enumerate().rev() {
            let number = at as u64 + 1;
            let name = rotation_name(number);
            let rotation = Rotation::open(note.as_bytes(), origin, number).map_err(|e| broken(&name, e))?;
            let newer = chain.keys.first().ok_or_else(|| broken(&name, "no key"))?;
            if newer.0 != rotation.new || newer.1 < rotation.tree_size {
                return Err(broken(&name, "does not lead to the key that follows it"));
            }
            chain.keys.insert(0, (rotation.old, rotation.tree_size));
        }
        Ok(chain)
    }

    pub(super) fn contains(&self, key: &VerifyingKey) -> bool {
        self.keys.iter().any(|(k, _)| k == key)
    }

    pub(super) fn current(&self) -> Option<&VerifyingKey> {
        self.keys.last().map(|(key, _)| key)
    }

    /// Checks that the key in force for a tree of `size` leaves signed the note.
    pub(super) fn verify(&self, note: &Note, size: u64) -> Result<(), String> {
        let (key, _) = self.keys.iter().find(|(_, up_to)| size <= *up_to).ok_or("no key in force")?;
        verify_by(note, &self.origin, &[key])
    }
}

fn verify_by(note: &Note, origin: &str, keys: &[&VerifyingKey]) -> Result<(), String> {
    let verifiers = keys
        .iter()
        .map(|key| {
            let vkey = signed_note::new_ed25519_verifier_key(origin, key);
            StandardVerifier::new(&vkey).map(|v| Box::new(v) as Box<dyn Verifier>).map_err(|e| e.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (verified, _) = note.verify(&VerifierList::new(verifiers)).map_err(|e| e.to_string())?;
    if verified.len() == keys.len() { Ok(()) } else { Err("a signature is missing".to_owned()) }
}

const ROTATION: &str = "meshseal/key-rotation/v1";

/// The old key's word for the new one, and the new one's for the old.
struct Rotation {
    old: VerifyingKey,
    new: VerifyingKey,
    /// The old key signed trees of up to that many leaves.
    tree_size: u64,
}

/// `node.pub`, and the rotation notes in order.
pub(super) fn public_parts(dir: &Path) -> Result<(String, Vec<String>), JournalError> {
    let bytes = files::read_small(&dir.join(PUB), 4096)?.ok_or_else(|| broken(PUB, "missing"))?;
    let text = String::from_utf8(bytes).map_err(|e| broken(PUB, e))?;
    let mut numbers = rotation_numbers(dir)?;
    numbers.sort_unstable();
    let mut rotations = Vec::new();
    for (number, expected) in numbers.into_iter().zip(1..) {
        let name = rotation_name(number);
        if number != expected {
            return Err(broken(&name, format!("expected {}", rotation_name(expected))));
        }
        let bytes = files::read_small(&dir.join(KEYS).join(&name), 16384)?.unwrap_or_default();
        rotations.push(String::from_utf8(bytes).map_err(|e| broken(&name, e))?);
    }
    Ok((text, rotations))
}

fn rotation_name(number: u64) -> String {
    format!("{number:08}.note")
}

fn rotation_numbers(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let path = dir.join(KEYS);
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(broken(KEYS, "expected a directory"));
        }
        Err(e) => return Err(JournalError::io(path)(e)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(JournalError::io(&path))?.file_name();
        let name = name.to_string_lossy();
        let number =
            name.strip_suffix(".note").and_then(|n| n.parse().ok()).filter(|n| rotation_name(*n) == name);
        match number {
            Some(number) => numbers.push(number),
            None if name.ends_with(files::TMP) => {}
            None => return Err(broken(KEYS, format!("{name} does not belong here"))),
        }
    }
    Ok(numbers)
}

impl Rotation {
    fn text(&self, origin: &str, number: u64) -> String {
        let vkey = |key| signed_note::new_ed25519_verifier_key(origin, key);
        let (old, new, size) = (vkey(&self.old), vkey(&self.new), self.tree_size);
        format!("{origin}\n{ROTATION}\n{number}\n{old}\n{new}\n{size}\n")
    }

    fn open(bytes: &[u8], origin: &str, number: u64) -> Result<Self, String> {
        let note = Note::from_bytes(bytes).map_err(|e| e.to_string())?;
        let text = std::str::from_utf8(note.text()).map_err(|e| e.to_string())?;
        let lines: Vec<_> = text.lines().collect();
        let [_, _, _, old, new, size] = lines[..] else { return Err("not a key rotation".to_owned()) };
        let rotation = Self {
            old: raw_of_vkey(old)?,
            new: raw_of_vkey(new)?,
            tree_size: size.parse().map_err(|_| "no tree size")?,
        };
        if rotation.text(origin, number) != text || note.to_bytes() != bytes {
            return Err("not as it was written".to_owned());
        }
        verify_by(&note, origin, &[&rotation.old, &rotation.new])?;
        Ok(rotation)
    }
}

/// Makes a new node key, signed by the old one, for trees of more than `tree_size` leaves.
///
/// The note is written first. If the agent dies before the key is, [`undo_unfinished_rotation`] takes the note back.
pub(super) fn rotate(dir: &Path, old: &NodeKey, tree_size: u64) -> Result<NodeKey, JournalError> {
    let number = rotation_numbers(dir)?.len() as u64 + 1;
    let new = NodeKey::generate(&old.origin);
    let rotation = Rotation { old: old.key.verifying_key(), new: new.key.verifying_key(), tree_size };
    let mut note =
        Note::new(rotation.text(&old.origin, number).as_bytes(), &[]).map_err(|e| broken(KEYS, e))?;
    note.add_sigs(&[old, &new]).map_err(|e| broken(KEYS, e))?;
    files::make_dir(&dir.join(KEYS))?;
    files::replace(&dir.join(KEYS), &rotation_name(number), &note.to_bytes())?;
    new.save(dir)?;
    Ok(new)
}

/// Brings key, public half and rotation notes together again after a rotation that was cut short.
pub(super) fn undo_unfinished_rotation(dir: &Path, key: &NodeKey) -> Result<(), JournalError> {
    let public = key.key.verifying_key();
    if let Some(number) = rotation_numbers(dir)?.into_iter().max() {
        let path = dir.join(KEYS).join(rotation_name(number));
        let bytes = files::read_small(&path, 16384)?.unwrap_or_default();
        if let Ok(rotation) = Rotation::open(&bytes, &key.origin, number) {
            if rotation.old == public {
                fs::remove_file(&path).map_err(JournalError::io(&path))?;
                files::sync_dir(&dir.join(KEYS))?;
            } else if rotation.new == public {
                // The key was written, its public half perhaps not.
                let want = public_text(&key.origin, &public)?;
                if files::read_small(&dir.join(PUB), 4096)?.as_deref() != Some(want.as_bytes()) {
                    files::replace(dir, PUB, want.as_bytes())?;
                }
            }
        }
    }
    Ok(())
}

/// A key that is always the same, and a note by which it follows on another.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz_key(origin: &str) -> (NodeKey, String) {
    let key = |seed: u8| NodeKey { origin: origin.to_owned(), key: SigningKey::from_bytes(&[seed; 32]) };
    let (old, new) = (key(7), key(8));
    let rotation = Rotation { old: old.key.verifying_key(), new: new.key.verifying_key(), tree_size: 0 };
    let note = Note::new(rotation.text(origin, 1).as_bytes(), &[]).and_then(|mut note| {
        note.add_sigs(&[&old, &new])?;
        Ok(String::from_utf8_lossy(&note.to_bytes()).into_owned())
    });
    (new, note.unwrap_or_default())
}

/// What the fuzzers give to the readers of keys and rotations.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn fuzz(bytes: &[u8], origin: &str) {
    let text = String::from_utf8_lossy(bytes);
    crate::fuzz::used(parse_public(&text, origin));
    crate::fuzz::used(Rotation::open(bytes, origin, 1).is_ok());
    let (key, _) = fuzz_key(origin);
    if let Ok(public) = public_text(origin, &key.key.verifying_key()) {
        crate::fuzz::used(KeyChain::from_parts(&public, &[text.into_owned()], origin));
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyChain, Meta, NodeKey, parse_public, rotate, undo_unfinished_rotation};
    use signed_note::{Note, Signer};

    fn note(by: &dyn Signer) -> Note {
        let mut note = Note::new(b"text\n", &[]).unwrap();
        note.add_sigs(&[by]).unwrap();
        note
    }

    #[test]
    fn keys_come_back_and_rotations_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Meta::new("no de+1", ulid::Ulid(5));
        assert_eq!(meta.origin, "meshseal/no_de_1/00000000000000000000000005");
        let first = NodeKey::generate(&meta.origin);
        first.save(dir.path()).unwrap();
        let second = rotate(dir.path(), &first, 10).unwrap();
        let third = rotate(dir.path(), &second, 20).unwrap();
        let loaded = NodeKey::load(dir.path(), &meta.origin).unwrap().unwrap();
        assert_eq!(loaded.vkey(), third.vkey());

        let chain = KeyChain::load(dir.path(), &meta.origin).unwrap();
        for (size, by) in [(0, &first), (10, &first), (11, &second), (20, &second), (21, &third)] {
            chain.verify(&note(by), size).unwrap();
        }
        assert!(chain.verify(&note(&first), 11).is_err());
        assert!(chain.verify(&note(&third), 20).is_err());
        let text = std::fs::read_to_string(dir.path().join("node.pub")).unwrap();
        assert_eq!(chain.current(), Some(&parse_public(&text, &meta.origin).unwrap()));
    }

    #[test]
    fn a_rotation_cut_short_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeKey::generate("meshseal/n/x");
        first.save(dir.path()).unwrap();
        rotate(dir.path(), &first, 10).unwrap();
        first.save(dir.path()).unwrap();
        assert!(KeyChain::load(dir.path(), "meshseal/n/x").is_err());
        undo_unfinished_rotation(dir.path(), &first).unwrap();
        KeyChain::load(dir.path(), "meshseal/n/x").unwrap().verify(&note(&first), 99).unwrap();
    }

    #[test]
    fn any_flip_in_a_rotation_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeKey::generate("meshseal/n/x");
        first.save(dir.path()).unwrap();
        rotate(dir.path(), &first, 10).unwrap();
        for name in ["keys/00000001.note", "node.pub"] {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1;
                std::fs::write(&path, &bad).unwrap();
                assert!(KeyChain::load(dir.path(), "meshseal/n/x").is_err(), "{name} {at}");
            }
            std::fs::write(&path, &good).unwrap();
        }
    }
}
