use serde::{Deserialize, Serialize};

use super::{ExeHash, HostPath, InodeKey, Time};

/// The process that acted, as it was at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Thread id in the initial pid namespace (the kernel's `pid`).
    pub pid: u32,
    /// Process id in the initial pid namespace (the kernel's `tgid`).
    pub tgid: u32,
    /// Process id of the parent.
    pub ppid: u32,
    /// Real uid in the initial user namespace (`real_cred`, which an overlay's override does not touch).
    pub uid: u32,
    /// `task_struct.comm`, lossy UTF-8.
    pub comm: String,
    /// Path of the executable as its own mount namespace names it; `None` where unknown (a kernel thread).
    pub exe: Option<HostPath>,
    /// Hex SHA-256 of the executable, where it was hashed.
    #[serde(skip_serializing_if = "ExeHash::is_unknown", default)]
    pub exe_sha256: Option<ExeHash>,
    /// Whether it is a thread by which the kernel carries out what the process submitted to an io_uring; not part of the record.
    #[serde(skip)]
    pub is_io_worker: bool,
    /// The executable's inode, for judging; not part of the record.
    #[serde(skip)]
    pub exe_inode: Option<InodeKey>,
    /// Arguments joined by blanks, bounded and redacted.
    pub cmdline: String,
    /// When the process started.
    pub start_time: Option<Time>,
    /// Start in nanoseconds since boot, to tell a reused pid; not part of the record.
    #[serde(skip)]
    pub start_boottime: u64,
    /// Path in the cgroup hierarchy.
    pub cgroup: Option<String>,
    /// cgroup v2 id as the kernel gives it, 0 if unknown; not part of the record.
    #[serde(skip)]
    pub cgroup_id: u64,
    /// Inode number of the mount namespace.
    pub mount_ns: Option<u64>,
    /// The container it runs in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<Container>,
    /// The pod it runs in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<Pod>,
}

impl Actor {
    /// What is not known of it, though it is named.
    #[must_use]
    pub fn unknown(&self) -> Option<&'static str> {
        /// `kthreadd`, which has no executable either.
        const KERNEL: u32 = 2;
        let kernels = self.is_io_worker || self.tgid == KERNEL || self.ppid == KERNEL;
        match (self.exe.is_none() && !kernels, self.cgroup.is_none()) {
            (false, false) => None,
            (true, false) => {
                Some("its executable is not known: it ended, or executed something, while it was read")
            }
            (false, true) => {
                Some("its cgroup is not known, nor its pod therefore: it ended while it was read")
            }
            (true, true) => Some(
                "neither its executable nor its cgroup, nor its pod therefore, is known: it ended while it was read",
            ),
        }
    }

    /// Whether both are one process: no process id is given out again within the time that two tellings of one start may differ by.
    /// What the journal tells has wall-clock time alone, which may have been set meanwhile by a little; `/proc` tells ticks.
    #[must_use]
    pub fn is_same_process(&self, other: &Self) -> bool {
        /// In nanoseconds: a tick of the kernel's clock (`CONFIG_HZ` of 100).
        const TICK: u64 = 10_000_000;
        /// In nanoseconds.
        const SET_BY: u64 = 1_000_000_000;
        let started = match (self.start_boottime, other.start_boottime) {
            (0, _) | (_, 0) => match (self.start_time, other.start_time) {
                (Some(one), Some(another)) => one.0.abs_diff(another.0) <= SET_BY,
                (None, None) => true,
                _ => false,
            },
            (one, another) => one.abs_diff(another) <= TICK,
        };
        self.tgid == other.tgid && started
    }

    /// Whether it is one of the threads by which the kernel carries out what was submitted to an io_uring. Kernels
    /// before 5.12 have processes of their own for it, children of `kthreadd`; later ones, threads of the submitter.
    #[must_use]
    pub fn is_io_worker(&self) -> bool {
        const NAMES: [&str; 3] = ["io_wqe_worker", "io_wq_manager", "io_uring-sq"];
        self.is_io_worker || self.is_kernel_thread() && NAMES.iter().any(|name| self.comm.starts_with(name))
    }

    /// Whether it is a thread by which the kernel writes to a file that a loop device is made of (`drivers/block/loop.c`): one for each device
    /// before 5.15, then common workers, whose writes pass no hook since 6.12 or before.
    #[must_use]
    pub fn is_loop_worker(&self) -> bool {
        let number = self.comm.strip_prefix("loop").unwrap_or_default();
        let numbered = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        self.is_kernel_thread() && (numbered || self.comm.starts_with("kworker/"))
    }

    /// Whether it is the kernel's own.
    #[must_use]
    pub const fn is_kernel_thread(&self) -> bool {
        const KTHREADD: u32 = 2;
        self.pid == self.tgid && self.ppid == KTHREADD
    }

    /// Whether this I/O worker may act for `submitter`: it is its thread, or borrows its memory.
    #[must_use]
    pub fn works_for(&self, submitter: &Self) -> bool {
        let own = if self.pid == self.tgid {
            self.exe_inode.is_some()
                && self.exe_inode == submitter.exe_inode
                && self.cmdline == submitter.cmdline
        } else {
            self.tgid == submitter.tgid
        };
        own && self.is_io_worker() && !submitter.is_io_worker()
    }
}

/// A container, by what the cgroup or the runtime tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Name in the pod, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Its image as the pod names it, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<String>,
    /// Its image as the kubelet reports it, where known: `<repository>@sha256:...`, or a digest alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_digest: Option<String>,
}

/// What controls a pod: a workload, as far up as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// `Deployment`, `StatefulSet`, ...
    pub kind: String,
    /// Its name, in the pod's namespace.
    pub name: String,
}

/// A pod, by what the cgroup or the API tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Pod uid (a static pod's config hash).
    pub uid: String,
    /// Namespace, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub namespace: Option<String>,
    /// Name, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Service account, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service_account: Option<String>,
    /// What controls it, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<Owner>,
    /// What the node tells of it contradicts itself: nothing but the uid is said.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub unclear: bool,
}

/// Whose object it is: the pod acted upon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Namespace of the pod.
    pub namespace: Option<String>,
    /// Name of the pod.
    pub pod: Option<String>,
    /// Uid of the pod.
    pub pod_uid: Option<String>,
    /// Container the object is mounted in, where it is one.
    pub container: Option<String>,
    /// Service account of the pod.
    pub service_account: Option<String>,
    /// What controls the pod, where known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<Owner>,
    /// `istio`, `linkerd`, ...
    pub mesh: Option<String>,
    /// The container's image as the pod names it.
    pub image: Option<String>,
    /// The container's image as the kubelet reports it: `<repository>@sha256:...`, or a digest alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_digest: Option<String>,
    /// The volume it is in, as the pod names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub volume: Option<String>,
    /// Where the content comes from.
    pub source: Option<Source>,
    /// What the node tells of the pod contradicts itself: of the pod nothing but the uid is said.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub unclear: bool,
}

/// The API object a volume's content comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// `ConfigMap`, `Secret`, ..., as the volume's directory tells it; what the API tells where it does.
    pub kind: String,
    /// Namespace, where known.
    pub namespace: Option<String>,
    /// The object's name, where the API or the signed baseline tells it. Never the volume's: that is [`Target::volume`].
    pub name: Option<String>,
    /// Uid, where known.
    pub uid: Option<String>,
    /// Resource version, where known.
    pub resource_version: Option<String>,
    /// `<kind>/<name>` of each source of a projected volume, where the file may be of several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub projected: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::Actor;
    use crate::inventory::procs::Proc;
    use crate::model::Time;

    #[test]
    fn a_process_is_told_from_another_that_has_its_number() {
        let one = Proc::default().actor(std::process::id()).unwrap();
        let other = |change: &dyn Fn(&mut Actor)| {
            let mut other = one.clone();
            change(&mut other);
            one.is_same_process(&other)
        };
        assert!(other(&|_| {}));
        assert!(!other(&|other| other.tgid += 1));
        assert!(!other(&|other| other.start_boottime += 2_000_000_000));
        // By the kernel to the nanosecond, and by the journal in wall-clock time.
        assert!(other(&|other| other.start_boottime += 9_000_000));
        let journal = |by: i64| {
            other(&|other| {
                other.start_boottime = 0;
                other.start_time = other.start_time.map(|at| Time(at.0 + by));
            })
        };
        assert!(journal(1_000_000));
        assert!(!journal(5_000_000_000));
    }
}
