//! All objects of a set of manifests, by kind, namespace and name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::api::{
    ConfigMap, CronJob, Meta, PodTemplate, Secret, ServiceAccount, Templated, TemplatedSpec, Volume,
};
use super::document::{self, Document};
use crate::baseline::Error;
use crate::baseline::anchor::{Workload, WorkloadKind};
use crate::baseline::statement::Unresolved;
use crate::baseline::wire::is_dns;

/// Deepest nesting of lists.
const LISTS_MAX: u32 = 8;
/// Most objects.
const OBJECTS_MAX: usize = 200_000;

/// A workload and the pods it makes.
#[derive(Debug, Clone)]
pub struct Template {
    /// Who it is.
    pub workload: Arc<Workload>,
    /// Its pods.
    pub pod: PodTemplate,
    /// The document it stands in.
    pub place: String,
}

/// An object, and the document it stands in.
#[derive(Debug, Clone)]
pub struct Placed<T> {
    /// The object.
    pub object: T,
    /// The document.
    pub place: String,
}

impl<T: DeserializeOwned> Placed<T> {
    fn read(value: &Value, place: &str) -> Result<Self, Error> {
        Ok(Self { object: typed(value, place)?, place: place.to_owned() })
    }
}

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Manifests {
    config_maps: BTreeMap<(String, String), Placed<ConfigMap>>,
    secrets: BTreeMap<(String, String), Placed<Secret>>,
    accounts: BTreeMap<(String, String), ServiceAccount>,
    templates: BTreeMap<Arc<Workload>, Template>,
    /// The whole object by kind, namespace and name: what comes twice must be the same.
    seen: BTreeMap<(String, String, String), (Value, String)>,
    /// Makers of pods of a kind that is not known.
    unknown: Vec<Unresolved>,
    /// Objects that name no namespace, and got the default.
    without_namespace: usize,
}

impl Manifests {
    /// Reads files and directories. Objects without a namespace are taken to be in `namespace`.
    ///
    /// # Errors
    /// A file cannot be read or is no manifest; an object comes twice and differs.
    pub fn read(paths: &[PathBuf], namespace: &str) -> Result<Self, Error> {
        Self::of(document::read(paths)?, namespace)
    }

    /// Takes documents.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of(documents: Vec<Document>, namespace: &str) -> Result<Self, Error> {
        let mut all = Self::default();
        for Document { place, value } in documents {
            all.take(value, None, &place, namespace, 0)?;
        }
        Ok(all)
    }

    /// The `ConfigMap` of that name.
    #[must_use]
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&Placed<ConfigMap>> {
        self.config_maps.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The `Secret` of that name.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Placed<Secret>> {
        self.secrets.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The `ServiceAccount` of that name.
    #[must_use]
    pub fn account(&self, namespace: &str, name: &str) -> Option<&ServiceAccount> {
        self.accounts.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// All that makes pods, sorted.
    pub fn templates(&self) -> impl Iterator<Item = &Template> {
        self.templates.values()
    }

    /// What may make pods, and is not understood.
    #[must_use]
    pub fn unknown(&self) -> &[Unresolved] {
        &self.unknown
    }

    /// How many objects named no namespace.
    #[must_use]
    pub const fn without_namespace(&self) -> usize {
        self.without_namespace
    }

    fn take(
        &mut self,
        value: Value,
        listed_as: Option<&str>,
        place: &str,
        namespace: &str,
        depth: u32,
    ) -> Result<(), Error> {
        let bad = |expected: &str| Error::new("bad manifest", place, expected);
        let Value::Object(mut object) = value else { return Err(bad("a Kubernetes object")) };
        let kind = match object.get("kind") {
            Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
            None | Some(Value::Null) => listed_as.ok_or_else(|| bad("an object with `kind`"))?.to_owned(),
            Some(_) => return Err(bad("a word as `kind`")),
        };
        if let Some(item) = kind.strip_suffix("List")
            && let Some(items) = object.get_mut("items")
            && (item.is_empty() || are_objects(items))
        {
            if depth >= LISTS_MAX {
                return Err(bad("lists in lists at most 8 deep"));
            }
            let items = match items.take() {
                Value::Array(items) => items,
                Value::Null => Vec::new(),
                _ => return Err(bad("a list as `items`")),
            };
            let listed_as = (!item.is_empty()).then_some(item);
            for (item, at) in items.into_iter().zip(0_u32..) {
                self.take(item, listed_as, &format!("{place}.items[{at}]"), namespace, depth + 1)?;
            }
            return Ok(());
        }
        self.object(&kind, Value::Object(object), place, namespace)
    }

    fn object(&mut self, kind: &str, value: Value, place: &str, namespace: &str) -> Result<(), Error> {
        // Others have kinds of these names, too.
        let group = value.get("apiVersion").and_then(Value::as_str).map(group_of);
        let is_in = |groups: &[&str]| group.is_none_or(|group| groups.contains(&group));
        let workload = WorkloadKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .filter(|known| is_in(groups_of(*known)));
        let core = matches!(kind, "ConfigMap" | "Secret" | "ServiceAccount") && is_in(&[""]);
        if workload.is_none() && !core {
            if let Some(reason) = makes_pods(&value) {
                let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?");
                self.unknown.push(Unresolved { place: format!("{kind}/{name} ({place})"), reason });
            }
            return Ok(());
        }
        #[derive(serde::Deserialize)]
        struct Named {
            #[serde(default)]
            metadata: Meta,
        }
        let Named { mut metadata } = typed(&value, place)?;
        if metadata.namespace.is_empty() {
            self.without_namespace += 1;
            namespace.clone_into(&mut metadata.namespace);
        }
        let mut value = value;
        // Written out or not, it is the same object.
        if let Some(Value::Object(written)) = value.get_mut("metadata") {
            written.insert("namespace".to_owned(), metadata.namespace.clone().into());
        }
        let Meta { name, generate_name, namespace, .. } = metadata;
        if name.is_empty() && !generate_name.is_empty() {
            let reason = "the API server makes up its name: what it has is not sealed".to_owned();
            self.unknown.push(Unresolved { place: format!("{kind}/{generate_name}* ({place})"), reason });
            return Ok(());
        }
        if !is_dns(&namespace) || !is_dns(&name) {
            let expected = format!("{kind} with a name in lower-case letters, digits, `-` and `.`");
            return Err(Error::new("bad manifest", place, expected));
        }
        let key = (kind.to_owned(), namespace.clone(), name.clone());
        if let Some((other, at)) = self.seen.get(&key) {
            if *other == value {
                return Ok(());
            }
            let expected = format!("{kind} {namespace}/{name} once; another one stands in {at}");
            return Err(Error::new("bad manifest", place, expected));
        }
        if self.seen.len() >= OBJECTS_MAX {
            return Err(Error::new("bad manifest", place, format!("at most {OBJECTS_MAX} objects in all")));
        }
        let at = (namespace, name);
        match (kind, workload) {
            ("ConfigMap", _) => {
                self.config_maps.insert(at, Placed::read(&value, place)?);
            }
            ("Secret", _) => {
                self.secrets.insert(at, Placed::read(&value, place)?);
            }
            ("ServiceAccount", _) => {
                self.accounts.insert(at, typed(&value, place)?);
            }
            (_, Some(kind)) => {
                let pod = match kind {
                    WorkloadKind::Pod => typed(&value, place)?,
                    WorkloadKind::CronJob => typed::<CronJob>(&value, place)?.spec.job_template.spec.template,
                    _ => with_claims(kind, typed::<Templated>(&value, place)?.spec),
                };
                self.template(kind, at, pod, place)?;
            }
            _ => {}
        }
        self.seen.insert(key, (value, place.to_owned()));
        Ok(())
    }

    fn template(
        &mut self,
        kind: WorkloadKind,
        (namespace, name): (String, String),
        pod: PodTemplate,
        place: &str,
    ) -> Result<(), Error> {
        let account = [&pod.spec.service_account_name, &pod.spec.service_account]
            .into_iter()
            .find(|name| !name.is_empty())
            .map_or("default", String::as_str);
        if !is_dns(account) {
            return Err(Error::new("bad manifest", place, "a service account with a name in lower case"));
        }
        let service_account = account.to_owned();
        let workload = Arc::new(Workload { namespace, kind, name, service_account });
        self.templates.insert(Arc::clone(&workload), Template { workload, pod, place: place.to_owned() });
        Ok(())
    }
}

/// The group of an `apiVersion`; the core's is empty.
fn group_of(version: &str) -> &str {
    version.split_once('/').map_or("", |(group, _)| group)
}

/// The groups that have this kind, old ones too.
const fn groups_of(kind: WorkloadKind) -> &'static [&'static str] {
    use WorkloadKind as K;
    match kind {
        K::Pod | K::ReplicationController => &[""],
        K::Job | K::CronJob => &["batch"],
        K::Deployment | K::ReplicaSet | K::DaemonSet | K::StatefulSet => &["apps", "extensions"],
    }
}

fn are_objects(items: &Value) -> bool {
    items.is_null() || items.as_array().is_some_and(|items| items.iter().all(Value::is_object))
}

/// The pods that a controller makes: of a `StatefulSet` each has its claims as volumes, in the place of what the template calls so
/// (`stateful_set_utils.go`, `updateStorage`).
fn with_claims(kind: WorkloadKind, spec: TemplatedSpec) -> PodTemplate {
    let TemplatedSpec { mut template, volume_claim_templates } = spec;
    if kind == WorkloadKind::StatefulSet {
        for claim in volume_claim_templates {
            let name = claim.metadata.name;
            template.spec.volumes.retain(|volume| volume.name != name);
            let source = ("persistentVolumeClaim".to_owned(), Value::Object(serde_json::Map::new()));
            template.spec.volumes.push(Volume { name, sources: BTreeMap::from([source]) });
        }
    }
    template
}

/// Why an object of a kind that is not known matters: somewhere in it are the containers of pods.
fn makes_pods(value: &Value) -> Option<String> {
    fn has_containers(value: &Value) -> bool {
        match value {
            Value::Object(map) => map.iter().any(|(key, value)| {
                let list =
                    value.as_array().filter(|_| matches!(key.as_str(), "containers" | "initContainers"));
                let is_container = |one: &Value| one.get("name").is_some() || one.get("image").is_some();
                list.is_some_and(|list| list.iter().any(is_container)) || has_containers(value)
            }),
            Value::Array(list) => list.iter().any(has_containers),
            _ => false,
        }
    }
    has_containers(value)
        .then(|| "makes pods, and its kind is not known: their volumes are not sealed".to_owned())
}

/// A value as the type it must be.
pub(super) fn typed<T: DeserializeOwned>(value: &Value, place: &str) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let path = if path == "." { String::new() } else { format!(": {path}") };
        Error::new("bad manifest", format!("{place}{path}"), e.into_inner())
    })
}
