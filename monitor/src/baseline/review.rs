//! What changed from one baseline to another, in the words of a statement: for people who review before they sign.

use std::collections::BTreeMap;

use serde::Serialize;

use super::object::{Attributes, Content, Seal, SealedObject, Writer};
use super::statement::{Baseline, place_of};
use crate::model::{Class, HostPath};

/// What became of an object, or of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only in the later one.
    Added,
    /// Only in the earlier one.
    Removed,
    /// In both, and not the same.
    Changed,
}

/// One field that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name, as in statements and records.
    pub name: String,
    /// Before; absent where it was not there.
    pub from: Option<String>,
    /// After; absent where it is not there any more.
    pub to: Option<String>,
}

/// One object that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where it stands: its address ([`SealedObject::address`]).
    pub path: String,
    /// What became of it.
    pub change: Kind,
    /// Its class, the later one.
    pub class: Class,
    /// What is not the same; of an object that was added or removed, all of it.
    pub fields: Vec<Field>,
}

/// All that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Review {
    /// Where, when and by whom the baseline is in force: scope, validity, transition, writers.
    pub terms: Vec<Field>,
    /// Objects, by path.
    pub objects: Vec<Change>,
}

impl Review {
    /// From one to the other.
    #[must_use]
    pub fn between(from: &Baseline, to: &Baseline) -> Self {
        Self { terms: fields(&terms(from), &terms(to)), objects: objects(&from.objects, &to.objects) }
    }

    /// Nothing changed but revision and source commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty() && self.objects.is_empty()
    }

    /// How many objects became so.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.objects.iter().filter(|change| change.change == kind).count()
    }
}

type Fields = BTreeMap<String, String>;

/// Two lists sorted by anchor and path.
fn objects(from: &[SealedObject], to: &[SealedObject]) -> Vec<Change> {
    let none = Fields::new();
    let mut out = Vec::new();
    let (mut from, mut to) = (from.iter().peekable(), to.iter().peekable());
    loop {
        let order = match (from.peek(), to.peek()) {
            (None, None) => return out,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => place_of(a).cmp(&place_of(b)),
        };
        let before = if order.is_le() { from.next() } else { None };
        let after = if order.is_ge() { to.next() } else { None };
        let (Some(any), kind) = (match (before, after) {
            (Some(_), Some(after)) => (Some(after), Kind::Changed),
            (Some(before), None) => (Some(before), Kind::Removed),
            (None, after) => (after, Kind::Added),
        }) else {
            return out;
        };
        let fields =
            fields(&before.map_or_else(|| none.clone(), rule), &after.map_or_else(|| none.clone(), rule));
        if !fields.is_empty() {
            out.push(Change { path: any.address(), change: kind, class: any.rule.class, fields });
        }
    }
}

fn fields(from: &Fields, to: &Fields) -> Vec<Field> {
    let names: std::collections::BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let of = |name: &String| Field {
        name: name.clone(),
        from: from.get(name).cloned(),
        to: to.get(name).cloned(),
    };
    names.into_iter().map(of).filter(|field| field.from != field.to).collect()
}

fn terms(baseline: &Baseline) -> Fields {
    let mut out = Fields::from([
        ("name".to_owned(), baseline.name.clone()),
        ("transition".to_owned(), format!("{} s", baseline.transition.as_secs())),
    ]);
    let mut put = |name: String, value: Option<String>| out.extend(value.map(|value| (name, value)));
    put("scope.cluster".into(), baseline.scope.cluster.clone());
    if let Some(nodes) = &baseline.scope.nodes {
        let names: Vec<&str> = nodes.names.iter().map(String::as_str).collect();
        put("scope.nodes.names".into(), (!names.is_empty()).then(|| names.join(", ")));
        for (key, value) in &nodes.labels {
            put(format!("scope.nodes.labels.{key}"), Some(value.clone()));
        }
    }
    put("validity.notBefore".into(), baseline.validity.not_before.map(|at| at.to_string()));
    put("validity.notAfter".into(), baseline.validity.not_after.map(|at| at.to_string()));
    for writer in &*baseline.writers {
        let (name, exe, sha256, place) = match writer {
            Writer::Kubelet => continue,
            Writer::Executable { name, exe, sha256 } => (name, exe, sha256, String::new()),
            Writer::InPod(of) => {
                let namespace = of.namespace.iter().map(|namespace| format!(" of namespace {namespace}"));
                let place = format!(" in {}{}", of.containers.join(", "), namespace.collect::<String>());
                (&of.name, &of.exe, &of.sha256, place)
            }
        };
        put(format!("writers.{name}"), Some(format!("{exe} sha256:{}{place}", hex::encode(sha256))));
    }
    for unresolved in &baseline.unresolved {
        out.insert(format!("not sealed: {}", unresolved.place), unresolved.reason.clone());
    }
    out
}

/// All that an object says but its path and id.
fn rule(object: &SealedObject) -> Fields {
    let mut out = Fields::new();
    put(&mut out, "", "class", object.rule.class.as_str());
    put(&mut out, "", "type", object.seal.kind().as_str());
    if object.rule.publish == super::Publish::Redeploy {
        put(&mut out, "", "publish", "redeploy");
    }
    if !object.rule.writers.is_empty() {
        put(&mut out, "", "writers", &object.rule.writers.join(", "));
    }
    for mount in &object.rule.mounts {
        put(&mut out, "", &format!("mount.{}:{}", mount.container, mount.path), "seen");
    }
    attributes(&mut out, "", &object.rule.attributes);
    match &object.seal {
        Seal::File(content) => file(&mut out, "", content),
        Seal::Symlink { target } => put(&mut out, "", "target", &text(target)),
        Seal::Directory { names: None } => put(&mut out, "", "names", "open"),
        Seal::Directory { names: Some(names) } => {
            for (name, kind) in names.iter() {
                put(&mut out, "", &format!("name.{}", text(name)), kind.as_str());
            }
        }
        Seal::Volume { entries } => {
            for entry in entries {
                let of = format!("{}: ", text(&entry.path));
                put(&mut out, &of, "class", entry.class.as_str());
                if let Some(source) = &entry.source {
                    put(&mut out, &of, "source", source);
                }
                attributes(&mut out, &of, &entry.attributes);
                match &entry.file {
                    Some(content) => file(&mut out, &of, content),
                    None => put(&mut out, &of, "type", "directory"),
                }
            }
        }
    }
    out
}

fn put(out: &mut Fields, of: &str, name: &str, value: &str) {
    out.insert(format!("{of}{name}"), value.to_owned());
}

fn attributes(out: &mut Fields, of: &str, attributes: &Attributes) {
    for (name, value) in attributes.state() {
        put(out, of, &name, &value);
    }
}

fn file(out: &mut Fields, of: &str, content: &Content) {
    if let Some(size) = content.size() {
        put(out, of, "size", &size.to_string());
    }
    match (content, content.state()) {
        (_, Some((name, value))) => put(out, of, name, &value),
        // An HMAC tells nothing without the key, so it can be told.
        (Content::Hmac(sealed), None) => put(out, of, "hmac", &hex::encode(sealed.digest)),
        _ => {}
    }
}

fn text(bytes: &[u8]) -> String {
    HostPath::new(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::statement::parse;

    fn baseline(edit: impl FnOnce(&mut serde_json::Value)) -> Baseline {
        let mut predicate = serde_json::json!({
            "name": "b", "revision": 1, "transition": 60,
            "objects": [
                { "class": "sealed", "gid": 0, "mode": "0644", "path": "/a", "sha256": "0".repeat(64), "size": 1,
                  "type": "file", "uid": 0 },
                { "class": "sealed", "gid": 0, "mode": "0755", "names": { "x": "file" }, "path": "/d",
                  "type": "directory", "uid": 0 },
            ],
        });
        edit(&mut predicate);
        let predicate = serde_json::from_value(predicate).unwrap();
        let statement = crate::baseline::Statement::of(predicate).unwrap();
        parse(&statement.to_json().unwrap()).unwrap()
    }

    #[test]
    fn only_what_changed_is_told_field_by_field() {
        let from = baseline(|_| {});
        assert!(Review::between(&from, &from).is_empty());
        let to = baseline(|predicate| {
            predicate["revision"] = 2.into();
            predicate["transition"] = 90.into();
            predicate["objects"][0]["mode"] = "0600".into();
            predicate["objects"][0]["path"] = "/b".into();
            predicate["objects"][1]["names"] = serde_json::json!({ "y": "symlink" });
        });
        let review = Review::between(&from, &to);
        let field = |name: &str, from: Option<&str>, to: Option<&str>| Field {
            name: name.into(),
            from: from.map(Into::into),
            to: to.map(Into::into),
        };
        assert_eq!(review.terms, [field("transition", Some("60 s"), Some("90 s"))]);
        let told: Vec<_> = review.objects.iter().map(|c| (c.path.clone(), c.change)).collect();
        let expected = [("/a", Kind::Removed), ("/b", Kind::Added), ("/d", Kind::Changed)];
        assert_eq!(told, expected.map(|(path, kind)| (path.to_owned(), kind)));
        assert_eq!(
            review.objects[2].fields,
            [field("name.x", Some("file"), None), field("name.y", None, Some("symlink"))]
        );
        assert_eq!((review.count(Kind::Added), review.count(Kind::Changed)), (1, 1));
    }
}
