//! Workloads to objects of a statement.
//!
//! A published volume is one object below the pod's directory (`/volumes/<plugin>/<volume>`); a part of it that a
//! container mounts by subPath is another one, since that mount stays on the inode it began with
//! (`/volume-subpaths/<volume>/<container>/<index of the mount>`).

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::api::{Container, PodSpec, VolumeMount};
use super::layout::{Layout, Owned, layout};
use super::payload::{Content, File, Gathered, Payload, clean, gather, gather_token_volume};
use super::store::{Manifests, Template};
use super::variables::{environment, expand};
use crate::baseline::Error;
use crate::baseline::object::{EntryKind, MountedAt, Publish, Writer};
use crate::baseline::seal::SealedBytes;
use crate::baseline::secret::SecretKey;
use crate::baseline::statement::{MAX_OBJECTS, Unresolved};
use crate::baseline::wire::{Unique, WireEntry, WireIdentity, WireObject, WireType, WireWorkload};
use crate::model::{Class, HostPath};
use crate::profile::Profiles;

/// Where the API server mounts the token it adds.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What it calls the volume: this, and five letters of its own.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// What cannot be read from manifests.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether a publish may reach a running pod.
    pub publish: Publish,
    /// The cluster's key for secrets; without it their content is not sealed, and listed.
    pub secret_key: Option<Arc<SecretKey>>,
    /// Issuer of service account tokens; any, if it is not known.
    pub token_issuer: Option<String>,
    /// What tells volumes and images of meshes from others.
    pub profiles: Arc<Profiles>,
}

/// What came of a set of manifests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealed {
    /// To go into a statement.
    pub objects: Vec<WireObject>,
    /// What could not be sealed.
    pub unresolved: Vec<Unresolved>,
    /// One line each, for the reviewer.
    pub notes: Vec<String>,
}

/// Seals the volumes of all workloads.
///
/// # Errors
/// An object in the manifests is not of the form the API asks for.
pub fn seal(manifests: &Manifests, options: &Options) -> Result<Sealed, Error> {
    let mut sealer = Sealer {
        manifests,
        options,
        objects: Vec::new(),
        count: 0,
        unresolved: manifests.unknown().iter().cloned().collect(),
        mutable: BTreeSet::new(),
        absent: BTreeMap::new(),
    };
    let (mut workloads, mut tokens) = (0, false);
    for template in manifests.templates() {
        workloads += 1;
        sealer.workload(template)?;
    }
    let mut notes = Vec::new();
    if workloads == 0 {
        notes.push("no workload in the manifests: nothing makes pods".to_owned());
    }
    if manifests.without_namespace() > 0 {
        notes.push(format!(
            "{} objects name no namespace: taken to be in the one given by --namespace",
            manifests.without_namespace()
        ));
    }
    for (object, places) in &sealer.absent {
        notes.push(format!(
            "{object} is optional and not in the manifests: sealed as absent in {}",
            places.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        ));
    }
    for object in &sealer.mutable {
        notes.push(format!("{object} belongs to a mesh and is not `immutable: true`"));
    }
    for object in &sealer.objects {
        let files = object.files.iter().flat_map(|files| files.0.values());
        tokens |= files
            .filter_map(|file| file.identity.as_ref())
            .any(|identity| matches!(identity, WireIdentity::Token { iss, .. } if iss.is_empty()));
    }
    if tokens {
        notes.push("tokens of any issuer are taken: --token-issuer URL fixes it".to_owned());
    }
    Ok(Sealed { objects: sealer.objects, unresolved: sealer.unresolved.into_iter().collect(), notes })
}

struct Sealer<'s> {
    manifests: &'s Manifests,
    options: &'s Options,
    objects: Vec<WireObject>,
    /// Objects, and files in them, up to now.
    count: usize,
    unresolved: BTreeSet<Unresolved>,
    /// Objects of a mesh that may change.
    mutable: BTreeSet<String>,
    /// Optional objects that are not there → volumes.
    absent: BTreeMap<String, BTreeSet<String>>,
}

/// What the volumes of one pod have in common.
struct Pod<'t> {
    template: &'t Template,
    workload: WireWorkload,
    fs_group: Option<u32>,
}

impl Sealer<'_> {
    fn workload(&mut self, template: &Template) -> Result<(), Error> {
        let spec = &template.pod.spec;
        let whole = if spec.host_users == Some(false) {
            Some("hostUsers: false: owners of its files are mapped on the node")
        } else if spec.os.name == "windows" {
            Some("its pods run on Windows")
        } else {
            None
        };
        if let Some(reason) = whole {
            self.list(template.workload.to_string(), reason.to_owned());
            return Ok(());
        }
        let fs_group = match spec.security_context.fs_group.map(u32::try_from) {
            None => None,
            Some(Ok(gid)) => Some(gid),
            Some(Err(_)) => {
                self.list(template.workload.to_string(), "an fsGroup that is no group".to_owned());
                return Ok(());
            }
        };
        let workload = WireWorkload {
            kind: template.workload.kind,
            name: template.workload.name.clone(),
            namespace: template.workload.namespace.clone(),
            service_account: template.workload.service_account.clone(),
        };
        let pod = Pod { template, workload, fs_group };
        let mut names = BTreeSet::new();
        for volume in &spec.volumes {
            let place = format!("{}: volume {}", template.workload, volume.name);
            if !is_label(&volume.name) || !names.insert(&volume.name) {
                self.list(place, "a name the API server refuses, or twice".to_owned());
                continue;
            }
            match gather(self.manifests, template, volume)? {
                _ if !(is_used(spec, &volume.name)
                    || is_tokens(&volume.name) && self.mounts_token(template)) =>
                {
                    self.list(place, "no container mounts it: the kubelet does not set it up".to_owned());
                }
                Gathered::Unknown(reason) => self.list(place, reason),
                Gathered::Published(payload) => self.volume(&pod, &volume.name, &payload, &place)?,
            }
        }
        if self.gets_token(template) {
            let place = format!("{}: volume {TOKEN_VOLUME}*", template.workload);
            match gather_token_volume(self.manifests, template)? {
                Gathered::Unknown(reason) => self.list(place, reason),
                Gathered::Published(payload) => {
                    self.volume(&pod, &format!("{TOKEN_VOLUME}*"), &payload, &place)?;
                }
            }
        }
        Ok(())
    }

    fn list(&mut self, place: String, reason: String) {
        self.unresolved.insert(Unresolved { place, reason });
    }

    /// Whether the API server adds the volume of the service account's token.
    fn gets_token(&self, template: &Template) -> bool {
        let mut volumes = template.pod.spec.volumes.iter();
        self.mounts_token(template) && !volumes.any(|volume| is_tokens(&volume.name))
    }

    /// Whether the API server has containers mount the token that have nothing else there: its own volume, or the one of the pod that is called
    /// like it.
    fn mounts_token(&self, template: &Template) -> bool {
        let spec = &template.pod.spec;
        let workload = &template.workload;
        let account = self.manifests.account(&workload.namespace, &workload.service_account);
        let wanted = spec
            .automount_service_account_token
            .or_else(|| account.and_then(|account| account.automount_service_account_token))
            .unwrap_or(true);
        let needed = containers(spec)
            .any(|container| container.volume_mounts.iter().all(|mount| mount.mount_path != TOKEN_PATH));
        wanted && needed
    }

    /// Counts what is to be sealed: few lines of a manifest can mean any number of files.
    fn more(&mut self, count: usize, place: &str) -> Result<(), Error> {
        self.count = self.count.saturating_add(count);
        if self.count > MAX_OBJECTS {
            return Err(Error::new(
                "bad manifest",
                place,
                format!("at most {MAX_OBJECTS} files in all volumes"),
            ));
        }
        Ok(())
    }

    fn volume(&mut self, pod: &Pod<'_>, name: &str, payload: &Payload, place: &str) -> Result<(), Error> {
        for object in &payload.absent {
            self.absent.entry(object.clone()).or_default().insert(place.to_owned());
        }
        if is_of_mesh(&self.options.profiles, &pod.template.pod.spec, name) {
            self.mutable.extend(payload.mutable.iter().cloned());
        }
        let laid = layout(payload, pod.fs_group);
        self.more(laid.entries.len(), place)?;
        let mut files = BTreeMap::new();
        for (path, (owned, file)) in &laid.entries {
            let entry = self.entry(pod, *owned, *file, &format!("{place}: {path}"));
            files.insert(HostPath::new(path.as_bytes()).to_string(), entry);
        }
        let path = format!("/volumes/{}/{name}", payload.plugin.directory());
        let mut object = object(&pod.workload, &path, WireType::Volume, laid.root, self.options.publish);
        object.files = Some(Unique(files));
        let everywhere = is_tokens(name) && self.mounts_token(pod.template);
        object.mounts = mounts(&pod.template.pod.spec, name, everywhere);
        self.objects.push(object);
        self.sub_paths(pod, name, payload, &laid, place)
    }

    fn entry(&mut self, pod: &Pod<'_>, owned: Owned, file: Option<&File>, place: &str) -> WireEntry {
        let mut entry = WireEntry {
            class: Class::Sealed,
            gid: owned.gid,
            hmac: None,
            identity: None,
            meaning: None,
            mode: format!("{:04o}", owned.mode),
            public_key: None,
            sha256: None,
            size: None,
            source: file.map(|file| file.source.clone()),
            kind: if file.is_some() { WireType::File } else { WireType::Directory },
            uid: owned.uid,
            xattrs: Unique::default(),
        };
        let Some(file) = file else { return entry };
        match self.content(pod, file) {
            Ok(Ok(bytes)) => {
                entry.hmac = bytes.hmac;
                entry.public_key = bytes.public_key;
                entry.sha256 = bytes.sha256;
                entry.size = Some(bytes.size);
            }
            Ok(Err(identity)) => {
                entry.class = Class::Rotated;
                entry.identity = Some(identity);
            }
            Err(reason) => {
                entry.class = Class::Opaque;
                self.list(place.to_owned(), reason);
            }
        }
        entry
    }

    /// What a file's content is sealed by: digests, or an identity; or why not at all.
    fn content(&self, pod: &Pod<'_>, file: &File) -> Result<Result<SealedBytes, WireIdentity>, String> {
        match &file.content {
            Content::Bytes(bytes) => bytes
                .sealed(self.options.secret_key.as_deref())
                .map(|sealed| Ok(sealed.clone()))
                .ok_or_else(|| "a secret: its content is sealed only with --secret-key".to_owned()),
            Content::Token { audience } => Ok(Err(WireIdentity::Token {
                aud: Some(audience.clone()).filter(|audience| !audience.is_empty()).into_iter().collect(),
                iss: self.options.token_issuer.clone().unwrap_or_default(),
                pod_bound: false,
                sub: format!(
                    "system:serviceaccount:{}:{}",
                    pod.workload.namespace, pod.workload.service_account
                ),
            })),
            Content::Unknown(reason) => Err(reason.clone()),
        }
    }

    /// The parts of a volume that containers mount on their own.
    fn sub_paths(
        &mut self,
        pod: &Pod<'_>,
        volume: &str,
        payload: &Payload,
        laid: &Layout<'_>,
        place: &str,
    ) -> Result<(), Error> {
        let mut parts = Vec::new();
        let mut names = BTreeSet::new();
        for container in containers(&pod.template.pod.spec) {
            let is_named = is_label(&container.name) && names.insert(&container.name);
            let known = LazyCell::new(|| environment(pod.template, container));
            for (mount, index) in container.volume_mounts.iter().zip(0_u32..) {
                if mount.name != volume || !is_sub_path(mount) {
                    continue;
                }
                let place = format!("{place}: subPath in container {}", container.name);
                let part = if mount.sub_path_expr.is_empty() {
                    Some(mount.sub_path.clone())
                } else {
                    expand(&mount.sub_path_expr, &known)
                };
                let Some(part) = part else {
                    self.list(place, format!("{}: a variable is not known", mount.sub_path_expr));
                    continue;
                };
                let Some(part) = clean(&part) else {
                    self.list(place, format!("the path `{part}`, which the API server refuses"));
                    continue;
                };
                if !is_named {
                    self.list(place, "a container's name the API server refuses, or twice".to_owned());
                    continue;
                }
                let at = format!("/volume-subpaths/{volume}/{}/{index}", container.name);
                let seen = MountedAt { container: container.name.clone(), path: mount.mount_path.clone() };
                if !laid.entries.contains_key(&part) {
                    self.list(place, format!("nothing in the volume is called {part}"));
                    continue;
                }
                // Counted before any of them is made.
                let below = format!("{part}/");
                let inside = within(&laid.entries, &below).count();
                self.more(inside + 1, &place)?;
                parts.push((part, at, seen, place));
            }
        }
        for (part, at, seen, place) in parts {
            self.part(pod, payload, laid, (&part, &at), &seen, &place);
        }
        Ok(())
    }

    /// A file of a volume, or a directory with all below, seen at a place of its own.
    fn part(
        &mut self,
        pod: &Pod<'_>,
        payload: &Payload,
        laid: &Layout<'_>,
        (part, at): (&str, &str),
        seen: &MountedAt,
        place: &str,
    ) {
        let Some((owned, file)) = laid.entries.get(part) else { return };
        let below = format!("{part}/");
        let children: Vec<_> = within(&laid.entries, &below).collect();
        let top = (*owned, *file);
        let parts = std::iter::once(("", &top)).chain(children);
        for (rest, (owned, file)) in parts {
            let path = if rest.is_empty() { at.to_owned() } else { format!("{at}/{rest}") };
            let kind = if file.is_some() { WireType::File } else { WireType::Directory };
            let mut object = object(&pod.workload, &path, kind, *owned, self.options.publish);
            if file.is_some() {
                let entry = self.entry(pod, *owned, *file, place);
                object.class = entry.class;
                object.hmac = entry.hmac;
                object.identity = entry.identity;
                object.public_key = entry.public_key;
                object.sha256 = entry.sha256;
                object.size = entry.size;
            } else {
                object.names = Some(Unique(names_in(payload, part, rest)));
            }
            let path = if rest.is_empty() { seen.path.clone() } else { format!("{}/{rest}", seen.path) };
            object.mounts = vec![MountedAt { container: seen.container.clone(), path }];
            self.objects.push(object);
        }
    }
}

fn object(workload: &WireWorkload, path: &str, kind: WireType, owned: Owned, publish: Publish) -> WireObject {
    WireObject {
        class: Class::Sealed,
        files: None,
        gid: owned.gid,
        hmac: None,
        identity: None,
        meaning: None,
        image: None,
        mode: format!("{:04o}", owned.mode),
        mounts: Vec::new(),
        names: None,
        path: HostPath::from(path),
        public_key: None,
        publish,
        sha256: None,
        size: None,
        target: None,
        kind,
        uid: owned.uid,
        workload: Some(workload.clone()),
        writers: vec![Writer::KUBELET.into()],
        xattrs: Unique::default(),
    }
}

/// The names right below a directory of a volume.
fn names_in(payload: &Payload, part: &str, rest: &str) -> BTreeMap<String, EntryKind> {
    let dir = if rest.is_empty() { format!("{part}/") } else { format!("{part}/{rest}/") };
    within(&payload.files, &dir)
        .map(|(path, _)| match path.split_once('/') {
            Some((name, _)) => (HostPath::from(name).to_string(), EntryKind::Directory),
            None => (HostPath::from(path).to_string(), EntryKind::File),
        })
        .collect()
}

/// What a map by path has below a directory, which ends in `/`, by the path from there.
fn within<'m, T>(all: &'m BTreeMap<String, T>, dir: &'m str) -> impl Iterator<Item = (&'m str, &'m T)> {
    all.range(dir.to_owned()..).map_while(move |(path, it)| Some((path.strip_prefix(dir)?, it)))
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().chain(&spec.containers)
}

/// Whether the kubelet sets a volume up at all (`desired_state_of_world_populator.go` passes over unused ones).
fn is_used(spec: &PodSpec, volume: &str) -> bool {
    containers(spec).any(|container| container.volume_mounts.iter().any(|mount| mount.name == volume))
}

fn is_sub_path(mount: &VolumeMount) -> bool {
    !mount.sub_path.is_empty() || !mount.sub_path_expr.is_empty()
}

/// Called as the API server calls the volume of a token.
fn is_tokens(volume: &str) -> bool {
    volume.starts_with(TOKEN_VOLUME)
}

/// Who sees a volume, and where; that of the token `everywhere` where nothing else is.
fn mounts(spec: &PodSpec, volume: &str, everywhere: bool) -> Vec<MountedAt> {
    let mut mounts = Vec::new();
    for container in containers(spec) {
        let at = |path: &str| MountedAt { container: container.name.clone(), path: path.to_owned() };
        let own = container.volume_mounts.iter().filter(|mount| mount.name == volume && !is_sub_path(mount));
        mounts.extend(own.map(|mount| at(&mount.mount_path)));
        if everywhere && container.volume_mounts.iter().all(|mount| mount.mount_path != TOKEN_PATH) {
            mounts.push(at(TOKEN_PATH));
        }
    }
    mounts
}

/// Whether a mesh's proxy or control plane lives on this volume: by its name, or by the image that mounts it.
fn is_of_mesh(profiles: &Profiles, spec: &PodSpec, volume: &str) -> bool {
    let of_mesh = |container: &&Container| profiles.is_image(&container.image);
    profiles.mesh_of_volume(volume).is_some()
        || containers(spec)
            .filter(|container| container.volume_mounts.iter().any(|mount| mount.name == volume))
            .any(|container| of_mesh(&container))
}

/// A DNS label, as volumes and containers are named by.
fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::document::Document;
    use super::{Manifests, Options, Sealed, seal};
    use crate::baseline::statement::{self, Baseline, Predicate, Statement};

    /// What is sealed of a pod with these containers, and a volume `v` with these items of a `ConfigMap` of that name; and
    /// the baseline that a node reads of it.
    fn sealed_and_read(containers: &Value, map: &str, items: &Value) -> (Sealed, Baseline) {
        let pod = json!({ "kind": "Pod", "metadata": { "name": "p" }, "spec": {
            "automountServiceAccountToken": false,
            "initContainers": [containers[0]],
            "containers": containers.as_array().unwrap()[1..],
            "volumes": [{ "name": "v", "configMap": { "name": map, "items": items } }],
        }});
        let data = json!({ "-first": "1", "$": "2", "..2": "3", "a": "4" });
        let map =
            json!({ "kind": "ConfigMap", "metadata": { "name": "m" }, "immutable": true, "data": data });
        let documents = [pod, map].map(|value| Document { place: "m.yaml#1".to_owned(), value });
        let manifests = Manifests::of(documents.into(), "ns").unwrap();
        let sealed = seal(&manifests, &Options::default()).unwrap();
        let predicate = json!({ "name": "n", "revision": 1, "objects": sealed.objects });
        let predicate: Predicate = serde_json::from_value(predicate).unwrap();
        let text = Statement::of(predicate).unwrap().to_json().unwrap();
        let read = statement::parse(&text).unwrap();
        (sealed, read)
    }

    #[test]
    fn what_is_sealed_is_read_whatever_its_files_are_called() {
        let whole =
            json!([{ "name": "i" }, { "name": "c", "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }]);
        // These sort before the volume's own directory, which is `.`.
        let items = json!([{ "key": "-first", "path": "-first" }, { "key": "$", "path": "$/$" }]);
        let (sealed, read) = sealed_and_read(&whole, "m", &items);
        assert_eq!(sealed.unresolved, []);
        let files: Vec<&String> = sealed.objects[0].files.as_ref().unwrap().0.keys().collect();
        assert_eq!(files, ["$", "$/$", "-first", "."]);
        assert_eq!(read.objects.len(), 1);
    }

    #[test]
    fn what_no_api_server_takes_is_listed() {
        let part = json!([{ "name": "v", "mountPath": "/v", "subPath": "a" }]);
        let twice = json!([{ "name": "c", "volumeMounts": part }, { "name": "c", "volumeMounts": part }]);
        let (sealed, read) = sealed_and_read(&twice, "m", &json!([{ "key": "a", "path": "a" }]));
        let told: Vec<String> = sealed.unresolved.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "ns/Pod/p: volume v: subPath in container c: a container's name the API server refuses, or twice"
            ]
        );
        let paths: Vec<String> = read.objects.iter().map(|object| object.path.to_string()).collect();
        assert_eq!(paths, ["/volume-subpaths/v/c/0", "/volumes/kubernetes.io~configmap/v"]);

        let whole =
            json!([{ "name": "i" }, { "name": "c", "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }]);
        let long = "n".repeat(1100);
        let (sealed, read) = sealed_and_read(&whole, &long, &json!([{ "key": "a", "path": "a" }]));
        let told: Vec<String> = sealed.unresolved.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["ns/Pod/p: volume v: the source of a, named as the API server refuses"]);
        assert!(read.objects.is_empty());

        let deep = vec!["d".repeat(250); 16].join("/");
        let (sealed, read) = sealed_and_read(&whole, "m", &json!([{ "key": "a", "path": deep }]));
        let told: Vec<String> = sealed.unresolved.iter().map(ToString::to_string).collect();
        assert_eq!(told, [format!("ns/Pod/p: volume v: the path `{deep}`, which the API server refuses")]);
        assert!(read.objects.is_empty());
    }

    #[test]
    fn few_lines_that_mean_any_number_of_files_are_refused() {
        let mounts: Vec<_> = (0..1_100)
            .map(|at| json!({ "name": "v", "mountPath": format!("/v{at}"), "subPath": "d" }))
            .collect();
        let items: Vec<_> = (0..1_000).map(|at| json!({ "key": "a", "path": format!("d/{at}") })).collect();
        let pod = json!({ "kind": "Pod", "metadata": { "name": "p" }, "spec": {
            "automountServiceAccountToken": false,
            "containers": [{ "name": "c", "volumeMounts": mounts }],
            "volumes": [{ "name": "v", "configMap": { "name": "m", "items": items } }],
        }});
        let map = json!({ "kind": "ConfigMap", "metadata": { "name": "m" }, "data": { "a": "1" } });
        let documents = [pod, map].map(|value| Document { place: "m.yaml#1".to_owned(), value });
        let manifests = Manifests::of(documents.into(), "ns").unwrap();
        let refused = seal(&manifests, &Options::default()).unwrap_err().to_string();
        assert_eq!(
            refused,
            "bad manifest: ns/Pod/p: volume v: subPath in container c: at most 1000000 files in all volumes"
        );
    }

    /// Objects as path and modes of their files; what is listed.
    fn sealed_of(text: &str) -> (Vec<String>, Vec<String>) {
        let mut documents = Vec::new();
        super::super::document::parse("m.yaml", text.as_bytes(), &mut documents).unwrap();
        let sealed = seal(&Manifests::of(documents, "ns").unwrap(), &Options::default()).unwrap();
        let objects = sealed.objects.iter().map(|object| {
            let files = object.files.iter().flat_map(|files| &files.0).filter(|(path, _)| *path != ".");
            let files: Vec<String> =
                files.map(|(path, file)| format!(" {path} {} {}", file.mode, file.uid)).collect();
            format!("{}:{}", object.path, files.concat())
        });
        (objects.collect(), sealed.unresolved.iter().map(ToString::to_string).collect())
    }

    const POD: &str = "{containers: [{name: c, volumeMounts: [{name: v, mountPath: /v}]}], automountServiceAccountToken: false, volumes: ";

    #[test]
    fn a_claim_of_a_stateful_set_stands_in_the_place_of_a_volume() {
        let text = format!(
            "kind: StatefulSet\nmetadata: {{name: s}}\nspec: {{volumeClaimTemplates: [{{metadata: {{name: v}}}}], \
             template: {{spec: {POD}[{{name: v, configMap: {{name: m, optional: true}}}}]}}}}}}\n"
        );
        let listed = "ns/StatefulSet/s: volume v: persistentVolumeClaim: filled by a storage driver";
        assert_eq!(sealed_of(&text), (vec![], vec![listed.to_owned()]));
    }

    #[test]
    fn a_trust_bundle_belongs_to_the_pods_user() {
        let text = format!(
            "kind: Pod\nmetadata: {{name: p}}\nspec: {POD}[{{name: v, projected: {{sources: [{{clusterTrustBundle: \
             {{path: ca}}}}]}}}}], securityContext: {{runAsUser: 1000, fsGroup: 7}}}}\n"
        );
        let (objects, _) = sealed_of(&text);
        assert_eq!(objects, ["/volumes/kubernetes.io~projected/v: ca 0640 1000"]);
    }

    #[test]
    fn what_others_fill_is_listed_and_kinds_of_other_groups_are_others() {
        let pod = format!(
            "kind: Pod\nmetadata: {{name: p}}\nspec: {POD}[{{name: v, secret: {{secretName: s}}}}]}}\n"
        );
        let of =
            |secret: &str| sealed_of(&format!("{pod}---\nkind: Secret\nmetadata: {{name: s}}\n{secret}\n"));
        let filled = "Secret s is a service account's: the token controller fills it";
        let listed = |why: &str| (vec![], vec![format!("ns/Pod/p: volume v: {why}")]);
        assert_eq!(of("type: kubernetes.io/service-account-token"), listed(filled));
        assert_eq!(of("apiVersion: secrets.example/v1"), listed("Secret s is not in the manifests"));
        let (objects, unresolved) = of("apiVersion: v1\ndata: {a: QR==, b: }");
        assert_eq!(objects, ["/volumes/kubernetes.io~secret/v: a 0644 0 b 0644 0"]);
        assert_eq!(unresolved.len(), 2, "without the cluster's key");
    }

    #[test]
    fn whatever_makes_pods_is_listed_if_it_is_not_understood() {
        let listed = |text: &str| sealed_of(text).1;
        let why = "makes pods, and its kind is not known: their volumes are not sealed";
        for (text, name) in [
            (
                "apiVersion: batch.volcano.sh/v1\nkind: Job\nmetadata: {name: j}\nspec: {tasks: [{template: {spec: {containers: [{name: c}]}}}]}",
                "Job/j",
            ),
            (
                "kind: PodTemplate\nmetadata: {name: t}\ntemplate: {spec: {containers: [{name: c}]}}",
                "PodTemplate/t",
            ),
        ] {
            assert_eq!(listed(text), [format!("{name} (m.yaml#1): {why}")]);
        }
        let job =
            "kind: Job\nmetadata: {generateName: j-}\nspec: {template: {spec: {containers: [{name: c}]}}}";
        assert_eq!(
            listed(job),
            ["Job/j-* (m.yaml#1): the API server makes up its name: what it has is not sealed"]
        );
        // A schema that speaks of containers makes none.
        assert_eq!(
            listed("kind: CustomResourceDefinition\nmetadata: {name: x}\nspec: {containers: {type: array}}"),
            [""; 0]
        );
    }

    #[test]
    fn a_token_volume_of_ones_own_is_mounted_by_all() {
        let text = "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c}], volumes: [{name: kube-api-access-x, \
                    projected: {sources: [{serviceAccountToken: {path: token}}]}}]}\n";
        let (objects, unresolved) = sealed_of(text);
        assert_eq!(objects, ["/volumes/kubernetes.io~projected/kube-api-access-x: token 0644 0"]);
        assert_eq!(unresolved, [""; 0]);
    }

    #[test]
    fn what_no_node_looks_into_is_listed() {
        let deep = vec!["d"; 17].join("/");
        let whole =
            json!([{ "name": "i" }, { "name": "c", "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }]);
        let (sealed, _) = sealed_and_read(&whole, "m", &json!([{ "key": "a", "path": deep }]));
        let told: Vec<String> = sealed.unresolved.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [format!("ns/Pod/p: volume v: {deep} lies deeper than 16 directories, which no node looks into")]
        );
    }

    #[test]
    fn the_same_object_is_the_same_with_its_namespace_written_out() {
        let map = "kind: ConfigMap\nmetadata: {name: m";
        let (objects, unresolved) = sealed_of(&format!("{map}}}\n---\n{map}, namespace: ns}}\n"));
        assert_eq!((objects, unresolved), (vec![], vec![]));
    }
}
