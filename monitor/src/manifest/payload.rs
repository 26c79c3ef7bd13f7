//! Which files a volume holds, as the kubelet's volume plugins collect them.
//!
//! Plugins: `pkg/volume/configmap/configmap.go` and `secret/secret.go` (`MakePayload`), `projected/projected.go`
//! (`collectData`: a later source writes over an earlier one), `downwardapi/downwardapi.go` (`CollectData`).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::api::{
    BundleProjection, CertificateProjection, ConfigMap, ConfigMapSource, DownwardApiSource, KeyToPath,
    PodTemplate, Projected, ProjectedSource, Secret, SecretSource, TokenProjection, Volume,
};
use super::resources;
use super::store::{Manifests, Placed, Template, typed};
use crate::baseline::Error;
use crate::baseline::anchor::WorkloadKind;
use crate::baseline::observe::{MAX_VOLUME_DEPTH, MAX_VOLUME_ENTRIES};
use crate::baseline::seal::SealedBytes;
use crate::baseline::secret::SecretKey;
use crate::baseline::wire::{MAX_PATH, MAX_SOURCE};

/// Labels of a node that its pods get, too.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];
/// Secrets that the token controller fills (`SecretTypeServiceAccountToken`).
const ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
/// As Go decodes it: bits that are over at the end are passed over.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);
/// Mode of files, where a volume names none (`ConfigMapVolumeSourceDefaultMode` and its like).
const DEFAULT_MODE: i32 = 0o644;
/// Longest path in a volume, in bytes: what stands before it on a node leaves it no more of the kernel's `PATH_MAX`, and in a
/// statement it must fit behind `/volume-subpaths/<volume>/<container>/<index>/`.
const MAX_BELOW: usize = MAX_PATH - 256;
/// Mode of a token where its owner is not root (`projected.go`).
const OWNED_MODE: i32 = 0o600;

/// A volume that the kubelet publishes from objects of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Which of its plugins does.
    pub plugin: Plugin,
    /// Path in the volume → file.
    pub files: BTreeMap<String, File>,
    /// `ConfigMap`s and `Secret`s that may change: kind, namespace, name.
    pub mutable: Vec<String>,
    /// Optional objects that are not in the manifests: there must be nothing of them.
    pub absent: Vec<String>,
}

/// The volume plugins that publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// `kubernetes.io/configmap`, on the node's disk.
    ConfigMap,
    /// `kubernetes.io/secret`, in memory.
    Secret,
    /// `kubernetes.io/projected`, in memory.
    Projected,
    /// `kubernetes.io/downward-api`, in memory.
    DownwardApi,
}

impl Plugin {
    /// The name of its directory in a pod's `volumes`.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::ConfigMap => "kubernetes.io~configmap",
            Self::Secret => "kubernetes.io~secret",
            Self::Projected => "kubernetes.io~projected",
            Self::DownwardApi => "kubernetes.io~downward-api",
        }
    }

    /// Whether its volumes are a tmpfs.
    #[must_use]
    pub const fn in_memory(self) -> bool {
        !matches!(self, Self::ConfigMap)
    }
}

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Mode before fsGroup.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// What it comes from.
    pub source: String,
    /// What is in it.
    pub content: Content,
}

/// The bytes of a key: the same ones for all files that are made of it, and hashed once.
#[derive(Debug)]
pub struct Bytes {
    bytes: Vec<u8>,
    /// They come from a `Secret`.
    secret: bool,
    sealed: OnceLock<Option<SealedBytes>>,
}

impl Bytes {
    fn new(bytes: Vec<u8>, secret: bool) -> Arc<Self> {
        Arc::new(Self { bytes, secret, sealed: OnceLock::new() })
    }

    /// What they are sealed by, always under the same key; `None` for a secret without one.
    #[must_use]
    pub fn sealed(&self, key: Option<&SecretKey>) -> Option<&SealedBytes> {
        self.sealed.get_or_init(|| SealedBytes::of(&self.bytes, self.secret, key)).as_ref()
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.secret == other.secret && self.bytes == other.bytes
    }
}

impl Eq for Bytes {}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Arc<Bytes>),
    /// A token for this audience; the API server's own, if empty.
    Token {
        /// Audience.
        audience: String,
    },
    /// It cannot be said, and why.
    Unknown(String),
}

/// What became of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gathered {
    /// The kubelet publishes it.
    Published(Payload),
    /// It is not published, or it cannot be said what is in it; and why.
    Unknown(String),
}

/// Works out the files of one volume.
///
/// # Errors
/// A source is not of the form the API asks for.
pub fn gather(manifests: &Manifests, template: &Template, volume: &Volume) -> Result<Gathered, Error> {
    let place = format!("{}: volume {}", template.place, volume.name);
    let mut sources = volume.sources.iter().filter(|(_, source)| !source.is_null());
    let (Some((kind, source)), None) = (sources.next(), sources.next()) else {
        // Without any source it is an emptyDir, as the API server's defaults have it.
        return Ok(Gathered::Unknown(if volume.sources.values().all(Value::is_null) {
            not_published("emptyDir")
        } else {
            "more than one source, which the API server refuses".into()
        }));
    };
    let mut collector = Collector::new(manifests, template);
    let plugin = match kind.as_str() {
        "configMap" => {
            let source: ConfigMapSource = source_of(source, &place)?;
            collector.config_map(&source.name, &source.items, source.default_mode, source.optional)?;
            Plugin::ConfigMap
        }
        "secret" => {
            let source: SecretSource = source_of(source, &place)?;
            collector.secret(&source.secret_name, &source.items, source.default_mode, source.optional)?;
            Plugin::Secret
        }
        "downwardAPI" => {
            let source: DownwardApiSource = source_of(source, &place)?;
            collector.downward(&source, source.default_mode);
            Plugin::DownwardApi
        }
        "projected" => {
            let source: ProjectedSource = source_of(source, &place)?;
            for (projection, at) in source.sources.iter().zip(0_u32..) {
                collector.projection(projection, source.default_mode, &format!("{place}: sources[{at}]"))?;
            }
            Plugin::Projected
        }
        other => return Ok(Gathered::Unknown(not_published(other))),
    };
    Ok(collector.finish(plugin))
}

/// The volume that the API server adds to a pod whose service account's token is mounted: its volume source
/// (`plugin/pkg/admission/serviceaccount`, `TokenVolumeSource`).
///
/// # Errors
/// None of its own; the form is this function's.
pub fn gather_token_volume(manifests: &Manifests, template: &Template) -> Result<Gathered, Error> {
    let mut collector = Collector::new(manifests, template);
    collector.token(&TokenProjection { audience: String::new(), path: "token".into() }, None);
    let key = KeyToPath { key: "ca.crt".into(), path: "ca.crt".into(), mode: None };
    collector.config_map("kube-root-ca.crt", &[key], None, false)?;
    let namespace = super::api::DownwardApiFile {
        path: "namespace".into(),
        field_ref: Some(super::api::FieldRef { field_path: "metadata.namespace".into() }),
        ..Default::default()
    };
    collector.downward(&DownwardApiSource { items: vec![namespace], default_mode: None }, None);
    Ok(collector.finish(Plugin::Projected))
}

fn source_of<T: DeserializeOwned>(source: &Value, place: &str) -> Result<T, Error> {
    typed(source, place)
}

fn not_published(kind: &str) -> String {
    match kind {
        "emptyDir" => "emptyDir: filled by the pod itself".into(),
        "hostPath" => "hostPath: files of the node, sealed by --path".into(),
        "image" => "image: files of an image, sealed by --images".into(),
        "csi" | "persistentVolumeClaim" | "ephemeral" => format!("{kind}: filled by a storage driver"),
        other => format!("{other}: not published by the kubelet from API objects, or not known"),
    }
}

/// User that owns tokens: the one user all containers run as (`pkg/volume/util`, `FsUserFrom`).
#[must_use]
pub fn fs_user(pod: &PodTemplate) -> Option<u32> {
    let mut users =
        pod.spec.init_containers.iter().chain(&pod.spec.containers).map(|container| {
            container.security_context.run_as_user.or(pod.spec.security_context.run_as_user)
        });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

struct Collector<'m> {
    manifests: &'m Manifests,
    template: &'m Template,
    files: BTreeMap<String, File>,
    mutable: Vec<String>,
    absent: Vec<String>,
    /// Why nothing can be said of the volume as a whole.
    unknown: Option<String>,
}

/// One key as bytes.
type Keys = BTreeMap<String, Arc<Bytes>>;

impl<'m> Collector<'m> {
    const fn new(manifests: &'m Manifests, template: &'m Template) -> Self {
        Self {
            manifests,
            template,
            files: BTreeMap::new(),
            mutable: Vec::new(),
            absent: Vec::new(),
            unknown: None,
        }
    }

    fn finish(self, plugin: Plugin) -> Gathered {
        if let Some(reason) = self.unknown {
            return Gathered::Unknown(reason);
        }
        if self.files.len() > MAX_VOLUME_ENTRIES {
            return Gathered::Unknown(format!(
                "more than {MAX_VOLUME_ENTRIES} files, which no node looks at"
            ));
        }
        let mut paths = self.files.keys().peekable();
        while let Some(path) = paths.next() {
            let below = format!("{path}/");
            if paths.peek().is_some_and(|next| next.starts_with(&below))
                || self.files.range(below.clone()..).next().is_some_and(|(next, _)| next.starts_with(&below))
            {
                return Gathered::Unknown(format!("{path} would be a file and a directory"));
            }
        }
        Gathered::Published(Payload { plugin, files: self.files, mutable: self.mutable, absent: self.absent })
    }

    fn config_map(
        &mut self,
        name: &str,
        items: &[KeyToPath],
        mode: Option<i32>,
        optional: bool,
    ) -> Result<(), Error> {
        let namespace = &self.template.workload.namespace;
        let found = self.manifests.config_map(namespace, name);
        let keys = found.map(keys_of_config_map).transpose()?;
        let immutable = found.is_some_and(|found| found.object.immutable);
        self.keys("ConfigMap", name, keys.map(|keys| (keys, immutable)), items, mode, optional);
        Ok(())
    }

    fn secret(
        &mut self,
        name: &str,
        items: &[KeyToPath],
        mode: Option<i32>,
        optional: bool,
    ) -> Result<(), Error> {
        let namespace = &self.template.workload.namespace;
        let found = self.manifests.secret(namespace, name);
        if found.is_some_and(|found| found.object.kind == ACCOUNT_TOKEN) {
            let reason = format!("Secret {name} is a service account's: the token controller fills it");
            self.unknown_keys("Secret", name, items, mode, &reason);
            return Ok(());
        }
        let keys = found.map(keys_of_secret).transpose()?;
        let immutable = found.is_some_and(|found| found.object.immutable);
        self.keys("Secret", name, keys.map(|keys| (keys, immutable)), items, mode, optional);
        Ok(())
    }

    fn keys(
        &mut self,
        kind: &str,
        name: &str,
        found: Option<(Keys, bool)>,
        items: &[KeyToPath],
        mode: Option<i32>,
        optional: bool,
    ) {
        let namespace = &self.template.workload.namespace;
        let Some((keys, immutable)) = found else {
            if optional {
                self.absent.push(format!("{kind} {namespace}/{name}"));
                return;
            }
            let reason = format!("{kind} {name} is not in the manifests");
            return self.unknown_keys(kind, name, items, mode, &reason);
        };
        if !immutable {
            self.mutable.push(format!("{kind} {namespace}/{name}"));
        }
        let all: Vec<KeyToPath> =
            keys.keys().map(|key| KeyToPath { key: key.clone(), path: key.clone(), mode: None }).collect();
        let chosen = if items.is_empty() { all.as_slice() } else { items };
        for item in chosen {
            let Some(bytes) = keys.get(&item.key) else {
                if !optional {
                    self.give_up(format!("{kind} {name} has no key {}: the pod cannot start", item.key));
                }
                continue;
            };
            let content = Content::Bytes(Arc::clone(bytes));
            self.put(&item.path, item.mode.or(mode), format!("{kind}/{name}:{}", item.key), content);
        }
    }

    /// Which files there are is known where keys are named, and not what is in them.
    fn unknown_keys(&mut self, kind: &str, name: &str, items: &[KeyToPath], mode: Option<i32>, reason: &str) {
        if items.is_empty() {
            self.give_up(reason.to_owned());
        }
        for item in items {
            let source = format!("{kind}/{name}:{}", item.key);
            self.put(&item.path, item.mode.or(mode), source, Content::Unknown(reason.to_owned()));
        }
    }

    fn downward(&mut self, source: &DownwardApiSource, mode: Option<i32>) {
        for item in &source.items {
            let (source, content) = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), None) => {
                    let content = self.field(&field.field_path).map_or_else(Content::Unknown, |text| {
                        Content::Bytes(Bytes::new(text.into_bytes(), false))
                    });
                    (format!("DownwardAPI/{}", field.field_path), content)
                }
                (None, Some(resource)) => {
                    let told = resources::told(&self.template.pod.spec, resource);
                    let content = told.map_or_else(Content::Unknown, |text| {
                        Content::Bytes(Bytes::new(text.into_bytes(), false))
                    });
                    (format!("DownwardAPI/{}", resource.resource), content)
                }
                _ => {
                    self.give_up(format!("{} has not one of fieldRef and resourceFieldRef", item.path));
                    continue;
                }
            };
            self.put(&item.path, item.mode.or(mode), source, content);
        }
    }

    /// A field of the pod, if it can be known before there is a pod.
    fn field(&self, path: &str) -> Result<String, String> {
        let (workload, meta) = (&self.template.workload, &self.template.pod.metadata);
        if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            if TOPOLOGY.contains(&key) {
                return Err(format!("{path}: the API server writes it when it binds a pod to its node"));
            }
            let map = match map {
                "metadata.labels" => &meta.labels,
                "metadata.annotations" => &meta.annotations,
                _ => return Err(format!("{path} is not known before there is a pod")),
            };
            return map.get(key).cloned().ok_or_else(|| format!("{path} is not in the pod's template"));
        }
        match (path, workload.kind) {
            ("metadata.namespace", _) => Ok(workload.namespace.clone()),
            ("metadata.name", WorkloadKind::Pod) => Ok(workload.name.clone()),
            // `PodTopologyLabels`, an admission plugin since Kubernetes 1.34, copies the node's zone and region to each pod that is bound.
            ("metadata.labels", WorkloadKind::Pod) => {
                Err("labels: the API server adds zone and region".into())
            }
            ("metadata.labels", _) => Err("labels: the controller adds its own".into()),
            ("metadata.annotations", _) => Err("annotations: the kubelet adds its own".into()),
            _ => Err(format!("{path} is not known before there is a pod")),
        }
    }

    fn token(&mut self, token: &TokenProjection, mode: Option<i32>) {
        let (mode, user) = self.owned(mode);
        let content = Content::Token { audience: token.audience.clone() };
        self.put(&token.path, mode, "ServiceAccountToken".into(), content);
        self.owned_by(&token.path, user);
    }

    fn projection(
        &mut self,
        projection: &BTreeMap<String, Value>,
        mode: Option<i32>,
        place: &str,
    ) -> Result<(), Error> {
        for (kind, source) in projection.iter().filter(|(_, source)| !source.is_null()) {
            match kind.as_str() {
                "configMap" => {
                    let source: Projected = source_of(source, place)?;
                    self.config_map(&source.name, &source.items, mode, source.optional)?;
                }
                "secret" => {
                    let source: Projected = source_of(source, place)?;
                    self.secret(&source.name, &source.items, mode, source.optional)?;
                }
                "downwardAPI" => {
                    let source: DownwardApiSource = source_of(source, place)?;
                    self.downward(&source, mode);
                }
                "serviceAccountToken" => self.token(&source_of(source, place)?, mode),
                "clusterTrustBundle" => {
                    let source: BundleProjection = source_of(source, place)?;
                    let reason = "a trust bundle of the cluster, not in the manifests".to_owned();
                    let (mode, user) = self.owned(mode);
                    self.put(&source.path, mode, "ClusterTrustBundle".into(), Content::Unknown(reason));
                    self.owned_by(&source.path, user);
                }
                "podCertificate" => {
                    let source: CertificateProjection = source_of(source, place)?;
                    let (mode, user) = self.owned(mode);
                    let paths =
                        [source.credential_bundle_path, source.key_path, source.certificate_chain_path];
                    for path in paths.iter().filter(|path| !path.is_empty()) {
                        let reason = "a certificate the cluster issues to each pod".to_owned();
                        self.put(path, mode, "PodCertificate".into(), Content::Unknown(reason));
                        self.owned_by(path, user);
                    }
                }
                other => self.give_up(format!("a projected source `{other}`, which is not known")),
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &str, mode: Option<i32>, source: String, content: Content) {
        let mode = mode.unwrap_or(DEFAULT_MODE);
        let mode = u16::try_from(mode).ok().filter(|mode| *mode <= 0o777);
        match (clean(path), mode) {
            (Some(path), Some(_)) if path.split('/').count() > MAX_VOLUME_DEPTH => {
                self.give_up(format!(
                    "{path} lies deeper than {MAX_VOLUME_DEPTH} directories, which no node looks into"
                ));
            }
            (Some(path), Some(_)) if source.len() > MAX_SOURCE => {
                self.give_up(format!("the source of {path}, named as the API server refuses"));
            }
            (Some(path), Some(mode)) => {
                self.files.insert(path, File { mode, uid: 0, source, content });
            }
            (None, _) => self.give_up(format!("the path `{path}`, which the API server refuses")),
            (_, None) => self.give_up(format!("the mode of {path}, which the API server refuses")),
        }
    }

    /// Mode and owner of what the cluster gives each pod (`projected.go`): only the pod's own user reads it, where there is one.
    fn owned(&self, mode: Option<i32>) -> (Option<i32>, Option<u32>) {
        let user = fs_user(&self.template.pod);
        let owned = user.is_some() || self.template.pod.spec.security_context.fs_group.is_some();
        (if owned { Some(OWNED_MODE) } else { mode }, user)
    }

    fn owned_by(&mut self, path: &str, user: Option<u32>) {
        if let (Some(user), Some(file)) = (user, clean(path).and_then(|path| self.files.get_mut(&path))) {
            file.uid = user;
        }
    }

    fn give_up(&mut self, reason: String) {
        self.unknown.get_or_insert(reason);
    }
}

/// As `filepath.Clean` leaves it; `None` for what the API server refuses (absolute, upwards, or hidden by `..`).
pub(super) fn clean(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let fine = !path.starts_with('/')
        && !parts.is_empty()
        && !parts.first().is_some_and(|first| first.starts_with(".."))
        && parts.iter().all(|part| *part != ".." && part.len() <= 255 && !part.contains('\0'))
        && path.len() <= MAX_BELOW;
    fine.then(|| parts.join("/"))
}

fn keys_of_config_map(map: &Placed<ConfigMap>) -> Result<Keys, Error> {
    let Placed { object: map, place } = map;
    let name = format!("{place}: ConfigMap {}", map.metadata.name);
    let plain = |text: &String| Bytes::new(text.clone().into_bytes(), false);
    let mut keys: Keys = map.data.iter().map(|(key, text)| (key.clone(), plain(text))).collect();
    for (key, text) in map.binary_data.iter() {
        keys.insert(key.clone(), Bytes::new(decode(text, &name, key)?, false));
    }
    Ok(keys)
}

fn keys_of_secret(secret: &Placed<Secret>) -> Result<Keys, Error> {
    let Placed { object: secret, place } = secret;
    let name = format!("{place}: Secret {}", secret.metadata.name);
    let mut keys = Keys::new();
    for (key, text) in secret.data.iter() {
        keys.insert(key.clone(), Bytes::new(decode(text, &name, key)?, true));
    }
    let plain = |text: &String| Bytes::new(text.clone().into_bytes(), true);
    keys.extend(secret.string_data.iter().map(|(key, text)| (key.clone(), plain(text))));
    Ok(keys)
}

fn decode(text: &str, name: &str, key: &str) -> Result<Vec<u8>, Error> {
    // Go's decoder passes over line ends.
    let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    BASE64.decode(text).map_err(|_| Error::new("bad manifest", format!("{name}: {key}"), "base64"))
}
