//! What is read of a pod: a few of its fields. Everything else is passed over while parsing, and never kept.

use serde::Deserialize;

use crate::model::Owner;

/// Longest text that is kept of any field; what is longer is none of the API's own making.
const TEXT_MAX: usize = 1024;
/// Most containers, volumes, sources of a volume and items of a source that are kept of a pod.
const LIST_MAX: usize = 256;

/// What the API tells of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Uid, in the API.
    pub uid: String,
    /// Uid on the node, where it is another one: that of a static pod, of which the API has a mirror.
    pub static_uid: Option<String>,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: Option<String>,
    /// What controls it: as far up as is known.
    pub owner: Option<Owner>,
    /// Uid of its own controller, to prove the next one up.
    pub(super) controller_uid: Option<String>,
    /// Containers, init containers and ephemeral ones.
    pub containers: Vec<ContainerFacts>,
    /// Volumes.
    pub volumes: Vec<VolumeFacts>,
}

/// A container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Name.
    pub name: String,
    /// Its id at the runtime, once it has one.
    pub id: Option<String>,
    /// The image as the pod names it.
    pub image: Option<String>,
    /// The image as the kubelet reports it: `<repository>@sha256:...`, or the digest alone.
    pub image_digest: Option<String>,
    /// Names of the volumes it mounts.
    pub mounts: Vec<String>,
}

/// A volume of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeFacts {
    /// Name.
    pub name: String,
    /// Where its content comes from: one, or each of a projected volume.
    pub sources: Vec<VolumeSource>,
    /// It is a projected one.
    pub projected: bool,
}

/// What a volume's content comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeSource {
    /// `ConfigMap`, `Secret`, `DownwardAPI`, `ServiceAccountToken`, ...
    pub kind: &'static str,
    /// Name of the API object, where it is one.
    pub name: Option<String>,
    /// Which files it makes, where the pod says so; `None`: one for each of its keys.
    pub items: Option<Vec<Item>>,
}

/// Path of a file in a volume.
pub type Item = String;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pod {
    metadata: Meta,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(default)]
    status: Option<PodStatus>,
}

/// What is read of the metadata of anything.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) labels: Option<std::collections::BTreeMap<String, String>>,
    annotations: Option<Annotations>,
    pub(super) owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.hash")]
    config_hash: Option<String>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    config_mirror: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct OwnerReference {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    #[serde(default)]
    controller: Option<bool>,
}

/// An object of which only the metadata is asked for.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Partial {
    pub(super) metadata: Meta,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<String>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    volume_mounts: Option<Vec<Mount>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Mount {
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID", default)]
    container_id: Option<String>,
    #[serde(rename = "imageID", default)]
    image_id: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    name: String,
    config_map: Option<Named>,
    secret: Option<Named>,
    projected: Option<Projected>,
    #[serde(rename = "downwardAPI")]
    downward_api: Option<Named>,
    empty_dir: Option<Nothing>,
    host_path: Option<Nothing>,
    csi: Option<Nothing>,
    persistent_volume_claim: Option<Claim>,
}

/// A source of which only its presence counts.
#[derive(Debug, Clone, Default, Deserialize)]
struct Nothing {}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    claim_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    name: Option<String>,
    secret_name: Option<String>,
    items: Option<Vec<KeyPath>>,
    path: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct KeyPath {
    path: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: Option<Vec<Projection>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Projection {
    config_map: Option<Named>,
    secret: Option<Named>,
    #[serde(rename = "downwardAPI")]
    downward_api: Option<Named>,
    service_account_token: Option<Named>,
    cluster_trust_bundle: Option<Named>,
}

impl Pod {
    /// Its version, to resume from.
    pub(super) fn version(&self) -> Option<String> {
        kept(self.metadata.resource_version.clone())
    }
}

impl OwnerReference {
    pub(super) fn owner(&self) -> Option<Owner> {
        Some(Owner { kind: kept(Some(self.kind.clone()))?, name: kept(Some(self.name.clone()))? })
    }
}

fn kept(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && text.len() <= TEXT_MAX)
}

fn list<T>(list: Option<Vec<T>>) -> impl Iterator<Item = T> {
    list.unwrap_or_default().into_iter().take(LIST_MAX)
}

impl Meta {
    pub(super) fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
    }
}

impl PodFacts {
    /// `None` if it does not say which pod it is.
    pub(super) fn of(pod: Pod) -> Option<Self> {
        let Pod { metadata, spec, status } = pod;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let controller = metadata.controller().cloned();
        let annotations = metadata.annotations.unwrap_or_default();
        // Anybody may write the annotation on a pod; only the kubelet's mirrors have it twice over, and no other uid is taken.
        let mirrored = kept(annotations.config_hash).filter(|hash| {
            annotations.config_mirror.as_ref() == Some(hash)
                && hash.len() == 32
                && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        let containers = list(spec.containers)
            .chain(list(spec.init_containers))
            .chain(list(spec.ephemeral_containers))
            .filter_map(|one| {
                Some(ContainerFacts {
                    name: kept(Some(one.name))?,
                    image: kept(one.image),
                    mounts: list(one.volume_mounts).filter_map(|mount| kept(Some(mount.name))).collect(),
                    ..ContainerFacts::default()
                })
            });
        let mut facts = Self {
            uid: kept(metadata.uid)?,
            static_uid: mirrored,
            namespace: kept(metadata.namespace)?,
            name: kept(metadata.name)?,
            service_account: kept(spec.service_account_name),
            owner: controller.as_ref().and_then(OwnerReference::owner),
            controller_uid: controller.and_then(|owner| kept(Some(owner.uid))),
            containers: containers.collect(),
            volumes: list(spec.volumes).filter_map(volume).collect(),
        };
        let statuses = list(status.container_statuses)
            .chain(list(status.init_container_statuses))
            .chain(list(status.ephemeral_container_statuses));
        for status in statuses {
            let container = facts.containers.iter_mut().find(|one| one.name == status.name);
            let Some(container) = container else { continue };
            // `containerd://<id>`
            let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id);
            container.id = kept(id.map(str::to_owned));
            container.image_digest = kept(status.image_id);
        }
        Some(facts)
    }

    /// The uid its directory on the node has.
    #[must_use]
    pub fn node_uid(&self) -> &str {
        self.static_uid.as_deref().unwrap_or(&self.uid)
    }

    /// The one container that mounts a volume; `None` if several do.
    #[must_use]
    pub fn only_container_with(&self, volume: &str) -> Option<&ContainerFacts> {
        let mut all = self.containers.iter().filter(|one| one.mounts.iter().any(|name| name == volume));
        all.next().filter(|_| all.next().is_none())
    }
}

fn volume(volume: Volume) -> Option<VolumeFacts> {
    let name = kept(Some(volume.name))?;
    let projected = volume.projected.is_some();
    let source = |kind, name| VolumeSource { kind, name, items: None };
    let one = [
        volume.config_map.map(|one| named("ConfigMap", one)),
        volume.secret.map(|one| named("Secret", one)),
        volume.downward_api.map(|one| named("DownwardAPI", one)),
        volume.empty_dir.map(|_| source("EmptyDir", None)),
        volume.host_path.map(|_| source("HostPath", None)),
        volume.csi.map(|_| source("CSI", None)),
        volume.persistent_volume_claim.map(|claim| source("PersistentVolumeClaim", kept(claim.claim_name))),
    ];
    let several = list(volume.projected.and_then(|projected| projected.sources)).flat_map(|one| {
        let token = one.service_account_token.map(|token| VolumeSource {
            kind: "ServiceAccountToken",
            name: None,
            items: Some(kept(token.path).into_iter().collect()),
        });
        [
            one.config_map.map(|one| named("ConfigMap", one)),
            one.secret.map(|one| named("Secret", one)),
            one.downward_api.map(|one| named("DownwardAPI", one)),
            one.cluster_trust_bundle.map(|one| VolumeSource {
                kind: "ClusterTrustBundle",
                name: kept(one.name),
                items: Some(kept(one.path).into_iter().collect()),
            }),
            token,
        ]
    });
    Some(VolumeFacts { sources: one.into_iter().chain(several).flatten().collect(), name, projected })
}

fn named(kind: &'static str, named: Named) -> VolumeSource {
    let items = named.items.map(|items| list(Some(items)).filter_map(|item| kept(item.path)).collect());
    VolumeSource { kind, name: kept(named.secret_name).or_else(|| kept(named.name)), items }
}
