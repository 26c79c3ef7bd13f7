//! Content that is compared by what it means, not by its bytes: PEM bundles as sets, chains of CNI plugins by entry, JSON
//! and YAML by value.
//!
//! Readers are strict. Where two programs could read a file differently (a key given twice, a broken block between two
//! good ones) it has no meaning, and differs from whatever is sealed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};
use sha2::{Digest as _, Sha256};

use super::identity;
use super::object::Digest;
use crate::model::State;
use crate::profile::{Place, Profiles};
use crate::yaml::{self, Version};

/// Most plugins of a chain.
const PLUGINS_MAX: usize = 64;
/// Most certificates of a bundle: what [`identity::certificates`] reads.
const CERTIFICATES_MAX: usize = 100;

/// What may follow from a chain that is not the sealed one.
const BYPASS: &str = "pods that start from now on may bypass the mesh";

/// How content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// A PEM bundle of certificates.
    Pem,
    /// A chain of CNI plugins, or a single one.
    Cni,
    /// JSON.
    Json,
    /// YAML, one document.
    Yaml,
}

impl Form {
    /// The word in statements and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pem => "pem",
            Self::Cni => "cni",
            Self::Json => "json",
            Self::Yaml => "yaml",
        }
    }
}

/// What content means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// SHA-256 of the DER of each certificate, in no order.
    Pem(BTreeSet<Digest>),
    /// Plugins, in order.
    Cni(Chain),
    /// SHA-256 of the value as canonical JSON.
    Value(Form, Digest),
}

/// A chain of CNI plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// In the order in which they are called.
    pub plugins: Vec<Plugin>,
    /// SHA-256 of all but the plugins, as canonical JSON.
    pub rest: Digest,
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// SHA-256 of the entry as canonical JSON, in hex digits.
    pub sha256: String,
    /// Its executable.
    #[serde(rename = "type")]
    pub kind: String,
}

impl Meaning {
    /// Reads content.
    ///
    /// # Errors
    /// It is not of that form; the text tells nothing of the content.
    pub fn read(form: Form, bytes: &[u8]) -> Result<Self, String> {
        match form {
            Form::Pem => pem(bytes).map(Self::Pem),
            Form::Cni => cni(bytes).map(Self::Cni),
            Form::Json => Ok(Self::Value(form, digest(&json(bytes)?)?)),
            Form::Yaml => Ok(Self::Value(form, digest(&yaml_value(bytes)?)?)),
        }
    }

    /// How it was read.
    #[must_use]
    pub const fn form(&self) -> Form {
        match self {
            Self::Pem(_) => Form::Pem,
            Self::Cni(_) => Form::Cni,
            Self::Value(form, _) => *form,
        }
    }

    /// Key and value for a [`State`].
    #[must_use]
    pub fn state(&self) -> (&'static str, String) {
        match self {
            Self::Pem(set) => ("certificates", set.iter().map(hex::encode).collect::<Vec<_>>().join(",")),
            Self::Cni(chain) => (
                "plugins",
                chain.plugins.iter().map(|plugin| plugin.kind.as_str()).collect::<Vec<_>>().join(","),
            ),
            Self::Value(form, digest) => (form.as_str(), format!("sha256:{}", hex::encode(digest))),
        }
    }

    /// What it means that nothing of it is there.
    #[must_use]
    pub fn without_it(&self, profiles: &Profiles) -> Option<String> {
        let Self::Cni(chain) = self else { return None };
        let plugin = chain.plugins.iter().find(|plugin| is_of_mesh(&plugin.kind, profiles))?;
        Some(format!("the chain with plugin {} is gone; {BYPASS}", plugin.kind))
    }

    /// How what was found differs from this, as sealed: what differs of each, and a sentence. The profiles know plugins of meshes.
    #[must_use]
    pub fn differs(&self, found: Result<&Self, &str>, profiles: &Profiles) -> Option<(State, State, String)> {
        let state = |meaning: &Self| {
            let (key, value) = meaning.state();
            State::from([(key.to_owned(), value)])
        };
        let found = match found {
            Ok(found) if found == self => return None,
            Ok(found) => found,
            Err(reason) => {
                let none = State::from([(self.state().0.to_owned(), "none".to_owned())]);
                return Some((
                    state(self),
                    none,
                    format!("cannot be read as {}: {reason}", self.form().as_str()),
                ));
            }
        };
        let detail = match (self, found) {
            (Self::Pem(sealed), Self::Pem(found)) => bundle_differs(sealed, found),
            (Self::Cni(sealed), Self::Cni(found)) => chain_differs(sealed, found, profiles),
            _ => "has another value".to_owned(),
        };
        let (mut expected, mut actual) = (state(self), state(found));
        if let (Self::Cni(sealed), Self::Cni(found)) = (self, found) {
            // The same plugins by name: tell which entry is another.
            for (sealed, found) in sealed.plugins.iter().zip(&found.plugins).filter(|(a, b)| a != b) {
                expected.insert(format!("plugin.{}", sealed.kind), format!("sha256:{}", sealed.sha256));
                actual.insert(format!("plugin.{}", found.kind), format!("sha256:{}", found.sha256));
            }
        }
        Some((expected, actual, detail))
    }
}

impl Chain {
    /// What was found is this chain but for plugins that are missing: somebody took them away, and did nothing else.
    #[must_use]
    pub fn only_lacks(&self, found: &Self) -> bool {
        let mut left = self.plugins.iter();
        let ordered = found.plugins.iter().all(|plugin| left.any(|sealed| sealed == plugin));
        ordered && found.plugins.len() < self.plugins.len() && found.rest == self.rest
    }
}

fn bundle_differs(sealed: &BTreeSet<Digest>, found: &BTreeSet<Digest>) -> String {
    let count = |from: &BTreeSet<Digest>, not: &BTreeSet<Digest>| from.difference(not).count();
    let certificates = |count: usize| if count == 1 { "certificate" } else { "certificates" };
    let (added, removed) = (count(found, sealed), count(sealed, found));
    match (added, removed) {
        (0, _) => format!("{removed} {} of the bundle removed", certificates(removed)),
        (_, 0) => {
            format!("{added} {} added to the bundle: whatever they sign is trusted", certificates(added))
        }
        _ => format!(
            "{added} {} added to the bundle, {removed} removed: whatever the added ones sign is trusted",
            certificates(added)
        ),
    }
}

fn chain_differs(sealed: &Chain, found: &Chain, profiles: &Profiles) -> String {
    let names = |chain: &Chain| chain.plugins.iter().map(|plugin| plugin.kind.clone()).collect::<Vec<_>>();
    let (before, after) = (names(sealed), names(found));
    let mut said = Vec::new();
    let mut bypass = false;
    let mesh = |kind: &String| is_of_mesh(kind, profiles);
    let removed = less(&before, &after);
    let added = less(&after, &before);
    if !removed.is_empty() {
        bypass |= removed.iter().any(mesh);
        said.push(format!("plugin {} removed from the chain", removed.join(", ")));
    }
    if !added.is_empty() {
        said.push(format!("plugin {} added to the chain", added.join(", ")));
    }
    // Entries that are there no more, but for those of plugins that are not: others of the same names stand there.
    let lacking = less(&sealed.plugins, &found.plugins);
    let lacking: Vec<String> = lacking.into_iter().map(|plugin| plugin.kind).collect();
    let changed = less(&lacking, &removed);
    let moved = before != after || changed.is_empty() && sealed.plugins != found.plugins;
    if removed.is_empty() && added.is_empty() && moved {
        bypass |= before.iter().any(mesh);
        said.push("plugins of the chain reordered".to_owned());
    }
    if !changed.is_empty() {
        bypass |= changed.iter().any(mesh);
        said.push(format!("entry of plugin {} changed", changed.join(", ")));
    }
    if sealed.rest != found.rest {
        said.push("name, version or another setting of the chain changed".to_owned());
    }
    if bypass {
        said.push(BYPASS.to_owned());
    }
    said.join("; ")
}

/// What of some is not among others, each as often as it is missing there.
fn less<T: Clone + PartialEq>(some: &[T], others: &[T]) -> Vec<T> {
    let mut rest: Vec<&T> = others.iter().collect();
    let mut missing = some.to_vec();
    missing.retain(|one| match rest.iter().position(|other| *other == one) {
        Some(at) => {
            rest.swap_remove(at);
            false
        }
        None => true,
    });
    missing
}

/// Whether a mesh's CNI plugin is called so.
fn is_of_mesh(kind: &str, profiles: &Profiles) -> bool {
    let place = Place::CniBin(vec![kind.as_bytes().to_vec()]);
    let found = profiles.rule(&place, &crate::profile::Nowhere);
    found.is_some_and(|found| !found.profile.containers.is_empty())
}

/// Whether only a chain of plugins, or a plugin alone, is called so.
#[must_use]
pub fn is_conflist(name: &[u8]) -> bool {
    name.ends_with(b".conflist") || name.ends_with(b".conf")
}

/// What a name that is new in a directory of plugin chains means: the runtime takes the first by name.
#[must_use]
pub fn overtakes(names: &[&[u8]], new: &[u8]) -> Option<String> {
    let is_chain = |name: &[u8]| is_conflist(name) || name.ends_with(b".json");
    // Only a directory of chains has such names.
    let is_cni = names.iter().any(|name| is_conflist(name));
    let first = names.iter().copied().filter(|name| is_chain(name)).min();
    let first = first.filter(|first| is_cni && is_chain(new) && new < *first)?;
    let first = crate::model::HostPath::new(first.to_vec());
    Some(format!("sorts before {first}: the runtime takes it instead, and {BYPASS}"))
}

fn pem(bytes: &[u8]) -> Result<BTreeSet<Digest>, String> {
    let blocks = memchr::memmem::find_iter(bytes, b"-----BEGIN ").count();
    let certificates = identity::certificates(bytes);
    if certificates.is_empty() || blocks != certificates.len() || blocks > CERTIFICATES_MAX {
        return Err(format!("expected 1 to {CERTIFICATES_MAX} PEM certificates and no other block"));
    }
    Ok(certificates.iter().map(|der| Sha256::digest(der).into()).collect())
}

fn cni(bytes: &[u8]) -> Result<Chain, String> {
    let Value::Object(mut rest) = json(bytes)? else { return Err("expected an object".to_owned()) };
    let plugins = match rest.remove("plugins") {
        Some(Value::Array(plugins)) if plugins.len() <= PLUGINS_MAX => plugins,
        Some(_) => return Err(format!("expected a list of at most {PLUGINS_MAX} plugins")),
        // A single plugin, as before there were chains.
        None => vec![Value::Object(std::mem::take(&mut rest))],
    };
    let plugin = |entry: &Value| {
        let kind = entry.get("type").and_then(Value::as_str).filter(|kind| (1..=255).contains(&kind.len()));
        let kind = kind.ok_or("expected a type for each plugin")?;
        Ok::<_, String>(Plugin { sha256: hex::encode(digest(entry)?), kind: kind.to_owned() })
    };
    let plugins = plugins.iter().map(plugin).collect::<Result<_, _>>()?;
    Ok(Chain { plugins, rest: digest(&Value::Object(rest))? })
}

fn json(bytes: &[u8]) -> Result<Value, String> {
    let strict: Strict = serde_json::from_slice(bytes)
        .map_err(|_| "no JSON that can be compared, or a key twice".to_owned())?;
    Ok(strict.0)
}

fn yaml_value(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "no text".to_owned())?;
    // Programs differ in how they read `y` and `0777`: the same to each of them is the same.
    let by = |version| {
        let read = yaml::parse_by::<Strict>(text, "YAML document", version);
        // Its own words would name keys.
        let at = |line: Option<u64>| line.map_or_else(String::new, |line| format!(" (line {line})"));
        read.map(|strict| strict.0)
            .map_err(|refusal| format!("no YAML that can be compared, or a key twice{}", at(refusal.line)))
    };
    Ok(Value::Array(vec![by(Version::Old)?, by(Version::Core)?]))
}

/// Sorted keys, no blanks.
fn digest(value: &Value) -> Result<Digest, String> {
    let text = serde_json::to_vec(value).map_err(|_| "cannot be written as JSON".to_owned())?;
    Ok(Sha256::digest(text).into())
}

/// A JSON value no map of which has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Self)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        // An integer that is larger than these comes as the nearest number, which others are near to as well.
        const EXACT: f64 = 9_223_372_036_854_775_808.0;
        let number = Number::from_f64(value).filter(|_| value.abs() < EXACT);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that cannot be compared"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(value)) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, Strict(value))) = access.next_entry::<String, Strict>()? {
            if map.insert(key, value).is_some() {
                return Err(de::Error::custom("a key twice"));
            }
        }
        Ok(Value::Object(map.into_iter().collect::<Map<_, _>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::{BYPASS, Form, Meaning, Profiles, overtakes};

    const CHAIN: &[u8] = br#"{"cniVersion": "1.0.0", "name": "n", "plugins": [
        {"type": "calico", "mtu": 1}, {"type": "istio-cni", "log": "x"}]}"#;

    fn cni(text: &[u8]) -> Meaning {
        Meaning::read(Form::Cni, text).unwrap()
    }

    fn said(found: &[u8]) -> Option<String> {
        cni(CHAIN).differs(Ok(&cni(found)), Profiles::built_in()).map(|(_, _, said)| said)
    }

    #[test]
    fn plugins_of_a_users_own_mesh_are_known_by_their_profile() {
        const PROFILE: &str = "apiVersion: meshseal/v1
profile: ours
mesh: ours
about: a mesh of our own
readFrom: nowhere
status: read
containers: [ours-cni]
files:
  - { path: \"{cni.bin}/ours-cni\", about: its plugin, class: sealed, role: cni-binary }
";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ours.yaml");
        std::fs::write(&file, PROFILE).unwrap();
        let ours = Profiles::with(&[file]).unwrap();
        let sealed = cni(br#"{"name":"n","plugins":[{"type":"calico"},{"type":"ours-cni"}]}"#);
        let found = cni(br#"{"name":"n","plugins":[{"type":"calico"}]}"#);
        let said = |profiles| sealed.differs(Ok(&found), profiles).map(|(_, _, said)| said);
        let removed = "plugin ours-cni removed from the chain";
        assert_eq!(said(Profiles::built_in()), Some(removed.to_owned()));
        assert_eq!(said(&ours), Some(format!("{removed}; {BYPASS}")));
        assert_eq!(sealed.without_it(Profiles::built_in()), None);
        let gone = format!("the chain with plugin ours-cni is gone; {BYPASS}");
        assert_eq!(sealed.without_it(&ours), Some(gone));
    }

    #[test]
    fn a_chain_is_compared_entry_by_entry() {
        let same = br#"{"name":"n","cniVersion":"1.0.0","plugins":[{"mtu":1,"type":"calico"},{"log":"x","type":"istio-cni"}]}"#;
        assert_eq!(said(same), None);
        let cases: [(&[u8], &str); 6] = [
            (
                br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"calico","mtu":1}]}"#,
                "plugin istio-cni removed from the chain; pods that start from now on may bypass the mesh",
            ),
            (
                br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"istio-cni","log":"x"},{"type":"calico","mtu":1}]}"#,
                "plugins of the chain reordered; pods that start from now on may bypass the mesh",
            ),
            (
                br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"calico","mtu":1},{"type":"istio-cni","log":"x","exclude":["a"]}]}"#,
                "entry of plugin istio-cni changed; pods that start from now on may bypass the mesh",
            ),
            (
                br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"calico","mtu":2},{"type":"istio-cni","log":"x"}]}"#,
                "entry of plugin calico changed",
            ),
            (
                br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"calico","mtu":1},{"type":"istio-cni","log":"x"},{"type":"evil"}]}"#,
                "plugin evil added to the chain",
            ),
            (
                br#"{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"calico","mtu":1},{"type":"istio-cni","log":"x"}]}"#,
                "name, version or another setting of the chain changed",
            ),
        ];
        for (found, expected) in cases {
            assert_eq!(said(found).as_deref(), Some(expected));
        }
        let (expected, actual, _) = cni(CHAIN).differs(Ok(&cni(cases[0].0)), Profiles::built_in()).unwrap();
        assert_eq!(
            (expected["plugins"].as_str(), actual["plugins"].as_str()),
            ("calico,istio-cni", "calico")
        );
        let (expected, actual, _) = cni(CHAIN).differs(Ok(&cni(cases[3].0)), Profiles::built_in()).unwrap();
        assert_ne!(expected["plugin.calico"], actual["plugin.calico"]);
    }

    #[test]
    fn what_two_readers_could_read_differently_means_nothing() {
        let twice = br#"{"name":"n","plugins":[{"type":"a","type":"b"}]}"#;
        for text in
            [&twice[..], b"{", b"[]", br#"{"plugins":{}}"#, br#"{"plugins":[{}]}"#, br#"{"plugins":[1]}"#]
        {
            assert!(Meaning::read(Form::Cni, text).is_err(), "{}", String::from_utf8_lossy(text));
        }
        let reason = Meaning::read(Form::Cni, twice).unwrap_err();
        let (expected, actual, said) = cni(CHAIN).differs(Err(&reason), Profiles::built_in()).unwrap();
        assert_eq!((expected["plugins"].as_str(), actual["plugins"].as_str()), ("calico,istio-cni", "none"));
        assert_eq!(said, "cannot be read as cni: no JSON that can be compared, or a key twice");
        assert_eq!(
            Meaning::read(Form::Cni, br#"{"type":"bridge"}"#).unwrap().state(),
            ("plugins", "bridge".into())
        );
    }

    #[test]
    fn json_and_yaml_are_compared_by_value() {
        let json = |text: &str| Meaning::read(Form::Json, text.as_bytes());
        assert_eq!(json(r#"{"a": [1, 2], "b": null}"#), json("{\"b\":null,\n\"a\":[1,2]}"));
        assert_ne!(json("[1,2]"), json("[2,1]"));
        assert_ne!(json("1"), json("\"1\""));
        assert!(json(r#"{"a":1,"a":1}"#).is_err());
        assert!(json(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))).is_err());
        let yaml = |text: &str| Meaning::read(Form::Yaml, text.as_bytes());
        assert_eq!(yaml("a: 1\nb: [x, z]\n"), yaml("# said otherwise\nb:\n- x\n- \"z\"\na: 1\n"));
        // To some readers a truth value or an octal number, to others a string or not.
        assert_ne!(yaml("a: y\n"), yaml("a: \"y\"\n"));
        assert_ne!(yaml("a: y\n"), yaml("a: true\n"));
        assert_ne!(yaml("a: 0777\n"), yaml("a: 777\n"));
        assert_ne!(yaml("a: 1\n"), yaml("a: 2\n"));
        assert!(yaml("a: 1\na: 1\n").is_err());
        assert!(yaml("a: 1\n---\na: 1\n").is_err());
    }

    fn certificate(serial: u8) -> (Vec<u8>, String) {
        use base64::Engine as _;
        let der = vec![0x30, 1, serial];
        let text = base64::engine::general_purpose::STANDARD.encode(&der);
        (der, format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"))
    }

    #[test]
    fn a_bundle_is_a_set() {
        let (one, two, three) = (certificate(1).1, certificate(2).1, certificate(3).1);
        let pem = |text: &str| Meaning::read(Form::Pem, text.as_bytes());
        let sealed = pem(&format!("{one}{two}")).unwrap();
        assert_eq!(pem(&format!("# roots\n{two}\n\n{one}{one}")).unwrap(), sealed);
        let said = |text: String| {
            sealed.differs(Ok(&pem(&text).unwrap()), Profiles::built_in()).map(|(_, _, said)| said)
        };
        assert_eq!(
            said(format!("{one}{two}{three}")).as_deref(),
            Some("1 certificate added to the bundle: whatever they sign is trusted")
        );
        assert_eq!(said(one.clone()).as_deref(), Some("1 certificate of the bundle removed"));
        assert_eq!(
            said(format!("{one}{three}")).as_deref(),
            Some("1 certificate added to the bundle, 1 removed: whatever the added ones sign is trusted")
        );
        // A reader that skips what is broken would trust the third.
        let broken = one.replace("MAEB", "M!EB");
        assert_ne!(broken, one);
        for text in [
            format!("{one}{broken}{three}"),
            String::new(),
            one.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        ] {
            assert!(pem(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn of_a_chain_each_entry_counts() {
        let chain = |kinds: &[(&str, u32)]| {
            let plugins: Vec<_> =
                kinds.iter().map(|(kind, n)| serde_json::json!({"type": kind, "n": n})).collect();
            let text = serde_json::json!({"name": "n", "plugins": plugins}).to_string();
            Meaning::read(Form::Cni, text.as_bytes()).unwrap()
        };
        let said = |sealed: &[(&str, u32)], found: &[(&str, u32)]| {
            chain(sealed).differs(Ok(&chain(found)), Profiles::built_in()).map(|(_, _, said)| said).unwrap()
        };
        assert_eq!(said(&[("ptp", 1)], &[("ptp", 1), ("ptp", 1)]), "plugin ptp added to the chain");
        assert_eq!(said(&[("a", 1), ("a", 1)], &[("a", 1)]), "plugin a removed from the chain");
        assert_eq!(said(&[("a", 1), ("a", 2)], &[("a", 2), ("a", 1)]), "plugins of the chain reordered");
        assert_eq!(said(&[("a", 1), ("a", 2)], &[("a", 1), ("a", 3)]), "entry of plugin a changed");
        assert_eq!(
            said(&[("a", 1), ("b", 1)], &[("b", 2), ("c", 1)]),
            "plugin a removed from the chain; plugin c added to the chain; entry of plugin b changed"
        );
    }

    #[test]
    fn what_cannot_be_compared_is_refused_without_a_word_of_it() {
        let refused = |form, text: &str| Meaning::read(form, text.as_bytes()).unwrap_err();
        for number in ["18446744073709551617", "-9223372036854775809", "1e300"] {
            assert_eq!(
                refused(Form::Json, number),
                "no JSON that can be compared, or a key twice",
                "{number}"
            );
        }
        assert!(Meaning::read(Form::Json, b"[18446744073709551615, -9223372036854775808, 1e3, 0.1]").is_ok());
        let twice = "no YAML that can be compared, or a key twice (line 2)";
        assert_eq!(refused(Form::Yaml, "SECRETTOKEN: 1\nSECRETTOKEN: 2\n"), twice);
        assert_eq!(refused(Form::Yaml, ""), "no YAML that can be compared, or a key twice");
    }

    #[test]
    fn a_chain_that_sorts_first_is_told() {
        let names: [&[u8]; 3] = [b"10-calico.conflist", b"ZZZ-kubeconfig", b"README"];
        let told = |new: &[u8]| overtakes(&names, new);
        let expected = "sorts before 10-calico.conflist: the runtime takes it instead, and pods that start from now on may bypass the mesh";
        assert_eq!(told(b"00-evil.conf").as_deref(), Some(expected));
        assert_eq!(told(b"05.json").as_deref(), Some(expected));
        assert_eq!(told(b"20-late.conflist"), None);
        assert_eq!(told(b"00-evil.txt"), None);
        assert_eq!(overtakes(&[b"b.json"], b"a.json"), None, "no directory of chains");
    }
}
