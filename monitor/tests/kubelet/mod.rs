//! What a kubelet lays down for a pod, step by step as it does it: written from its documentation and its traces, and
//! from nothing of the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A node's tree.
pub(crate) struct Node {
    pub(crate) root: PathBuf,
    objects: BTreeMap<(String, String, String), Value>,
}

/// A pod on it.
pub(crate) struct Pod<'p> {
    pub(crate) namespace: &'p str,
    pub(crate) name: &'p str,
    pub(crate) uid: &'p str,
    /// `metadata` and `spec`, as the API server has them.
    pub(crate) made_from: &'p Value,
}

type Payload = BTreeMap<String, (Vec<u8>, u32, Option<u32>)>;

impl Node {
    /// A node of a cluster that has all objects of these documents.
    pub(crate) fn new(root: &Path, documents: &[Value]) -> Self {
        let mut node = Self { root: root.to_owned(), objects: BTreeMap::new() };
        documents.iter().for_each(|document| node.apply(document));
        node
    }

    fn apply(&mut self, document: &Value) {
        if let Some(items) = document["items"].as_array() {
            items.iter().for_each(|item| self.apply(item));
            return;
        }
        let text = |at: &str| document.pointer(at).and_then(Value::as_str).unwrap_or("default").to_owned();
        let key = (text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        self.objects.insert(key, document.clone());
    }

    pub(crate) fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("var/lib/kubelet/pods").join(uid)
    }

    /// Sets up all volumes of a pod, and starts it.
    pub(crate) fn start(&self, pod: &Pod<'_>) {
        let dir = self.pod_dir(pod.uid);
        let log = format!("var/log/pods/{}_{}_{}", pod.namespace, pod.name, pod.uid);
        for made in [dir.join("volumes"), dir.join("containers/main"), self.root.join(log)] {
            fs::create_dir_all(made).unwrap();
        }
        let hosts =
            format!("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n10.0.0.9\t{}\n", pod.name);
        fs::write(dir.join("etc-hosts"), hosts).unwrap();
        let spec = &pod.made_from["spec"];
        let lists = ["initContainers", "containers"].map(|list| spec[list].as_array());
        let used: BTreeSet<&str> = lists
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|container| container["volumeMounts"].as_array())
            .flatten()
            .filter_map(|mount| mount["name"].as_str())
            .collect();
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            if volume["name"].as_str().is_some_and(|name| used.contains(name)) {
                self.volume(pod, volume);
            }
        }
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array().into_iter().flatten() {
                self.sub_paths(pod, container);
            }
        }
    }

    /// The volume that the API server adds to most pods.
    pub(crate) fn token_volume(&self, pod: &Pod<'_>) {
        self.volume(
            pod,
            &json!({"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]}}),
        );
    }

    fn volume(&self, pod: &Pod<'_>, volume: &Value) {
        let group = pod.made_from.pointer("/spec/securityContext/fsGroup").and_then(Value::as_u64);
        let group = group.map(|gid| u32::try_from(gid).unwrap());
        let name = volume["name"].as_str().unwrap();
        let (plugin, root_mode, payload) = if let Some(source) = volume.get("configMap") {
            ("configmap", 0o777, self.keys(pod, "ConfigMap", &source["name"], source, default_mode(source)))
        } else if let Some(source) = volume.get("secret") {
            ("secret", 0o1777, self.keys(pod, "Secret", &source["secretName"], source, default_mode(source)))
        } else if let Some(source) = volume.get("downwardAPI") {
            ("downward-api", 0o1777, Some(downward(pod, source, default_mode(source))))
        } else if let Some(source) = volume.get("projected") {
            ("projected", 0o1777, self.projected(pod, source, group))
        } else {
            fs::create_dir_all(self.pod_dir(pod.uid).join("volumes/kubernetes.io~empty-dir").join(name))
                .unwrap();
            return;
        };
        // Without its ConfigMap a pod waits, and has no volume.
        let Some(payload) = payload else { return };
        let dir = self.pod_dir(pod.uid).join(format!("volumes/kubernetes.io~{plugin}/{name}"));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(root_mode)).unwrap();
        publish(&dir, &payload, group, "..2026_11_25_08_00_00.123456789");
    }

    fn keys(&self, pod: &Pod<'_>, kind: &str, name: &Value, source: &Value, mode: u32) -> Option<Payload> {
        let optional = source["optional"].as_bool().unwrap_or(false);
        // The controller manager publishes the cluster's root into every namespace.
        let root = json!({"data": {"ca.crt": "-- the cluster's root --\n"}});
        let name = name.as_str().unwrap();
        let known = self.object(kind, pod.namespace, name);
        let Some(object) = known.or((name == "kube-root-ca.crt").then_some(&root)) else {
            return optional.then(Payload::new);
        };
        let mut all = BTreeMap::new();
        let decoded = if kind == "Secret" { "data" } else { "binaryData" };
        for (key, value) in object[decoded].as_object().into_iter().flatten() {
            all.insert(key.clone(), STANDARD.decode(value.as_str().unwrap()).unwrap());
        }
        let plain = if kind == "Secret" { "stringData" } else { "data" };
        for (key, value) in object[plain].as_object().into_iter().flatten() {
            all.insert(key.clone(), value.as_str().unwrap().as_bytes().to_vec());
        }
        let Some(items) = source["items"].as_array() else {
            return Some(all.into_iter().map(|(key, bytes)| (key, (bytes, mode, None))).collect());
        };
        let mut payload = Payload::new();
        for item in items {
            let mode = item["mode"].as_u64().map_or(mode, |mode| u32::try_from(mode).unwrap());
            match all.get(item["key"].as_str().unwrap()) {
                Some(bytes) => {
                    payload.insert(item["path"].as_str().unwrap().to_owned(), (bytes.clone(), mode, None));
                }
                None if optional => {}
                None => return None,
            }
        }
        Some(payload)
    }

    fn projected(&self, pod: &Pod<'_>, source: &Value, group: Option<u32>) -> Option<Payload> {
        let mode = default_mode(source);
        let mut payload = Payload::new();
        for source in source["sources"].as_array().unwrap() {
            if let Some(map) = source.get("configMap") {
                payload.extend(self.keys(pod, "ConfigMap", &map["name"], map, mode)?);
            }
            if let Some(secret) = source.get("secret") {
                payload.extend(self.keys(pod, "Secret", &secret["name"], secret, mode)?);
            }
            if let Some(api) = source.get("downwardAPI") {
                payload.extend(downward(pod, api, mode));
            }
            if let Some(token) = source.get("serviceAccountToken") {
                let user = one_user(&pod.made_from["spec"]);
                let mode = if user.is_some() || group.is_some() { 0o600 } else { mode };
                let text =
                    token_for(pod, token["audience"].as_str().unwrap_or("https://kubernetes.default.svc"));
                payload.insert(token["path"].as_str().unwrap().to_owned(), (text.into_bytes(), mode, user));
            }
        }
        Some(payload)
    }

    /// A bind mount of a file is the same inode under another name, as a hard link is. Of a directory it is a copy
    /// here, with the same modes and owners.
    fn sub_paths(&self, pod: &Pod<'_>, container: &Value) {
        let name = container["name"].as_str().unwrap();
        for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
            let part = match (mount["subPath"].as_str(), mount["subPathExpr"].as_str()) {
                (Some(part), _) => part.to_owned(),
                (None, Some("$(FILE)")) => "two.conf".to_owned(),
                _ => continue,
            };
            let volume = mount["name"].as_str().unwrap();
            let plugins = ["configmap", "secret", "projected", "downward-api"].into_iter();
            let dirs = plugins.map(|plugin| {
                self.pod_dir(pod.uid).join(format!("volumes/kubernetes.io~{plugin}/{volume}/..data"))
            });
            let Some(dir) = dirs.into_iter().find(|dir| dir.exists()) else { continue };
            let at = self.pod_dir(pod.uid).join("volume-subpaths").join(volume).join(name);
            fs::create_dir_all(&at).unwrap();
            mirror(&fs::canonicalize(dir).unwrap().join(part), &at.join(index.to_string()));
        }
    }
}

fn mirror(from: &Path, to: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    if from.is_file() {
        fs::hard_link(from, to).unwrap();
        return;
    }
    let meta = fs::metadata(from).unwrap();
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        mirror(&from.join(&name), &to.join(&name));
    }
    chown(to, Some(meta.uid()), Some(meta.gid())).unwrap();
    fs::set_permissions(to, meta.permissions()).unwrap();
}

fn default_mode(source: &Value) -> u32 {
    source["defaultMode"].as_u64().map_or(0o644, |mode| u32::try_from(mode).unwrap())
}

/// `AtomicWriter.Write` onto a volume that has nothing yet, or something else.
pub(crate) fn publish(dir: &Path, payload: &Payload, group: Option<u32>, timestamp: &str) {
    let data = dir.join(timestamp);
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    for (path, (bytes, mode, user)) in payload {
        let file = data.join(path);
        let mut above = data.clone();
        for part in Path::new(path).parent().unwrap() {
            above.push(part);
            if !above.exists() {
                fs::create_dir(&above).unwrap();
                fs::set_permissions(&above, fs::Permissions::from_mode(0o777 & !0o022)).unwrap();
            }
        }
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode)).unwrap();
        if let Some(user) = user {
            lchown(&file, Some(*user), None).unwrap();
        }
    }
    if let Some(group) = group {
        hand_over(dir, group);
    }
    symlink(timestamp, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    for name in payload.keys().map(|path| path.split('/').next().unwrap()) {
        if fs::symlink_metadata(dir.join(name)).is_err() {
            symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
    }
}

/// `SetVolumeOwnership` of a read-only volume.
fn hand_over(path: &Path, group: u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    lchown(path, None, Some(group)).unwrap();
    if meta.is_symlink() {
        return;
    }
    let mode = meta.permissions().mode() & 0o7777;
    let mode = if meta.is_dir() { mode | 0o440 | 0o110 | 0o2000 } else { mode | 0o440 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            hand_over(&entry.unwrap().path(), group);
        }
    }
}

fn downward(pod: &Pod<'_>, source: &Value, mode: u32) -> Payload {
    let meta = &pod.made_from["metadata"];
    let value = |field: &str| match field {
        "metadata.namespace" => pod.namespace.to_owned(),
        "metadata.name" => pod.name.to_owned(),
        "metadata.uid" => pod.uid.to_owned(),
        "metadata.labels" | "metadata.annotations" => {
            let map = meta[&field["metadata.".len()..]].as_object().cloned().unwrap_or_default();
            let line = |(key, value): (&String, &Value)| format!("{key}={:?}", value.as_str().unwrap());
            map.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        other => {
            let (map, key) = other.strip_suffix("']").unwrap().split_once("['").unwrap();
            meta[&map["metadata.".len()..]][key].as_str().unwrap_or_default().to_owned()
        }
    };
    let items = source["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| {
            // Of a container's resources only those that the fixtures ask for.
            let text = match item["resourceFieldRef"]["resource"].as_str() {
                Some("requests.cpu") => "10".to_owned(),
                Some("limits.memory") => "239".to_owned(),
                Some("requests.memory") => "250000000".to_owned(),
                _ => value(item["fieldRef"]["fieldPath"].as_str()?),
            };
            let mode = item["mode"].as_u64().map_or(mode, |mode| u32::try_from(mode).unwrap());
            Some((item["path"].as_str()?.to_owned(), (text.into_bytes(), mode, None)))
        })
        .collect()
}

/// The user all containers run as, if it is one.
fn one_user(spec: &Value) -> Option<u32> {
    let common = spec.pointer("/securityContext/runAsUser").and_then(Value::as_u64);
    let mut users = Vec::new();
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            users.push(container.pointer("/securityContext/runAsUser").and_then(Value::as_u64).or(common));
        }
    }
    users.dedup();
    match users.as_slice() {
        [Some(user)] => Some(u32::try_from(*user).unwrap()),
        _ => None,
    }
}

/// A token as the API server issues it; its signature is nobody's here.
pub(crate) fn token_for(pod: &Pod<'_>, audience: &str) -> String {
    let spec = &pod.made_from["spec"];
    let account = spec["serviceAccountName"].as_str().unwrap_or("default");
    let claims = json!({
        "aud": [audience], "exp": 4_000_000_000_u64, "iat": 1_700_000_000, "iss": "https://kubernetes.default.svc",
        "kubernetes.io": {
            "namespace": pod.namespace, "pod": {"name": pod.name, "uid": pod.uid},
            "serviceaccount": {"name": account, "uid": "5f2b9f0e-0000-4000-8000-000000000000"},
        },
        "sub": format!("system:serviceaccount:{}:{account}", pod.namespace),
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(&json!({"alg": "RS256", "kid": "k"})), part(&claims), "c2ln")
}
