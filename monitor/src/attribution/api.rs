//! What the Kubernetes API adds to what the node tells: owners, service accounts, images by digest, sources of volumes.
//!
//! It adds, and never takes away: what the disk says stays, and a pod of which the two contradict each other gets nothing
//! of the API at all.

use std::sync::Arc;

use super::pods::{VolumePath, published};
use crate::inventory::api::{ContainerFacts, Known, PodFacts, VolumeFacts, VolumeSource};
use crate::model::{Container, Pod, Source, Target};

/// What the disk says of a pod, where it says it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OnDisk<'a> {
    pub(super) names: Option<&'a (String, String)>,
    pub(super) service_account: Option<&'a str>,
}

/// What the API tells of the pod with this uid on the node, if the disk does not contradict it.
pub(super) fn believed(api: &Known, uid: &str, disk: OnDisk<'_>) -> Option<Arc<PodFacts>> {
    let facts = api.pod(uid)?;
    let names =
        disk.names.is_none_or(|(namespace, name)| (namespace, name) == (&facts.namespace, &facts.name));
    let account = match (disk.service_account, &facts.service_account) {
        (Some(disk), Some(told)) => disk == told,
        _ => true,
    };
    if names && account {
        return Some(facts);
    }
    api.contradicts(uid);
    None
}

/// Completes an actor's pod and container.
pub(super) fn actor(facts: &PodFacts, pod: &mut Pod, container: Option<&mut Container>) {
    pod.namespace.get_or_insert_with(|| facts.namespace.clone());
    pod.name.get_or_insert_with(|| facts.name.clone());
    if pod.service_account.is_none() {
        pod.service_account.clone_from(&facts.service_account);
    }
    if pod.owner.is_none() {
        pod.owner.clone_from(&facts.owner);
    }
    let Some(container) = container else { return };
    let Some(told) = facts.containers.iter().find(|one| one.id.as_ref() == Some(&container.id)) else {
        return;
    };
    container.name.get_or_insert_with(|| told.name.clone());
    if container.image.is_none() {
        container.image.clone_from(&told.image);
        container.image_digest.clone_from(&told.image_digest);
    }
}

/// Completes a target; `at` is its place, where that is a volume.
pub(super) fn target(facts: &PodFacts, target: &mut Target, at: Option<&VolumePath>) {
    target.namespace.get_or_insert_with(|| facts.namespace.clone());
    target.pod.get_or_insert_with(|| facts.name.clone());
    if target.service_account.is_none() {
        target.service_account.clone_from(&facts.service_account);
    }
    if target.owner.is_none() {
        target.owner.clone_from(&facts.owner);
    }
    if let Some(at) = at {
        if let Some(volume) = facts.volumes.iter().find(|volume| volume.name == at.volume) {
            source(volume, &facts.namespace, target, at);
        }
        // A volume that several containers mount is none's alone.
        if target.container.is_none()
            && let Some(only) = facts.only_container_with(&at.volume)
        {
            target.container = Some(only.name.clone());
        }
    }
    let container =
        target.container.as_ref().and_then(|name| facts.containers.iter().find(|one| one.name == *name));
    if let Some(container) = container {
        image(container, target);
    }
}

fn image(told: &ContainerFacts, target: &mut Target) {
    match (&target.image, &told.image) {
        (None, _) => target.image.clone_from(&told.image),
        // As the runtime has it: another reference, so the digest is of something else.
        (Some(disk), Some(told)) if !same_image(disk, told) => return,
        _ => {}
    }
    if target.image_digest.is_none() {
        target.image_digest.clone_from(&told.image_digest);
    }
}

fn same_image(disk: &str, told: &str) -> bool {
    use crate::inventory::containers::written_out;

    disk == told || written_out(disk) == written_out(told)
}

/// The API object a file of a volume comes from.
fn source(volume: &VolumeFacts, namespace: &str, target: &mut Target, at: &VolumePath) {
    let told = |one: &VolumeSource| Source {
        kind: one.kind.to_owned(),
        namespace: Some(namespace.to_owned()),
        name: one.name.clone(),
        ..Source::default()
    };
    let known = target.source.as_ref().map(|source| source.kind.as_str());
    if volume.projected {
        if known.is_some_and(|kind| kind != "Projected") {
            return;
        }
        let file = published(&at.rest);
        let of = |one: &&VolumeSource| {
            one.items.as_ref().is_some_and(|items| items.iter().any(|path| path.as_bytes() == file))
        };
        let mut named = volume.sources.iter().filter(of);
        let mut open = volume.sources.iter().filter(|one| one.items.is_none());
        let found = match (named.next(), named.next(), open.next(), open.next()) {
            (Some(one), None, ..) => Some(one),
            // All others say which files they make, and it is none of those.
            (None, None, Some(one), None) if !file.is_empty() => Some(one),
            _ => None,
        };
        target.source = Some(found.map_or_else(
            || Source {
                kind: "Projected".to_owned(),
                namespace: Some(namespace.to_owned()),
                projected: volume.sources.iter().map(word).collect(),
                ..Source::default()
            },
            told,
        ));
        return;
    }
    let Some(one) = volume.sources.first() else { return };
    // The directory's name says what the kubelet made of it; a claim is mounted by whatever plugin provides it.
    if one.kind == "PersistentVolumeClaim" || known.is_none_or(|kind| kind == one.kind) {
        target.source = Some(told(one));
    }
}

fn word(source: &VolumeSource) -> String {
    source.name.as_ref().map_or_else(|| source.kind.to_owned(), |name| format!("{}/{name}", source.kind))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::attribution::Attribution;
    use crate::inventory::api::{Known, telling};
    use crate::model::{Actor, Class, HostPath, Owner, Source, Target};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "0123abcd-4567-89ab-cdef-0123456789ab";

    fn pod() -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "web-7d-x", "uid": UID,
                "ownerReferences": [
                    {"kind": "Node", "name": "n", "uid": "n"},
                    {"kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}]},
            "spec": {
                "serviceAccountName": "web",
                "containers": [
                    {"name": "app", "image": "app:1", "volumeMounts": [{"name": "conf"}, {"name": "both"}]},
                    {"name": "proxy", "image": "proxy:1", "volumeMounts": [{"name": "both"}, {"name": "mixed"}]}],
                "volumes": [
                    {"name": "conf", "configMap": {"name": "web-config"}},
                    {"name": "both", "secret": {"secretName": "web-tls"}},
                    {"name": "claim", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "mixed", "projected": {"sources": [
                        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                        {"configMap": {"name": "roots", "items": [{"key": "ca.crt", "path": "ca/ca.crt"}]}},
                        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                        {"configMap": {"name": "open"}}]}},
                    {"name": "unclear", "projected": {"sources": [{"configMap": {"name": "a"}}, {"secret": {"name": "b"}}]}}]},
            "status": {"containerStatuses": [
                {"name": "app", "containerID": format!("containerd://{ID}"), "imageID": "r/app@sha256:aa"},
                {"name": "proxy", "containerID": "containerd://other", "imageID": "sha256:bb"}]},
        })
    }

    struct Node {
        root: tempfile::TempDir,
        api: Arc<Known>,
    }

    impl Node {
        fn new(pods: &[Value]) -> Self {
            Self { root: tempfile::tempdir().unwrap(), api: telling(pods) }
        }

        /// As the kubelet names a pod's directory of logs.
        fn logs(&self, name: &str) {
            std::fs::create_dir_all(self.root.path().join("var/log/pods").join(format!("{name}_{UID}")))
                .unwrap();
        }

        fn attribution(&self) -> Attribution {
            let profiles = Arc::clone(crate::profile::Profiles::built_in());
            let api = Arc::clone(&self.api);
            Attribution::new(self.root.path(), HostPath::from("/var/lib/kubelet"), profiles, api)
        }

        fn target(&self, below: &str) -> Target {
            let path = format!("/var/lib/kubelet/pods/{UID}/{below}");
            self.attribution().target_of(&HostPath::from(path.as_str())).unwrap()
        }

        /// Kind and name of the source, volume, and what the source may be of.
        fn source(&self, below: &str) -> (String, Option<String>, String, Vec<String>) {
            let target = self.target(below);
            let source = target.source.unwrap();
            assert_eq!(
                (source.namespace.as_deref(), source.uid, source.resource_version),
                (Some("shop"), None, None)
            );
            (source.kind, source.name, target.volume.unwrap(), source.projected)
        }

        /// A token of the pod's own, that says it is called so.
        fn token(&self, name: &str, account: &str) {
            use base64::Engine as _;

            let part =
                |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
            let claims = json!({"namespace": "shop", "pod": {"name": name, "uid": UID}, "serviceaccount": {"name": account}});
            let token =
                [json!({"alg": "RS256"}), json!({"kubernetes.io": claims}), json!(1)].map(part).join(".");
            let volume = format!("var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~projected/token/..2026");
            let volume = self.root.path().join(volume);
            std::fs::create_dir_all(&volume).unwrap();
            std::fs::write(volume.join("token"), token).unwrap();
            std::os::unix::fs::symlink("..2026", volume.with_file_name("..data")).unwrap();
        }

        /// The pods as `GET /v1/pods` lists them: name, account, and whether that is contradictory.
        fn pods(&self) -> Vec<(Option<String>, Option<String>, bool)> {
            let uids = std::collections::BTreeSet::from([UID.to_owned()]);
            let all = self.attribution().pods(&uids);
            assert!(all.iter().all(|pod| pod.disk && pod.uid == UID));
            all.into_iter().map(|pod| (pod.name, pod.service_account, pod.contradictory)).collect()
        }
    }

    #[test]
    fn a_target_is_completed() {
        let expected = Target {
            namespace: Some("shop".into()),
            pod: Some("web-7d-x".into()),
            pod_uid: Some(UID.into()),
            container: Some("app".into()),
            service_account: Some("web".into()),
            owner: Some(Owner { kind: "StatefulSet".into(), name: "web".into() }),
            mesh: None,
            image: Some("app:1".into()),
            image_digest: Some("r/app@sha256:aa".into()),
            volume: Some("conf".into()),
            source: Some(Source {
                kind: "ConfigMap".into(),
                namespace: Some("shop".into()),
                name: Some("web-config".into()),
                ..Source::default()
            }),
            unclear: false,
        };
        let node = Node::new(&[pod()]);
        assert_eq!(node.target("volumes/kubernetes.io~configmap/conf/..data/x"), expected);
        // A volume of two containers is none's.
        let both = node.target("volumes/kubernetes.io~secret/both/tls.key");
        assert_eq!((both.container, both.image, both.image_digest), (None, None, None));
        // By its subPath it is one's again, and its source is known too.
        let mounted = node.target("volume-subpaths/both/proxy/0");
        assert_eq!(
            (mounted.container.as_deref(), mounted.image_digest.as_deref()),
            (Some("proxy"), Some("sha256:bb"))
        );
        let expected = ("Secret".into(), Some("web-tls".into()), "both".into(), vec![]);
        assert_eq!(node.source("volume-subpaths/both/proxy/0"), expected);
    }

    #[test]
    fn a_file_of_a_projected_volume_is_of_the_source_that_makes_it() {
        let node = Node::new(&[pod()]);
        let of_volume = |kind: &str, name: Option<&str>, volume: &str, projected: &[&str]| {
            let projected: Vec<String> = projected.iter().map(|one| (*one).to_owned()).collect();
            (kind.to_owned(), name.map(str::to_owned), volume.to_owned(), projected)
        };
        let one = |kind: &str, name: Option<&str>| of_volume(kind, name, "mixed", &[]);
        let of = |file: &str| node.source(&format!("volumes/kubernetes.io~projected/{file}"));
        assert_eq!(of("mixed/token"), one("ServiceAccountToken", None));
        assert_eq!(of("mixed/..2026_01_01_00_00_00.1/ca/ca.crt"), one("ConfigMap", Some("roots")));
        assert_eq!(of("mixed/..data/namespace"), one("DownwardAPI", None));
        assert_eq!(of("mixed/other"), one("ConfigMap", Some("open")));
        // What may be of several is called as none of them, nor as the volume.
        let whole = ["ServiceAccountToken", "ConfigMap/roots", "DownwardAPI", "ConfigMap/open"];
        assert_eq!(of("mixed"), of_volume("Projected", None, "mixed", &whole));
        assert_eq!(of("unclear/x"), of_volume("Projected", None, "unclear", &["ConfigMap/a", "Secret/b"]));
        let claim = node.source("volumes/kubernetes.io~csi/claim/mount/x");
        assert_eq!(claim, of_volume("PersistentVolumeClaim", Some("data"), "claim", &[]));
    }

    #[test]
    fn the_disk_is_believed_where_the_api_contradicts_it() {
        let node = Node::new(&[pod()]);
        node.logs("shop_another");
        let told = node.target("volumes/kubernetes.io~configmap/conf/x");
        let expected = Target {
            namespace: Some("shop".into()),
            pod: Some("another".into()),
            pod_uid: Some(UID.into()),
            volume: Some("conf".into()),
            source: Some(Source {
                kind: "ConfigMap".into(),
                namespace: Some("shop".into()),
                ..Source::default()
            }),
            ..Target::default()
        };
        assert_eq!(told, expected);
        assert_eq!(node.api.status().contradictory, 1);
        assert!(node.api.pods()[0].contradictory);
        // Where they agree, all is used.
        let node = Node::new(&[pod()]);
        node.logs("shop_web-7d-x");
        assert_eq!(node.target("etc-hosts").owner.unwrap().name, "web");
        assert_eq!(node.api.status().contradictory, 0);
        // What the plugin's directory says the volume is stands, whatever the API calls it.
        let told = node.target("volumes/kubernetes.io~secret/conf/x").source.unwrap();
        assert_eq!((told.kind.as_str(), told.name.as_deref()), ("Secret", None));
    }

    #[test]
    fn a_listed_pod_has_nothing_of_an_api_that_the_disk_contradicts() {
        // Nobody has asked for a target or an actor of it before.
        let node = Node::new(&[pod()]);
        node.logs("shop_liar");
        assert_eq!(node.pods(), [(Some("liar".into()), None, true)]);
        assert_eq!(node.api.status().contradictory, 1);
        let node = Node::new(&[pod()]);
        node.logs("shop_web-7d-x");
        assert_eq!(node.pods(), [(Some("web-7d-x".into()), Some("web".into()), false)]);
        assert_eq!(node.api.status().contradictory, 0);
        // The account alone is enough.
        let node = Node::new(&[pod()]);
        node.token("web-7d-x", "another");
        assert_eq!(node.pods(), [(Some("web-7d-x".into()), Some("another".into()), true)]);
    }

    #[test]
    fn of_two_pods_that_the_disk_names_under_one_uid_neither_is_used() {
        for api in [vec![], vec![pod()]] {
            let node = Node::new(&api);
            node.logs("shop_web-7d-x");
            node.token("other", "other-sa");
            let expected = Target { pod_uid: Some(UID.into()), unclear: true, ..Target::default() };
            assert_eq!(node.target("etc-hosts"), expected);
            let known = node.attribution().pod(UID.to_owned());
            let told = (known.namespace, known.name, known.service_account, known.unclear);
            assert_eq!(told, (None, None, None, true));
            assert_eq!(node.pods(), [(None, None, true)]);
        }
        // One that tells the same is believed.
        let node = Node::new(&[]);
        node.logs("shop_web-7d-x");
        node.token("web-7d-x", "web");
        let told = node.target("etc-hosts");
        assert_eq!(
            (told.pod.as_deref(), told.service_account.as_deref(), told.unclear),
            (Some("web-7d-x"), Some("web"), false)
        );
    }

    #[test]
    fn a_mesh_file_is_of_its_profiles_class() {
        let attribution = Node::new(&[]).attribution();
        let volume = format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/istio-envoy");
        for (path, class) in [
            (volume.as_str(), Class::Generated),
            ("/run/istio-cni/istio-cni-kubeconfig", Class::Rotated),
            ("/run/spire/agent-sockets", Class::Opaque),
            ("/opt/cni/bin/istio-cni", Class::Sealed),
            ("/usr/local/bin/envoy", Class::Sealed),
        ] {
            assert_eq!(attribution.class_of(&HostPath::from(path)), class, "{path}");
        }
    }

    #[test]
    fn a_container_of_a_profile_is_its_meshs() {
        let node = Node::new(&[]);
        let mesh = |container: &str, image: Option<&str>| {
            let mut target = Target {
                pod_uid: Some(UID.into()),
                container: Some(container.into()),
                image: image.map(str::to_owned),
                ..Target::default()
            };
            node.attribution().complete(&mut target, None);
            target.mesh
        };
        assert_eq!(mesh("istio-proxy", Some("registry.local/proxy:1")).as_deref(), Some("istio"));
        assert_eq!(mesh("linkerd-proxy", None).as_deref(), Some("linkerd"));
        assert_eq!(mesh("app", Some("docker.io/istio/proxyv2:1")), None);
        // Four meshes have installers of that name.
        assert_eq!(mesh("install-cni", Some("docker.io/kumahq/kuma-cni:2")).as_deref(), Some("kuma"));
        assert_eq!(mesh("install-cni", Some("registry.local/installer:1")), None);
        assert_eq!(mesh("install-cni", None), None);
    }

    #[test]
    fn an_actors_pod_and_container_are_completed() {
        let node = Node::new(&[pod()]);
        let mut actor: Actor = serde_json::from_value(json!({
            "pid": 1, "tgid": 1, "ppid": 0, "uid": 0, "comm": "x", "exe": null, "cmdline": "", "start_time": null,
            "cgroup": format!("/kubepods/burstable/pod{UID}/{ID}"), "mount_ns": null,
        }))
        .unwrap();
        actor.cgroup_id = 1;
        node.attribution().enrich(&mut actor);
        let told = json!({"pod": actor.pod, "container": actor.container});
        let expected = json!({
            "pod": {"uid": UID, "namespace": "shop", "name": "web-7d-x", "service_account": "web",
                "owner": {"kind": "StatefulSet", "name": "web"}},
            "container": {"id": ID, "name": "app", "image": "app:1", "image_digest": "r/app@sha256:aa"},
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn static_pods_are_known_by_what_the_node_calls_them() {
        let hash = "0123abcd456789abcdef0123456789ab";
        let mirror = |hash: &str, mirrored: &str| {
            let mut pod = pod();
            pod["metadata"]["annotations"] =
                json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": mirrored});
            pod
        };
        let told = |pod: Value| telling(&[pod]).pods().remove(0).uid;
        assert_eq!(told(mirror(hash, hash)), hash);
        // Not a mirror, or one that calls itself another pod.
        assert_eq!(told(mirror(hash, "x")), UID);
        let other = "fedcba98-4567-89ab-cdef-0123456789ab";
        assert_eq!(told(mirror(other, other)), UID);
        // Who comes second takes nobody's place.
        let mut second = mirror(hash, hash);
        second["metadata"]["uid"] = json!("second");
        second["metadata"]["name"] = json!("second");
        let api = telling(&[mirror(hash, hash), second]);
        assert_eq!(api.pods().iter().map(|pod| pod.name.clone().unwrap()).collect::<Vec<_>>(), ["web-7d-x"]);
        assert_eq!(api.status().not_kept, 1);
    }
}
