//! What profiles advise on a path that is being sealed: its class, and who may write it.
//!
//! Advice goes into the statement, where a reviewer sees it and a key signs it; the agent itself asks no profile what is
//! lawful.

use std::collections::BTreeMap;

use super::meaning::{Form, Meaning};
use super::object::{EntryKind, Publish, Writer};
use super::observe::{Context, FoundKind, Root, observe};
use super::statement::WireWriter;
use crate::attribution::attack::Role;
use crate::attribution::pods::{VolumePath, source_kind, volume_path};
use crate::inventory::containers::{self, NodeContainer};
use crate::model::{Class, HostPath};
use crate::profile::{Compare, Layout, Nowhere, PodWriter, Profiles, Surroundings};

/// Longest note of a CSI volume, in bytes.
const NOTE_MAX: u64 = 64 << 10;
/// Longest chain of plugins whose writers are looked for, in bytes.
const CHAIN_MAX: u64 = 64 << 10;

/// How a path should be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) class: Class,
    pub(super) publish: Publish,
    /// By what it means, if not by its bytes.
    pub(super) form: Option<Form>,
    /// Profiles say that it is a token or a credential.
    pub(super) secret: bool,
    /// Names of proven writers, as the statement calls them.
    pub(super) writers: Vec<String>,
}

/// Asks profiles, and looks for the writers they name on the node.
#[derive(Debug)]
pub(super) struct Advisor<'s> {
    root: &'s Root,
    profiles: &'s Profiles,
    layout: &'s Layout,
    containers: Option<Vec<NodeContainer>>,
    hashes: BTreeMap<HostPath, Option<String>>,
    /// For the statement.
    pub(super) writers: Vec<WireWriter>,
}

impl<'s> Advisor<'s> {
    pub(super) const fn new(root: &'s Root, profiles: &'s Profiles, layout: &'s Layout) -> Self {
        Self { root, profiles, layout, containers: None, hashes: BTreeMap::new(), writers: Vec::new() }
    }

    /// What profiles say of a path, if anything.
    pub(super) fn on(&mut self, path: &HostPath) -> Option<Advice> {
        let layout = layout_for(path, self.layout);
        let around = InRoot { root: self.root, pods: layout.kubelet_root.join(b"pods") };
        if layout.cni.conf.contains(path) || layout.cni.bin.contains(path) {
            return self.on_directory(path);
        }
        let found = self.profiles.rule_of(path, &layout, &around)?;
        // What lies in a CSI volume its driver wrote, which is another pod's container.
        let own = |at: &VolumePath| source_kind(&at.plugin) != Some("CSI");
        let pod_uid = volume_path(path, &layout.kubelet_root).filter(own).map(|at| at.pod_uid);
        let (profile, rule) = (found.profile, found.rule);
        let mut writers: Vec<String> = rule
            .writers
            .iter()
            .filter_map(|name| {
                if name == Writer::KUBELET {
                    return Some(name.clone());
                }
                let writer = profile.writers.iter().find(|writer| writer.name == *name)?;
                self.writer(writer, pod_uid.as_deref())
            })
            .collect();
        if rule.compare == Compare::Cni {
            for name in self.installers(path, &layout) {
                if !writers.contains(&name) {
                    writers.push(name);
                }
            }
        }
        let form = match rule.compare {
            Compare::Bytes => None,
            Compare::Pem => Some(Form::Pem),
            Compare::Cni => Some(Form::Cni),
            Compare::Json => Some(Form::Json),
            Compare::Yaml => Some(Form::Yaml),
        };
        let secret = matches!(rule.role, Role::Token | Role::Credential);
        Some(Advice { class: rule.class, publish: rule.publish, form, secret, writers })
    }

    /// A directory of plugins or of their chains: whoever may write what is in it puts files beside them for a moment.
    fn on_directory(&mut self, path: &HostPath) -> Option<Advice> {
        let mut writers = Vec::new();
        for name in self.root.list(path).ok()?.keys() {
            for writer in self.on(&path.join(name)).map(|advice| advice.writers).unwrap_or_default() {
                if !writers.contains(&writer) {
                    writers.push(writer);
                }
            }
        }
        Some(Advice { class: Class::Sealed, publish: Publish::default(), form: None, secret: false, writers })
    }

    /// Whoever installs a plugin of a chain writes its entry into that chain, whatever the chain's file is called.
    fn installers(&mut self, chain: &HostPath, layout: &Layout) -> Vec<String> {
        let Ok(bytes) = self.root.read(chain, CHAIN_MAX) else { return Vec::new() };
        let Ok(Meaning::Cni(chain)) = Meaning::read(Form::Cni, &bytes) else { return Vec::new() };
        let (profiles, mut writers) = (self.profiles, Vec::new());
        let Some(dir) = layout.cni.bin.first() else { return Vec::new() };
        for plugin in &chain.plugins {
            // Rules know plugins by their names; which of the directories it is in does not matter.
            let plugin = dir.join(plugin.kind.as_bytes());
            let Some(found) = profiles.rule_of(&plugin, layout, &Nowhere) else { continue };
            let of = found.profile.writers.iter().filter(|writer| found.rule.writers.contains(&writer.name));
            writers.extend(of.filter_map(|writer| self.writer(writer, None)));
        }
        writers
    }

    /// The name of a writer whose executable was found in a container that runs: of that pod, or for a file of the
    /// host, of any.
    fn writer(&mut self, writer: &PodWriter, pod_uid: Option<&str>) -> Option<String> {
        let root = self.root;
        let all = self.containers.get_or_insert_with(|| containers::read(root)).clone();
        let fits = |container: &&NodeContainer| {
            writer.containers.contains(&container.name) && pod_uid.is_none_or(|uid| container.pod_uid == uid)
        };
        let (container, sha256) = all.iter().filter(fits).find_map(|container| {
            let exe = container.rootfs.join(writer.exe.as_bytes().strip_prefix(b"/")?);
            Some((container, self.hash(&exe)?))
        })?;
        let namespace = match (pod_uid, &container.pod) {
            (Some(_), _) => None,
            (None, Some((namespace, _))) => Some(namespace.clone()),
            (None, None) => return None,
        };
        let mut wire = WireWriter {
            containers: writer.containers.clone(),
            exe: HostPath::from(writer.exe.as_str()),
            name: writer.name.clone(),
            namespace,
            sha256,
        };
        let same = |known: &&WireWriter| {
            (&known.exe, &known.sha256, &known.containers, &known.namespace)
                == (&wire.exe, &wire.sha256, &wire.containers, &wire.namespace)
        };
        if let Some(known) = self.writers.iter().find(same) {
            return Some(known.name.clone());
        }
        if self.writers.iter().any(|known| known.name == wire.name) {
            // Another version of it, or in another namespace.
            wire.name = format!("{}-{}", wire.name, self.writers.len());
        }
        self.writers.push(wire.clone());
        Some(wire.name)
    }

    fn hash(&mut self, exe: &HostPath) -> Option<String> {
        if let Some(known) = self.hashes.get(exe) {
            return known.clone();
        }
        let found = observe(self.root, exe, &Context::default()).ok();
        let hash = found.and_then(|found| match found.kind {
            FoundKind::File { content, .. } => Some(hex::encode(content.sha256)),
            _ => None,
        });
        self.hashes.insert(exe.clone(), hash.clone());
        hash
    }
}

/// The layout in which a path lies in a pod's volume, wherever the kubelet's directory is; else as it is.
fn layout_for(path: &HostPath, layout: &Layout) -> Layout {
    let bytes = path.as_bytes();
    let root = memchr::memmem::find_iter(bytes, b"/pods/")
        .map(|at| HostPath::new(&bytes[..at]))
        .find(|root| volume_path(path, root).is_some_and(|at| source_kind(&at.plugin).is_some()));
    match root {
        Some(kubelet_root) => Layout { kubelet_root, ..layout.clone() },
        None => layout.clone(),
    }
}

/// The kubelet's directories below a root.
struct InRoot<'a> {
    root: &'a Root,
    pods: HostPath,
}

impl Surroundings for InRoot<'_> {
    fn has_container(&self, pod_uid: &str, container: &str) -> bool {
        let dir = self.pods.join(pod_uid.as_bytes()).join(b"containers");
        let names = self.root.list(&dir).unwrap_or_default();
        names.get(container.as_bytes()) == Some(&EntryKind::Directory)
    }

    fn csi_driver(&self, pod_uid: &str, volume: &str) -> Option<String> {
        let dir = self.pods.join(pod_uid.as_bytes()).join(b"volumes/kubernetes.io~csi");
        let note = self.root.read(&dir.join(volume.as_bytes()).join(b"vol_data.json"), NOTE_MAX).ok()?;
        let note: serde_json::Value = serde_json::from_slice(&note).ok()?;
        note.get("driverName")?.as_str().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use sha2::{Digest as _, Sha256};

    use crate::baseline::object::{Content, Seal, Writer};
    use crate::baseline::seal::{Options, Proposal, statement_for};
    use crate::baseline::statement::parse;
    use crate::baseline::{Baseline, Root};
    use crate::model::{Class, HostPath};

    const VOLUMES: &str = "srv/kubelet/pods/u-1/volumes";
    const BUNDLE: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io/";

    /// A node with a sidecar's volumes, its kubelet where nobody expects it.
    fn node() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let volume = |plugin: &str, name: &str| at(VOLUMES).join(format!("kubernetes.io~{plugin}/{name}"));
        let publish = |plugin: &str, name: &str, file: &str, text: &str| {
            let volume = volume(plugin, name);
            fs::create_dir_all(volume.join("..2026_01_01_00_00_00.1")).unwrap();
            fs::write(volume.join("..2026_01_01_00_00_00.1").join(file), text).unwrap();
            symlink("..2026_01_01_00_00_00.1", volume.join("..data")).unwrap();
            symlink(format!("..data/{file}"), volume.join(file)).unwrap();
        };
        publish("downward-api", "istio-podinfo", "labels", "app=\"a\"\n");
        publish("configmap", "custom-bootstrap-volume", "custom_bootstrap.json", "{}");
        fs::create_dir_all(volume("empty-dir", "istio-envoy")).unwrap();
        fs::write(volume("empty-dir", "istio-envoy").join("envoy-rev.json"), "{}").unwrap();
        dir
    }

    fn container(dir: &tempfile::TempDir, id: char, (pod, name): (&str, &str), exe: (&str, &str)) {
        let bundle = dir.path().join(BUNDLE).join(String::from(id).repeat(64));
        let exe_at = bundle.join("rootfs").join(exe.0.trim_start_matches('/'));
        fs::create_dir_all(exe_at.parent().unwrap()).unwrap();
        fs::write(exe_at, exe.1).unwrap();
        let config = serde_json::json!({ "root": { "path": "rootfs" }, "annotations": {
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": name,
            "io.kubernetes.cri.sandbox-uid": pod, "io.kubernetes.cri.image-name": "i",
            "io.kubernetes.cri.sandbox-namespace": "istio-system", "io.kubernetes.cri.sandbox-name": "p" } });
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    }

    fn seal(dir: &tempfile::TempDir, paths: &[&str]) -> (Proposal, Baseline) {
        let root = Root::open(dir.path()).unwrap();
        let paths: Vec<HostPath> = paths.iter().map(|path| HostPath::from(*path)).collect();
        let proposal = statement_for(&root, &paths, &Options::default()).unwrap();
        let baseline = parse(&proposal.statement.to_json().unwrap()).unwrap();
        (proposal, baseline)
    }

    fn file(baseline: &Baseline, end: &str) -> (Class, bool, Vec<String>) {
        let object = baseline.objects.iter().find(|object| object.path.to_string().ends_with(end)).unwrap();
        let Seal::File(content) = &object.seal else { panic!("{end} is no file") };
        (object.rule.class, *content == Content::Any, object.rule.writers.clone())
    }

    #[test]
    fn without_its_writer_what_is_generated_is_sealed_by_its_bytes() {
        let dir = node();
        let (_, baseline) = seal(&dir, &[&format!("/{VOLUMES}/kubernetes.io~empty-dir/istio-envoy")]);
        assert_eq!(file(&baseline, "envoy-rev.json"), (Class::Generated, false, Vec::new()));
        assert_eq!(*baseline.writers, [Writer::Kubelet]);
    }

    #[test]
    fn with_its_writer_it_is_sealed_by_who_that_is() {
        let dir = node();
        container(&dir, 'a', ("u-1", "istio-proxy"), ("/usr/local/bin/pilot-agent", "agent"));
        // Of the same name in another pod, and another container of this pod.
        container(&dir, 'b', ("u-2", "istio-proxy"), ("/usr/local/bin/pilot-agent", "evil"));
        container(&dir, 'c', ("u-1", "app"), ("/usr/local/bin/pilot-agent", "evil"));
        let (_, baseline) = seal(&dir, &[&format!("/{VOLUMES}/kubernetes.io~empty-dir/istio-envoy")]);
        assert_eq!(file(&baseline, "envoy-rev.json"), (Class::Generated, true, vec!["pilot-agent".into()]));
        let Some(Writer::InPod(writer)) = baseline.writers.get(1) else { panic!("{:?}", baseline.writers) };
        assert_eq!(writer.sha256, <[u8; 32]>::from(Sha256::digest(b"agent")));
        assert_eq!((&*writer.containers, &writer.namespace), (&["istio-proxy".to_owned()][..], &None));
        assert_eq!(writer.exe, HostPath::from("/usr/local/bin/pilot-agent"));
        let dir_of = baseline.objects.iter().find(|object| object.path.name() == b"istio-envoy").unwrap();
        assert_eq!(dir_of.rule.writers, ["pilot-agent"]);
    }

    #[test]
    fn what_the_kubelet_renews_without_an_identity_is_opaque_and_its_own() {
        let dir = node();
        let (_, baseline) = seal(&dir, &[&format!("/{VOLUMES}")]);
        let entry = |volume: &[u8], file: &[u8]| {
            let object = baseline.objects.iter().find(|object| object.path.name() == volume).unwrap();
            let Seal::Volume { entries } = &object.seal else { panic!("no volume") };
            let entry = entries.iter().find(|entry| &*entry.path == file).unwrap();
            (entry.class, object.rule.writers.clone())
        };
        let kubelet = vec!["kubelet".to_owned()];
        assert_eq!(entry(b"istio-podinfo", b"labels"), (Class::Opaque, kubelet.clone()));
        assert_eq!(entry(b"custom-bootstrap-volume", b"custom_bootstrap.json"), (Class::Sealed, kubelet));
    }

    #[test]
    fn a_csi_volume_is_its_drivers() {
        let dir = node();
        let volume = dir.path().join(VOLUMES).join("kubernetes.io~csi/tls");
        let data = volume.join("mount/..2026_01_01_00_00_00.1");
        fs::create_dir_all(&data).unwrap();
        fs::write(volume.join("vol_data.json"), r#"{"driverName":"csi.cert-manager.io"}"#).unwrap();
        fs::write(data.join("note"), "renewed").unwrap();
        symlink("..2026_01_01_00_00_00.1", volume.join("mount/..data")).unwrap();
        symlink("..data/note", volume.join("mount/note")).unwrap();
        container(&dir, 'f', ("u-7", "cert-manager-csi-driver"), ("/ko-app/cmd", "driver"));
        // One in the pod itself is not the driver.
        container(&dir, 'a', ("u-1", "app"), ("/ko-app/cmd", "evil"));
        let (_, baseline) = seal(&dir, &[&format!("/{VOLUMES}/kubernetes.io~csi/tls/mount")]);
        let object = &baseline.objects[0];
        let Seal::Volume { entries } = &object.seal else { panic!("no volume") };
        let entry = entries.iter().find(|entry| &*entry.path == b"note").unwrap();
        assert_eq!(
            (entry.class, &*object.rule.writers),
            (Class::Opaque, &["cert-manager-csi-driver".to_owned()][..])
        );
        let Some(Writer::InPod(writer)) = baseline.writers.get(1) else { panic!("{:?}", baseline.writers) };
        assert_eq!(writer.namespace.as_deref(), Some("istio-system"));
        assert_eq!(writer.sha256, <[u8; 32]>::from(Sha256::digest(b"driver")));
    }

    #[test]
    fn an_installer_is_sealed_with_its_namespace() {
        let dir = node();
        fs::create_dir_all(dir.path().join("opt/cni/bin")).unwrap();
        fs::write(dir.path().join("opt/cni/bin/istio-cni"), "plugin").unwrap();
        fs::write(dir.path().join("opt/cni/bin/bridge"), "plugin").unwrap();
        container(&dir, 'd', ("u-9", "install-cni"), ("/usr/local/bin/install-cni", "installer"));
        container(&dir, 'e', ("u-8", "install-cni"), ("/install-cni", "kuma"));
        let (_, baseline) = seal(&dir, &["/opt/cni/bin/istio-cni", "/opt/cni/bin/bridge"]);
        assert_eq!(file(&baseline, "/istio-cni"), (Class::Sealed, false, vec!["istio-cni".into()]));
        assert_eq!(file(&baseline, "/bridge"), (Class::Sealed, false, Vec::new()));
        let Some(Writer::InPod(writer)) = baseline.writers.get(1) else { panic!("{:?}", baseline.writers) };
        assert_eq!(writer.namespace.as_deref(), Some("istio-system"));
        assert_eq!(baseline.writers.len(), 2);
    }

    #[test]
    fn who_installs_a_plugin_writes_its_entry_into_the_chain_and_its_credentials() {
        let dir = node();
        for (file, text) in [
            ("opt/cni/bin/istio-cni", "plugin"),
            (
                "etc/cni/net.d/10-x.conflist",
                r#"{"name":"n","plugins":[{"type":"ptp"},{"type":"istio-cni"}]}"#,
            ),
            ("etc/cni/net.d/20-y.conflist", r#"{"name":"n","plugins":[{"type":"ptp"}]}"#),
            ("run/istio-cni/istio-cni-kubeconfig", "users: [{user: {token: eyJh.eyJi.c}}]"),
        ] {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), text).unwrap();
        }
        container(&dir, 'd', ("u-9", "install-cni"), ("/usr/local/bin/install-cni", "installer"));
        let (_, baseline) = seal(&dir, &["/etc/cni/net.d", "/run/istio-cni/istio-cni-kubeconfig"]);
        let istio = vec!["istio-cni".to_owned()];
        assert_eq!(file(&baseline, "/10-x.conflist"), (Class::Sealed, false, istio.clone()));
        assert_eq!(file(&baseline, "/20-y.conflist"), (Class::Sealed, false, Vec::new()));
        // Whatever is in it: by its writer alone.
        assert_eq!(file(&baseline, "/istio-cni-kubeconfig"), (Class::Generated, true, istio.clone()));
        let dir_of = baseline.objects.iter().find(|object| object.path.name() == b"net.d").unwrap();
        assert_eq!(dir_of.rule.writers, istio, "it renames from beside");
    }

    #[test]
    fn a_chain_is_sealed_by_its_entries_and_what_is_no_chain_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("etc/cni/net.d");
        fs::create_dir_all(&net).unwrap();
        let chain = |plugins: &str| format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#);
        let (bridge, mesh) = (r#"{"type":"bridge","mtu":1}"#, r#"{"type":"istio-cni"}"#);
        fs::write(net.join("10-x.conflist"), chain(&format!("{bridge},{mesh}"))).unwrap();
        fs::write(net.join("README"), "no chain").unwrap();
        let (proposal, baseline) = seal(&dir, &["/etc/cni/net.d"]);
        assert!(proposal.notes.iter().any(|note| note.contains("README: sealed by its bytes, not as cni")));
        let root = Root::open(dir.path()).unwrap();
        let check = || {
            let mut said = Vec::new();
            for object in &*baseline.objects {
                let (_, differences) =
                    crate::baseline::check(&root, object, &crate::baseline::Context::default(), None)
                        .unwrap();
                said.extend(differences.into_iter().map(|one| {
                    let hash = one.actual.contains_key("sha256");
                    (object.path.name().to_vec(), one.aspect.as_str(), one.detail, hash)
                }));
            }
            said
        };
        assert_eq!(check(), []);
        let spaced = format!("{}\n", chain(&format!("\n  {bridge},\n  {mesh}")));
        fs::write(net.join("10-x.conflist"), spaced).unwrap();
        assert_eq!(check(), [], "the same by entry");
        fs::remove_file(net.join("10-x.conflist")).unwrap();
        let gone = "the chain with plugin istio-cni is gone; pods that start from now on may bypass the mesh";
        let said = check();
        assert!(
            said.contains(&(b"10-x.conflist".to_vec(), "missing", Some(gone.to_owned()), false)),
            "{said:?}"
        );
        fs::write(net.join("10-x.conflist"), chain(bridge)).unwrap();
        let removed =
            "plugin istio-cni removed from the chain; pods that start from now on may bypass the mesh";
        assert_eq!(check(), [(b"10-x.conflist".to_vec(), "content", Some(removed.to_owned()), true)]);
        fs::write(net.join("10-x.conflist"), chain(&format!("{bridge},{mesh}"))).unwrap();
        fs::write(net.join("00-y.conf"), bridge).unwrap();
        let first = "sorts before 10-x.conflist: the runtime takes it instead, and pods that start from now on may bypass the mesh";
        assert_eq!(check(), [(b"net.d".to_vec(), "names", Some(first.to_owned()), false)]);
        fs::remove_file(net.join("00-y.conf")).unwrap();
        fs::write(net.join("README"), "no chain ").unwrap();
        let said = check();
        assert_eq!((said.len(), said[0].1), (1, "content"));
    }

    #[test]
    fn a_token_that_nobody_knows_as_one_is_sealed_as_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc/cni/net.d")).unwrap();
        fs::write(dir.path().join("etc/cni/net.d/host-token"), "abcdef").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let path = HostPath::from("/etc/cni/net.d/host-token");
        let bare = Options { class: Some(Class::Sealed), ..Options::default() };
        let refused = statement_for(&root, std::slice::from_ref(&path), &bare).unwrap_err().to_string();
        assert!(refused.starts_with("cannot seal a secret by a plain hash"), "{refused}");
        let key = std::sync::Arc::new(crate::baseline::secret::SecretKey::new(vec![7; 32]).unwrap());
        let proposal = statement_for(&root, &[path], &Options { secret_key: Some(key), ..bare }).unwrap();
        let object = &proposal.statement.predicate.objects[0];
        assert_eq!((object.hmac.is_some(), object.sha256.is_some()), (true, false));
        let baseline = parse(&proposal.statement.to_json().unwrap()).unwrap();
        let context = crate::baseline::Context::default().for_sealed(&baseline.objects[0]);
        let found = crate::baseline::observe(&root, &baseline.objects[0].path, &context).unwrap();
        assert_eq!(found.state().get("sha256"), None);
    }

    #[test]
    fn a_class_that_was_asked_for_counts() {
        let dir = node();
        let root = Root::open(dir.path()).unwrap();
        let path = HostPath::from(format!("/{VOLUMES}/kubernetes.io~downward-api/istio-podinfo").as_str());
        let options = Options { class: Some(Class::Sealed), ..Options::default() };
        let proposal = statement_for(&root, &[path], &options).unwrap();
        let files = proposal.statement.predicate.objects[0].files.as_ref().unwrap();
        assert_eq!(files.0["labels"].class, Class::Sealed);
    }
}
