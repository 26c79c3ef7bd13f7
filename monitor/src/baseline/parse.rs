//! From the text of a statement to a baseline.
//!
//! The text is read twice: once for everything but the objects, which may stand before what they are checked by, and
//! once for the objects, each of which is checked and put away before the next is read. So there is never a second copy
//! of all of them, and what stays in memory is not scattered between the pieces of one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest as _, Sha256};

use super::dsse::MAX_PAYLOAD;
use super::error::Error;
use super::object::{PodWriter, SealedObject, Writer};
use super::statement::{
    Baseline, MAX_OBJECTS, MAX_WRITERS, PREDICATE_TYPE, STATEMENT_TYPE, Scope, Subject, Unresolved, Validity,
    WireWriter, is_name, is_statement_type, place_of, transition,
};
use super::wire::{Shared, WireObject, is_dns, to_sealed};
use crate::model::Slice;

/// Longest transition: a week.
const MAX_TRANSITION: u64 = 7 * 24 * 3600;
/// Most containers of a writer inside pods.
const MAX_CONTAINERS: usize = 16;
const WHAT: &str = "bad statement";

/// A statement without its objects. Fields as in [`super::statement::Statement`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outline {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Rest,
}

/// A predicate without its objects. Fields as in [`super::statement::Predicate`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rest {
    name: String,
    revision: u64,
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    validity: Validity,
    #[serde(default = "transition")]
    transition: u64,
    #[serde(default)]
    source_commit: Option<String>,
    #[serde(default)]
    writers: Vec<WireWriter>,
    #[serde(default)]
    unresolved: Vec<Unresolved>,
    #[serde(rename = "objects")]
    _objects: IgnoredAny,
}

/// SHA-256 of objects as canonical JSON, one after the other.
#[derive(Default)]
pub(super) struct ObjectsDigest {
    hash: Sha256,
    text: Vec<u8>,
    any: bool,
}

impl ObjectsDigest {
    /// The next object.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub(super) fn add(&mut self, object: &WireObject) -> Result<(), Error> {
        self.text.clear();
        self.text.push(if self.any { b',' } else { b'[' });
        self.any = true;
        serde_json::to_writer(&mut self.text, object)
            .map_err(|e| Error::new("cannot write objects", "", e))?;
        self.hash.update(&self.text);
        Ok(())
    }

    /// In hex digits.
    pub(super) fn finish(mut self) -> String {
        self.hash.update(if self.any { "]" } else { "[]" });
        hex::encode(self.hash.finalize())
    }
}

/// Reads a statement; everything in it is checked.
///
/// # Errors
/// What is wrong, with the field.
pub fn parse(payload: &[u8]) -> Result<Baseline, Error> {
    let bad = |place: &str, expected: &str| Error::new(WHAT, place, expected);
    if payload.len() > MAX_PAYLOAD {
        return Err(bad("size", &format!("at most {MAX_PAYLOAD} bytes")));
    }
    let outline: Outline = serde_json::from_slice(payload).map_err(|e| Error::new(WHAT, "JSON", e))?;
    let predicate = outline.predicate;
    if !is_statement_type(&outline.statement_type) {
        return Err(bad("_type", STATEMENT_TYPE));
    }
    if outline.predicate_type != PREDICATE_TYPE {
        return Err(bad("predicateType", PREDICATE_TYPE));
    }
    if !is_name(&predicate.name) {
        return Err(bad("predicate.name", "1 to 128 letters, digits, `.`, `_`, `-`, not first a `.`"));
    }
    if predicate.revision == 0 {
        return Err(bad("predicate.revision", "1 or more"));
    }
    if predicate.transition > MAX_TRANSITION {
        return Err(bad("predicate.transition", "at most 604800 seconds"));
    }
    if let Validity { not_before: Some(from), not_after: Some(to) } = predicate.validity
        && to <= from
    {
        return Err(bad("predicate.validity", "notAfter later than notBefore"));
    }
    if predicate.source_commit.as_ref().is_some_and(|text| text.len() > 256) {
        return Err(bad("predicate.sourceCommit", "at most 256 bytes"));
    }
    let [subject] = outline.subject.as_slice() else {
        return Err(bad("subject", "exactly one"));
    };
    if subject.name != predicate.name {
        return Err(bad("subject[0].name", "the same as predicate.name"));
    }
    if predicate.unresolved.len() > MAX_OBJECTS {
        return Err(bad("predicate.unresolved", "at most 1000000"));
    }
    let writers = writers(predicate.writers)?;
    let (mut objects, digest) = objects(payload, &writers)?;
    if subject.digest.sha256 != digest {
        return Err(bad("subject[0].digest.sha256", "the SHA-256 of predicate.objects as canonical JSON"));
    }
    if !objects.is_sorted_by(|a, b| place_of(a) <= place_of(b)) {
        objects.sort_unstable_by(|a, b| place_of(a).cmp(&place_of(b)));
    }
    for pair in objects.windows(2) {
        if place_of(&pair[0]) == place_of(&pair[1]) {
            return Err(bad(&format!("predicate.objects: {}", pair[0].address()), "each path once"));
        }
    }
    Slice::pack(objects.iter_mut().flat_map(SealedObject::slices_mut).collect());
    Ok(Baseline {
        name: predicate.name,
        revision: predicate.revision,
        sha256: Sha256::digest(payload).into(),
        scope: predicate.scope,
        validity: predicate.validity,
        transition: Duration::from_secs(predicate.transition),
        source_commit: predicate.source_commit,
        writers: writers.into(),
        unresolved: predicate.unresolved,
        objects: objects.into(),
    })
}

fn writers(wire: Vec<WireWriter>) -> Result<Vec<Writer>, Error> {
    if wire.len() > MAX_WRITERS {
        return Err(Error::new("bad statement", "predicate.writers", format!("at most {MAX_WRITERS}")));
    }
    let mut writers = vec![Writer::Kubelet];
    for (at, writer) in wire.into_iter().enumerate() {
        let bad = |field: &str, expected: &str| {
            Error::new("bad statement", format!("predicate.writers[{at}].{field}"), expected)
        };
        let sha256 = super::wire::digest(&writer.sha256).ok_or_else(|| bad("sha256", "64 hex digits"))?;
        if !is_name(&writer.name) || writers.iter().any(|known| known.name() == writer.name) {
            return Err(bad("name", "a name of its own; `kubelet` is built in"));
        }
        if !super::wire::is_plain_path(&writer.exe) {
            return Err(bad("exe", "an absolute path without `.`, `..` or empty components"));
        }
        let WireWriter { containers, exe, name, namespace, .. } = writer;
        if containers.len() > MAX_CONTAINERS || !containers.iter().all(|name| is_dns(name)) {
            return Err(bad("containers", "at most 16 names of containers"));
        }
        if namespace.as_ref().is_some_and(|namespace| containers.is_empty() || !is_dns(namespace)) {
            return Err(bad("namespace", "the name of a namespace, beside containers"));
        }
        writers.push(if containers.is_empty() {
            Writer::Executable { name, exe, sha256 }
        } else {
            Writer::InPod(Arc::new(PodWriter { name, exe, sha256, containers, namespace }))
        });
    }
    Ok(writers)
}

/// The objects of a statement, and their digest.
fn objects(payload: &[u8], writers: &[Writer]) -> Result<(Vec<SealedObject>, String), Error> {
    let mut taken = Taken {
        writers,
        shared: Shared::default(),
        digest: ObjectsDigest::default(),
        objects: Vec::new(),
        refused: None,
    };
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let seed = Below("predicate", Below("objects", Each(&mut taken)));
    let read = seed.deserialize(&mut reader);
    match (taken.refused, read) {
        (Some(refused), _) => Err(refused),
        (None, Err(e)) => Err(Error::new(WHAT, "JSON", e)),
        (None, Ok(())) => Ok((taken.objects, taken.digest.finish())),
    }
}

/// What came of the objects so far.
struct Taken<'a> {
    writers: &'a [Writer],
    shared: Shared,
    digest: ObjectsDigest,
    objects: Vec<SealedObject>,
    refused: Option<Error>,
}

impl Taken<'_> {
    fn take(&mut self, object: WireObject) -> Result<(), Error> {
        let at = self.objects.len();
        if at >= MAX_OBJECTS {
            return Err(Error::new(WHAT, "predicate.objects", format!("at most {MAX_OBJECTS}")));
        }
        self.digest.add(&object)?;
        let place = format!("predicate.objects[{at}]");
        self.objects.push(to_sealed(object, self.writers, &mut self.shared, &place)?);
        Ok(())
    }
}

/// The value of one key of a map; the others are passed over.
struct Below<S>(&'static str, S);

impl<'de, S: DeserializeSeed<'de, Value = ()>> DeserializeSeed<'de> for Below<S> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de, S: DeserializeSeed<'de, Value = ()>> Visitor<'de> for Below<S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map with `{}`", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seed = Some(self.1);
        while let Some(key) = map.next_key::<String>()? {
            match seed.take_if(|_| key == self.0) {
                Some(seed) => map.next_value_seed(seed)?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// The elements of a list, one after the other.
struct Each<'a, 'b>(&'a mut Taken<'b>);

impl<'de> DeserializeSeed<'de> for Each<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Each<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(object) = list.next_element::<WireObject>()? {
            if let Err(refused) = self.0.take(object) {
                self.0.refused = Some(refused);
                return Err(de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
