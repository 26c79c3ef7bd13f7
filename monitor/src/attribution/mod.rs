//! Who acted, and upon whom: cgroup to pod, volume path to pod, command lines without secrets, executables by hash,
//! and the words of MITRE ATT&CK and of severity.
//!
//! Actor and target are two different things: the actor's pod is in its cgroup, the target's in the path.

mod api;
pub mod attack;
pub mod cgroup;
pub mod exe;
pub mod pods;
pub mod redact;
pub mod severity;
pub mod view;

pub use exe::ExeHashes;
pub use pods::{PodNames, sealed_source, target_of};
pub use view::CgroupView;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::attribution::attack::Role;
use crate::baseline::Root;
use crate::inventory::api::Known;
use crate::inventory::mesh::CniDirs;
use crate::inventory::procs::Proc;
use crate::model::{Actor, Class, Container, HostPath, Pod, Severity, Target, ViolationKind};
use crate::profile::{Layout, OnDisk, Profiles};

use self::pods::Tokens;
use crate::status::KubernetesPod;

/// Names the pods and containers of actors and targets. Keeps what it has read; re-reads when something is missing,
/// at most once a second.
#[derive(Debug)]
pub struct Attribution {
    host_root: PathBuf,
    layout: Layout,
    profiles: Arc<Profiles>,
    view: CgroupView,
    pods: PodNames,
    tokens: Tokens,
    api: Arc<Known>,
    exes: ExeHashes,
    proc: Proc,
}

impl Attribution {
    /// `host_root` is where the node's root is mounted, `kubelet_root` the kubelet's directory as the host names it.
    #[must_use]
    pub fn new(host_root: &Path, kubelet_root: HostPath, profiles: Arc<Profiles>, api: Arc<Known>) -> Self {
        let proc = Proc::default();
        Self {
            host_root: host_root.to_owned(),
            layout: Layout { kubelet_root, ..Layout::default() },
            profiles,
            view: CgroupView::new(host_root, &proc),
            pods: PodNames::new(host_root),
            tokens: Tokens::new(Root::open(host_root).ok()),
            api,
            exes: ExeHashes::default(),
            proc,
        }
    }

    /// The kubelet's directory changed (it was found, or restarted with another one).
    pub fn set_kubelet_root(&mut self, root: HostPath) {
        self.layout.kubelet_root = root;
    }

    /// Where the runtime keeps CNI was found.
    pub fn set_cni(&mut self, cni: CniDirs) {
        self.layout.cni = cni;
    }

    /// What an object is to a mesh, and how grave its profile says a finding of that kind is.
    #[must_use]
    pub fn weight_of(&self, path: &HostPath, kind: ViolationKind) -> (Role, Option<Severity>) {
        let around = OnDisk { host_root: &self.host_root, kubelet_root: &self.layout.kubelet_root };
        let rule = self.profiles.rule_of(path, &self.layout, &around).map(|found| found.rule);
        let role = rule.map_or_else(|| self.profiles.role_of(path, &self.layout, &around), |rule| rule.role);
        (role, rule.and_then(|rule| rule.severity.get(&kind).copied()))
    }

    /// How a mesh file may change: as its profile says, and as what it runs where none does.
    #[must_use]
    pub fn class_of(&self, path: &HostPath) -> Class {
        let around = OnDisk { host_root: &self.host_root, kubelet_root: &self.layout.kubelet_root };
        self.profiles.rule_of(path, &self.layout, &around).map_or(Class::Sealed, |found| found.rule.class)
    }

    /// Fills in cgroup path, container, pod, and the executable's hash where they are not known yet.
    pub fn enrich(&mut self, actor: &mut Actor) {
        if actor.cgroup_id != 0 && self.view.may_hide_a_pod(actor.cgroup.as_deref()) {
            // Where it has ended, it is not known.
            (actor.cgroup, actor.cgroup_id) = (self.proc.cgroup_of(actor), 0);
        }
        if let Some(path) = &actor.cgroup {
            // With an id it was read in the kernel, in the host's terms; without one in procfs, in this process's.
            if actor.cgroup_id == 0 {
                actor.cgroup = Some(self.view.absolute(path));
            }
        } else if actor.cgroup_id != 0 {
            actor.cgroup = self.view.path_of(actor.cgroup_id);
        }
        if let Some(found) = actor.cgroup.as_deref().and_then(cgroup::parse) {
            if actor.container.is_none() {
                let named = |id| Container { id, name: None, image: None, image_digest: None };
                actor.container = found.container_id.map(named);
            }
            if actor.pod.is_none() {
                actor.pod = Some(self.pod(found.pod_uid));
            }
        }
        self.complete_actor(actor);
        if actor.exe_sha256.is_none() {
            actor.exe_sha256 = self.exes.of_process(&self.proc, actor);
        }
    }

    /// The pod an object belongs to, if its path is that of a pod's volume.
    pub fn target_of(&mut self, path: &HostPath) -> Option<Target> {
        let mut target = target_of(path, &self.layout.kubelet_root)?;
        let around = OnDisk { host_root: &self.host_root, kubelet_root: &self.layout.kubelet_root };
        let found = self.profiles.rule_of(path, &self.layout, &around);
        target.mesh = found.map(|found| found.profile.mesh.clone());
        self.complete(&mut target, Some(path));
        Some(target)
    }

    /// Puts in what disk and API tell of the target's pod, and of its container if that is known.
    pub fn complete(&mut self, target: &mut Target, path: Option<&HostPath>) {
        let Some(uid) = target.pod_uid.clone() else { return };
        let disk = self.on_disk(&uid);
        if disk.unclear {
            target.unclear = true;
            (target.namespace, target.pod, target.service_account) = (None, None, None);
        } else {
            if let Some((namespace, name)) = &disk.names {
                if let Some(source) = &mut target.source {
                    source.namespace = Some(namespace.clone());
                }
                target.namespace = Some(namespace.clone());
                target.pod = Some(name.clone());
            }
            if disk.service_account.is_some() {
                target.service_account.clone_from(&disk.service_account);
            }
            if let Some(facts) = api::believed(&self.api, &uid, disk.told()) {
                let at = path.and_then(|path| pods::volume_path(path, &self.layout.kubelet_root));
                api::target(&facts, target, at.as_ref());
            }
        }
        if target.mesh.is_none()
            && let Some(container) = &target.container
        {
            let mesh = self.profiles.mesh_of_container(container, target.image.as_deref());
            target.mesh = mesh.map(str::to_owned);
        }
    }

    /// What the disk tells of the pod that has this uid.
    pub fn pod(&mut self, uid: String) -> Pod {
        let OnNode { names, service_account, unclear } = self.on_disk(&uid);
        let (namespace, name) = names.unzip();
        Pod { uid, namespace, name, service_account, owner: None, unclear }
    }

    /// The pods of the node: those that the kubelet has a directory of, as the disk tells of them, and as the API does where the disk
    /// does not contradict it; and those that the API alone tells of. Counts what is contradictory.
    pub fn pods(&mut self, on_disk: &BTreeSet<String>) -> Vec<KubernetesPod> {
        let mut all: std::collections::BTreeMap<String, KubernetesPod> =
            self.api.pods().into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        for uid in on_disk {
            let disk = self.on_disk(uid);
            let believed = !disk.unclear && api::believed(&self.api, uid, disk.told()).is_some();
            let known = all.entry(uid.clone()).or_default();
            if !believed || known.contradictory {
                let (api, gone_from_api) = (known.api, known.gone_from_api);
                let contradictory = api || disk.unclear;
                *known = KubernetesPod { api, gone_from_api, contradictory, ..KubernetesPod::default() };
            }
            known.uid.clone_from(uid);
            known.disk = true;
            let (namespace, name) = disk.names.unzip();
            known.namespace = namespace.or(known.namespace.take());
            known.name = name.or(known.name.take());
            known.service_account = disk.service_account.or(known.service_account.take());
        }
        all.into_values().collect()
    }

    fn on_disk(&mut self, uid: &str) -> OnNode {
        let logged = self.pods.name_of(uid);
        match (logged, self.tokens.of(uid, &self.layout.kubelet_root)) {
            (Some(logged), Some(token)) if logged != token.names => {
                OnNode { unclear: true, ..OnNode::default() }
            }
            (logged, token) => {
                let (named, service_account) =
                    token.map(|token| (token.names, token.service_account)).unzip();
                OnNode { names: logged.or(named), service_account, unclear: false }
            }
        }
    }

    fn complete_actor(&self, actor: &mut Actor) {
        let Some(pod) = actor.pod.as_mut().filter(|pod| !pod.unclear) else { return };
        let names = pod.namespace.clone().zip(pod.name.clone());
        let disk = api::OnDisk { names: names.as_ref(), service_account: pod.service_account.as_deref() };
        if let Some(facts) = api::believed(&self.api, &pod.uid, disk) {
            api::actor(&facts, pod, actor.container.as_mut());
        }
    }

    /// The cgroup view, for others who read `/proc/PID/cgroup`.
    #[must_use]
    pub const fn view(&self) -> &CgroupView {
        &self.view
    }
}

/// What the node tells of a pod.
#[derive(Debug, Default)]
struct OnNode {
    names: Option<(String, String)>,
    service_account: Option<String>,
    /// Log directory and token name two different pods: one of them is forged, and neither is used.
    unclear: bool,
}

impl OnNode {
    fn told(&self) -> api::OnDisk<'_> {
        api::OnDisk { names: self.names.as_ref(), service_account: self.service_account.as_deref() }
    }
}

/// A path of the host below where the host's root is mounted.
#[must_use]
pub fn below_root(host_root: &Path, path: &HostPath) -> PathBuf {
    let relative = path.as_path().strip_prefix("/").unwrap_or(path.as_path());
    host_root.join(relative)
}
