//! Lawful writers inside pods: the agent of a proxy (pilot-agent, kuma-dp) that writes files of its own pod, and an
//! installer that writes files of the host.
//!
//! Such a writer is proven by where it runs and what it is, never by what it is called: it is the first process of its
//! container, as the runtime noted it; the container has the sealed name, in the very pod whose file is written; and
//! its executable is the one in that container's root, with the sealed hash. So a copy of the binary elsewhere, another
//! process of the container (`kubectl exec`), another container of the pod, and a process that only entered the
//! container's namespaces (`nsenter`) are not it. What was executed before and is now another program is told by the
//! inode that the kernel noted with the act.
//!
//! What this cannot prove: as for the kubelet ([`super::writers`]), code that was written into its memory.

use std::sync::Arc;

use crate::attribution::{ExeHashes, cgroup};
use crate::baseline::{self, Root};
use crate::inventory::containers::{self, NodeContainer};
use crate::inventory::departed::{Departed, Note};
use crate::inventory::inodes;
use crate::inventory::procs::Proc;
use crate::inventory::writers::Lawful;
use crate::model::{Actor, ExeHash, HostPath};

/// A writer inside pods, as a baseline declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodWriter<'w> {
    /// Its executable, as its container names it.
    pub exe: &'w HostPath,
    /// SHA-256 of its executable.
    pub sha256: &'w [u8; 32],
    /// Names of containers it may be the first process of.
    pub containers: &'w [String],
    /// Namespace of its pods, for files that are not its own pod's.
    pub namespace: Option<&'w str>,
}

/// Proves writers inside pods.
#[derive(Debug)]
pub struct InPods {
    root: Root,
    proc: Proc,
    hashes: ExeHashes,
    departed: Departed,
}

impl InPods {
    /// On the node whose root this is.
    #[must_use]
    pub fn new(root: Root, proc: Proc) -> Self {
        Self { root, proc, hashes: ExeHashes::default(), departed: Departed::default() }
    }

    /// Takes over what the accepted baselines declare.
    pub fn declare(&mut self, writers: impl IntoIterator<Item = Arc<baseline::PodWriter>>) {
        self.departed.declare(writers);
    }

    /// Looks which installers run, so that the last acts of one are known as its own when it is gone.
    pub fn look(&mut self) {
        self.departed.look(&self.root, &self.proc, &mut self.hashes);
    }

    /// Whether `actor` is that writer, for an object of the pod with that uid, or of the host.
    pub fn is_lawful(&mut self, actor: &Actor, writer: &PodWriter<'_>, pod_uid: Option<&str>) -> Lawful {
        let container = match self.container_of(actor) {
            Ok(container) => container,
            Err(other) => return other,
        };
        if let Some(reason) = misplaced(&container, writer, pod_uid) {
            return Lawful::No(reason);
        }
        let lawful = match self.first_process(actor, &container) {
            Lawful::Yes => self.is_sealed(actor, writer, &container),
            other => other,
        };
        if lawful == Lawful::Yes && writer.namespace.is_some() {
            // It may have come since this was looked for last, and be gone by the time its next act is judged.
            self.departed.remember(&self.root, &self.proc, &mut self.hashes, container);
        }
        lawful
    }

    fn container_of(&self, actor: &Actor) -> Result<NodeContainer, Lawful> {
        let Some(cgroup) = &actor.cgroup else {
            return Err(Lawful::Unknown("the actor's cgroup is not known".into()));
        };
        let id = cgroup::parse(cgroup).and_then(|found| Some((found.container_id?, found.pod_uid)));
        let Some((id, pod_uid)) = id else {
            return Err(Lawful::No(format!("runs in no container of a pod: {cgroup}")));
        };
        match containers::find(&self.root, &id) {
            Some(container) if container.pod_uid == pod_uid => Ok(container),
            Some(container) => {
                let told = container.pod_uid;
                Err(Lawful::No(format!("runs in the cgroup of pod {pod_uid}, in a container of pod {told}")))
            }
            None => match self.departed.get(&id) {
                Some(note) if note.container.pod_uid == pod_uid => Ok(note.container.clone()),
                _ => Err(Lawful::Unknown(format!("the runtime's notes on container {id} are not found"))),
            },
        }
    }

    /// The process that the runtime started the container with, not traced, in its own mount namespace.
    fn first_process(&self, actor: &Actor, container: &NodeContainer) -> Lawful {
        let note = self.departed.get(&container.id);
        let noted = note.map(|note| note.pid);
        let Some(first) = containers::first_pid(&self.root, container).or(noted) else {
            return Lawful::Unknown(format!("the first process of container {} is not noted", container.id));
        };
        if actor.tgid != first {
            let name = &container.name;
            return Lawful::No(format!("is not the first process of container {name}, which is pid {first}"));
        }
        if let Some(note) = note.filter(|note| note.pid == first) {
            return self.is_noted(actor, note);
        }
        // It may have ended since; the pid is then nobody's, and what the kernel noted stands.
        if let Ok(stat) = self.proc.stat(first) {
            let started = self.proc.ticks_to_ns(stat.start_ticks);
            if started.abs_diff(actor.start_boottime) > self.proc.tick_ns() {
                return Lawful::No(format!("pid {first} is another process by now"));
            }
        }
        match (actor.mount_ns, self.proc.mount_ns(first)) {
            (Some(acted), Some(now)) if acted != now => {
                return Lawful::No(format!(
                    "acted in mount namespace {acted}, not in its container's ({now})"
                ));
            }
            (None, _) => return Lawful::Unknown("the actor's mount namespace is not known".into()),
            _ => {}
        }
        if let Ok(status) = self.proc.status(first)
            && status.tracer != 0
        {
            return Lawful::No(format!("is traced by pid {}", status.tracer));
        }
        Lawful::Yes
    }

    /// The process that was noted while it ran, whoever has its pid by now.
    fn is_noted(&self, actor: &Actor, note: &Note) -> Lawful {
        let Note { pid, started, mount_ns, .. } = note;
        if started.abs_diff(actor.start_boottime) > self.proc.tick_ns() {
            return Lawful::No(format!(
                "is not the pid {pid} that container {} began with",
                note.container.name
            ));
        }
        match actor.mount_ns {
            Some(acted) if acted != *mount_ns => {
                Lawful::No(format!("acted in mount namespace {acted}, not in its container's ({mount_ns})"))
            }
            None => Lawful::Unknown("the actor's mount namespace is not known".into()),
            _ => self.is_untraced(*pid, *started),
        }
    }

    /// Nobody traces that process, if it is still there.
    fn is_untraced(&self, pid: u32, started: u64) -> Lawful {
        let same = self.proc.stat(pid).is_ok_and(|stat| self.proc.ticks_to_ns(stat.start_ticks) == started);
        match self.proc.status(pid) {
            Ok(status) if same && status.tracer != 0 => {
                Lawful::No(format!("is traced by pid {}", status.tracer))
            }
            _ => Lawful::Yes,
        }
    }

    /// Its executable is the container's own, and as sealed.
    fn is_sealed(&mut self, actor: &Actor, writer: &PodWriter<'_>, container: &NodeContainer) -> Lawful {
        match &actor.exe {
            Some(exe) if exe == writer.exe => {}
            Some(exe) => return Lawful::No(format!("is another executable than {}: {exe}", writer.exe)),
            None => return Lawful::Unknown("the actor's executable is not known".into()),
        }
        let known = actor.exe_sha256.as_ref().and_then(ExeHash::get).map(str::to_owned);
        let hash = known.or_else(|| {
            // It has executed another program since, or ended: the file in its container's root is still there, and is
            // it only if it is the inode that acted.
            let acted = actor.exe_inode?;
            if let Some(note) = self.departed.get(&container.id)
                && note.exe.0 == acted
            {
                return Some(note.exe.1.clone());
            }
            let path = container.rootfs.join(writer.exe.as_bytes().strip_prefix(b"/")?);
            let file = self.root.open_file(&path).ok()??;
            let meta = file.metadata().ok()?;
            let same = inodes::of(&file).ok() == Some(acted);
            same.then(|| self.hashes.of_file(file, &meta)).flatten()
        });
        match hash {
            Some(hash) if hash == hex::encode(writer.sha256) => Lawful::Yes,
            Some(hash) => Lawful::No(format!("its executable is not the sealed one: sha256 {hash}")),
            None => Lawful::Unknown(match (self.departed.get(&container.id), actor.exe_inode) {
                (Some(note), Some(acted)) => {
                    let noted = note.exe.0;
                    format!(
                        "ran inode {}:{}, noted is {}:{}, and neither can be read",
                        acted.dev, acted.ino, noted.dev, noted.ino
                    )
                }
                _ => "the hash of the actor's executable is not known".into(),
            }),
        }
    }
}

/// Why a container cannot be the writer's.
fn misplaced(container: &NodeContainer, writer: &PodWriter<'_>, pod_uid: Option<&str>) -> Option<String> {
    if !writer.containers.contains(&container.name) {
        let expected = writer.containers.join(", ");
        return Some(format!("runs in container {}, not in {expected}", container.name));
    }
    match (pod_uid, writer.namespace, &container.pod) {
        (_, Some(wanted), Some((namespace, _))) if wanted == namespace => None,
        (_, Some(wanted), pod) => {
            let namespace = pod.as_ref().map_or("unknown", |(namespace, _)| namespace);
            Some(format!("runs in a pod of namespace {namespace}, not of {wanted}"))
        }
        (Some(pod_uid), None, _) if pod_uid == container.pod_uid => None,
        (Some(pod_uid), None, _) => Some(format!("runs in pod {}, not in pod {pod_uid}", container.pod_uid)),
        (None, None, _) => Some("the object belongs to no pod".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::path::Path;

    use std::sync::Arc;

    use sha2::{Digest as _, Sha256};

    use super::{InPods, PodWriter};
    use crate::baseline::{self, Root};
    use crate::inventory::inodes;
    use crate::inventory::procs::Proc;
    use crate::inventory::writers::Lawful;
    use crate::model::{Actor, HostPath};

    const POD: &str = "01234567-89ab-cdef-0123-456789abcdef";
    const OTHER_POD: &str = "11111111-89ab-cdef-0123-456789abcdef";
    const BUNDLES: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io";
    const AGENT: &str = "/usr/local/bin/pilot-agent";
    const FIRST: u32 = 4242;

    /// A node with one pod: its proxy `a` and its application `b`, each with the same agent in its image.
    struct Node {
        dir: tempfile::TempDir,
        exe: HostPath,
        sha256: [u8; 32],
        containers: Vec<String>,
    }

    impl Node {
        fn new() -> Self {
            let node = Self {
                dir: tempfile::tempdir().unwrap(),
                exe: HostPath::from(AGENT),
                sha256: Sha256::digest(b"agent").into(),
                containers: vec!["istio-proxy".to_owned()],
            };
            node.container('a', POD, "istio-proxy", FIRST);
            node.container('b', POD, "app", 4300);
            node.process(FIRST, 987_600, 0);
            node.process(4300, 987_600, 0);
            for (pid, id) in [(FIRST, "a"), (4300, "b")] {
                let cgroup = format!("0::/../../pod{POD}/{}\n", id.repeat(64));
                fs::write(node.dir.path().join(format!("proc/{pid}/cgroup")), cgroup).unwrap();
            }
            node
        }

        fn container(&self, id: char, pod: &str, name: &str, first: u32) {
            let bundle = self.dir.path().join(BUNDLES).join(String::from(id).repeat(64));
            fs::create_dir_all(bundle.join("rootfs/usr/local/bin")).unwrap();
            fs::write(bundle.join("rootfs").join(AGENT.trim_start_matches('/')), "agent").unwrap();
            fs::write(bundle.join("init.pid"), first.to_string()).unwrap();
            let config = serde_json::json!({ "root": { "path": "rootfs" }, "annotations": {
                "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": name,
                "io.kubernetes.cri.sandbox-uid": pod, "io.kubernetes.cri.image-name": "i",
                "io.kubernetes.cri.sandbox-namespace": "mesh", "io.kubernetes.cri.sandbox-name": "p" } });
            fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        }

        fn process(&self, pid: u32, start_ticks: u64, tracer: u32) {
            let dir = self.dir.path().join("proc").join(pid.to_string());
            fs::create_dir_all(dir.join("ns")).unwrap();
            let stat = format!("{pid} (x) S 1 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {start_ticks} 1 2 3");
            fs::write(dir.join("stat"), stat).unwrap();
            let status =
                format!("Name:\tx\nTgid:\t{pid}\nPid:\t{pid}\nTracerPid:\t{tracer}\nUid:\t1337\t0\t0\t0\n");
            fs::write(dir.join("status"), status).unwrap();
            if !dir.join("ns/mnt").exists() {
                fs::write(dir.join("ns/mnt"), "").unwrap();
            }
        }

        fn proc(&self) -> Proc {
            Proc::new(self.dir.path().join("proc"))
        }

        fn agent(&self, id: char) -> std::path::PathBuf {
            let bundle = Path::new(BUNDLES).join(String::from(id).repeat(64));
            self.dir.path().join(bundle).join("rootfs").join(AGENT.trim_start_matches('/'))
        }

        /// The proxy's first process, whose executable is known by its inode alone.
        fn actor(&self) -> Actor {
            let mut actor = Proc::default().actor(std::process::id()).unwrap();
            actor.tgid = FIRST;
            actor.pid = FIRST;
            actor.start_boottime = self.proc().ticks_to_ns(987_600);
            actor.exe = Some(self.exe.clone());
            actor.exe_inode = inodes::at(&self.agent('a')).ok();
            actor.exe_sha256 = None;
            actor.cgroup = Some(format!("/kubepods/burstable/pod{POD}/{}", "a".repeat(64)));
            let namespace = self.dir.path().join(format!("proc/{FIRST}/ns/mnt"));
            actor.mount_ns = Some(fs::metadata(namespace).unwrap().ino());
            actor
        }

        /// The agent as what installs on the node.
        fn installer(&self) -> Arc<baseline::PodWriter> {
            Arc::new(baseline::PodWriter {
                name: "installer".to_owned(),
                exe: self.exe.clone(),
                sha256: self.sha256,
                containers: self.containers.clone(),
                namespace: Some("mesh".to_owned()),
            })
        }

        fn judge(&self, actor: &Actor, pod: Option<&str>) -> Lawful {
            self.judge_in(actor, None, pod)
        }

        fn judge_in(&self, actor: &Actor, namespace: Option<&str>, pod: Option<&str>) -> Lawful {
            let writer =
                PodWriter { exe: &self.exe, sha256: &self.sha256, containers: &self.containers, namespace };
            let root = Root::open(self.dir.path()).unwrap();
            InPods::new(root, self.proc()).is_lawful(actor, &writer, pod)
        }
    }

    fn of(declared: &baseline::PodWriter) -> PodWriter<'_> {
        PodWriter {
            exe: &declared.exe,
            sha256: &declared.sha256,
            containers: &declared.containers,
            namespace: declared.namespace.as_deref(),
        }
    }

    fn no(reason: &str) -> Lawful {
        Lawful::No(reason.to_owned())
    }

    #[test]
    fn the_agent_of_the_pod_itself_is_lawful() {
        let node = Node::new();
        let mut actor = node.actor();
        assert_eq!(node.judge(&actor, Some(POD)), Lawful::Yes);
        // By the hash that was taken of it while it ran; where its file lies now does not matter.
        actor.exe_sha256 = Some(hex::encode(node.sha256).into());
        actor.exe_inode = None;
        assert_eq!(node.judge(&actor, Some(POD)), Lawful::Yes);
        // It ended since.
        fs::remove_dir_all(node.dir.path().join("proc")).unwrap();
        assert_eq!(node.judge(&node_actor_without_proc(&actor), Some(POD)), Lawful::Yes);
    }

    fn node_actor_without_proc(actor: &Actor) -> Actor {
        Actor { mount_ns: Some(1), ..actor.clone() }
    }

    #[test]
    fn an_installer_that_is_gone_is_known_by_what_it_was() {
        let node = Node::new();
        let declared = node.installer();
        let mut in_pods = InPods::new(Root::open(node.dir.path()).unwrap(), node.proc());
        in_pods.declare([Arc::clone(&declared)]);
        in_pods.look();
        let actor = node.actor();
        // Its process, and what its container lived by; its pid is another's soon.
        fs::remove_dir_all(node.dir.path().join(BUNDLES)).unwrap();
        fs::remove_dir_all(node.dir.path().join("proc")).unwrap();
        node.process(FIRST, 999_999, 77);
        in_pods.look();
        let mut judge = |actor: &Actor| in_pods.is_lawful(actor, &of(&declared), None);
        assert_eq!(judge(&actor), Lawful::Yes);
        let later = Actor { start_boottime: node.proc().ticks_to_ns(999_999), ..actor.clone() };
        assert_eq!(judge(&later), no("is not the pid 4242 that container istio-proxy began with"));
        let elsewhere = Actor { mount_ns: Some(1), ..actor.clone() };
        assert!(
            matches!(judge(&elsewhere), Lawful::No(reason) if reason.starts_with("acted in mount namespace 1"))
        );
        let other = Actor { exe_inode: None, ..actor.clone() };
        assert_eq!(judge(&other), Lawful::Unknown("the hash of the actor's executable is not known".into()));
        let child = Actor { tgid: 4500, pid: 4500, ..actor };
        assert_eq!(judge(&child), no("is not the first process of container istio-proxy, which is pid 4242"));
    }

    #[test]
    fn an_installer_is_noted_by_its_first_act_or_when_its_bundle_is_written() {
        let node = Node::new();
        let declared = node.installer();
        for by_its_act in [true, false] {
            let node = Node::new();
            let config = node.dir.path().join(BUNDLES).join("a".repeat(64)).join("config.json");
            let written = fs::read(&config).unwrap();
            let mut in_pods = InPods::new(Root::open(node.dir.path()).unwrap(), node.proc());
            in_pods.declare([Arc::clone(&declared)]);
            fs::write(&config, &written[..written.len() / 2]).unwrap();
            in_pods.look();
            fs::write(&config, &written).unwrap();
            let actor = node.actor();
            if by_its_act {
                assert_eq!(in_pods.is_lawful(&actor, &of(&declared), None), Lawful::Yes);
            } else {
                in_pods.look();
            }
            fs::remove_dir_all(node.dir.path().join(BUNDLES)).unwrap();
            assert_eq!(
                in_pods.is_lawful(&actor, &of(&declared), None),
                Lawful::Yes,
                "by its act: {by_its_act}"
            );
        }
    }

    #[test]
    fn a_copy_of_its_binary_is_not() {
        let node = Node::new();
        let mut actor = node.actor();
        let copy = node.dir.path().join("copy");
        fs::write(&copy, "agent").unwrap();
        actor.exe_inode = inodes::at(&copy).ok();
        assert_eq!(
            node.judge(&actor, Some(POD)),
            Lawful::Unknown("the hash of the actor's executable is not known".into())
        );
        actor.exe = Some(HostPath::from("/tmp/pilot-agent"));
        actor.exe_sha256 = Some(hex::encode(node.sha256).into());
        assert_eq!(
            node.judge(&actor, Some(POD)),
            no("is another executable than /usr/local/bin/pilot-agent: /tmp/pilot-agent")
        );
    }

    #[test]
    fn nor_is_another_program_by_its_name() {
        let node = Node::new();
        let mut actor = node.actor();
        actor.comm = "pilot-agent".into();
        actor.exe = Some(HostPath::from("/bin/sh"));
        assert_eq!(
            node.judge(&actor, Some(POD)),
            no("is another executable than /usr/local/bin/pilot-agent: /bin/sh")
        );
        // Other bytes in its place, in the container's own layer.
        fs::write(node.agent('a'), "other").unwrap();
        let other = hex::encode(Sha256::digest(b"other"));
        assert_eq!(
            node.judge(&node.actor(), Some(POD)),
            no(&format!("its executable is not the sealed one: sha256 {other}"))
        );
    }

    #[test]
    fn nor_another_process_of_its_container() {
        let node = Node::new();
        let mut actor = node.actor();
        (actor.tgid, actor.pid) = (4500, 4500);
        let reason = "is not the first process of container istio-proxy, which is pid 4242";
        assert_eq!(node.judge(&actor, Some(POD)), no(reason));
        // The pid is another process's by now.
        node.process(FIRST, 999_999, 0);
        assert_eq!(node.judge(&node.actor(), Some(POD)), no("pid 4242 is another process by now"));
        node.process(FIRST, 987_600, 77);
        assert_eq!(node.judge(&node.actor(), Some(POD)), no("is traced by pid 77"));
    }

    #[test]
    fn nor_another_container_or_pod() {
        let node = Node::new();
        let mut actor = node.actor();
        actor.tgid = 4300;
        actor.cgroup = Some(format!("/kubepods/burstable/pod{POD}/{}", "b".repeat(64)));
        assert_eq!(node.judge(&actor, Some(POD)), no("runs in container app, not in istio-proxy"));
        let reason = format!("runs in pod {POD}, not in pod {OTHER_POD}");
        assert_eq!(node.judge(&node.actor(), Some(OTHER_POD)), no(&reason));
        assert_eq!(node.judge(&node.actor(), None), no("the object belongs to no pod"));
        // A cgroup that was made below another pod's.
        let mut actor = node.actor();
        actor.cgroup = Some(format!("/kubepods/burstable/pod{OTHER_POD}/{}", "a".repeat(64)));
        let reason = format!("runs in the cgroup of pod {OTHER_POD}, in a container of pod {POD}");
        assert_eq!(node.judge(&actor, Some(OTHER_POD)), no(&reason));
    }

    #[test]
    fn nor_who_only_entered_its_namespaces() {
        let node = Node::new();
        let mut actor = node.actor();
        // nsenter from the host: the container's binary in the container's mounts, but not in its cgroup.
        actor.cgroup = Some("/system.slice/ssh.service".into());
        let reason = "runs in no container of a pod: /system.slice/ssh.service";
        assert_eq!(node.judge(&actor, Some(POD)), no(reason));
        // The agent itself, in another mount namespace.
        let mut actor = node.actor();
        let now = actor.mount_ns.replace(7).unwrap();
        let reason = format!("acted in mount namespace 7, not in its container's ({now})");
        assert_eq!(node.judge(&actor, Some(POD)), no(&reason));
    }

    #[test]
    fn what_is_not_known_proves_nothing() {
        let node = Node::new();
        let unknown = |actor: &Actor, reason: &str| {
            assert_eq!(node.judge(actor, Some(POD)), Lawful::Unknown(reason.to_owned()));
        };
        unknown(&Actor { cgroup: None, ..node.actor() }, "the actor's cgroup is not known");
        unknown(&Actor { exe: None, ..node.actor() }, "the actor's executable is not known");
        let reason = "the hash of the actor's executable is not known";
        unknown(&Actor { exe_inode: None, ..node.actor() }, reason);
        unknown(&Actor { mount_ns: None, ..node.actor() }, "the actor's mount namespace is not known");
        let bundle = node.dir.path().join(BUNDLES).join("a".repeat(64));
        fs::remove_file(bundle.join("init.pid")).unwrap();
        let id = "a".repeat(64);
        unknown(&node.actor(), &format!("the first process of container {id} is not noted"));
        // A note that leads elsewhere is none.
        symlink("/etc/hostname", bundle.join("init.pid")).unwrap();
        unknown(&node.actor(), &format!("the first process of container {id} is not noted"));
        fs::remove_file(bundle.join("config.json")).unwrap();
        unknown(&node.actor(), &format!("the runtime's notes on container {id} are not found"));
    }

    #[test]
    fn an_installer_is_bound_to_its_namespace() {
        let node = Node::new();
        assert_eq!(node.judge_in(&node.actor(), Some("mesh"), None), Lawful::Yes);
        let reason = "runs in a pod of namespace mesh, not of istio-system";
        assert_eq!(node.judge_in(&node.actor(), Some("istio-system"), None), no(reason));
        assert_eq!(node.judge_in(&node.actor(), Some("istio-system"), Some(POD)), no(reason));
    }
}
