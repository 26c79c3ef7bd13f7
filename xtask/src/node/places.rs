//! Where the node lies on the machine. As far as they are free it takes the directories that any node has, so that scripts, profiles and
//! manifests find what they expect; each directory taken is written down first and removed at the end.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// All that the node keeps beside the usual places.
pub(crate) const WORK: &str = "/var/lib/meshseal-node";
/// The node's address, in its own network.
pub(crate) const ADDRESS: &str = "10.250.0.1";
pub(crate) const NODE: &str = "node1";

/// What the manifests' hostPath volumes are on this machine.
const AGENT: [&str; 2] = ["/var/lib/meshseal", "/run/meshseal"];
/// What the kubelet, the runtime, CNI and Istio's plugin leave behind.
const TRACES: [&str; 4] = ["/var/lib/cni", "/var/log/pods", "/var/log/containers", "/run/istio-cni"];

#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) work: PathBuf,
    pub(crate) kubelet: PathBuf,
    pub(crate) cni: PathBuf,
    /// Of the CNI plugins.
    pub(crate) cni_bin: PathBuf,
    pub(crate) containerd_root: PathBuf,
    pub(crate) containerd_state: PathBuf,
}

impl Places {
    /// Chooses the directories and writes down those that are this run's to remove.
    pub(crate) fn choose() -> Result<Self> {
        let work = PathBuf::from(WORK);
        fs::create_dir_all(work.join("log")).with_context(|| format!("cannot create {WORK}"))?;
        for dir in AGENT {
            if !is_free(Path::new(dir))? {
                bail!(
                    "{dir} is in use: the node's agent would mix with the one that is there; move it away, or use --guest"
                );
            }
        }
        let usual = |usual: &str, own: &str| -> Result<PathBuf> {
            let usual = PathBuf::from(usual);
            Ok(if is_free(&usual)? { usual } else { work.join(own) })
        };
        let places = Self {
            kubelet: usual("/var/lib/kubelet", "kubelet")?,
            cni: usual("/etc/cni/net.d", "cni")?,
            cni_bin: usual("/opt/cni/bin", "cni-bin")?,
            containerd_root: usual("/var/lib/containerd", "containerd")?,
            containerd_state: usual("/run/containerd", "containerd-state")?,
            work,
        };
        let mut owned = String::new();
        let chosen = [
            &places.kubelet,
            &places.cni,
            &places.cni_bin,
            &places.containerd_root,
            &places.containerd_state,
        ];
        for dir in chosen {
            owned.push_str(&format!("{}\n", dir.display()));
        }
        for dir in AGENT.iter().chain(&TRACES) {
            if is_free(Path::new(dir))? {
                owned.push_str(&format!("{dir}\n"));
            }
        }
        places.note("owned", &owned)?;
        places.note("netns-before", &network_namespaces()?.join("\n"))?;
        for dir in chosen {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(places)
    }

    fn note(&self, name: &str, text: &str) -> Result<()> {
        let path = self.work.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.containerd_state.join("containerd.sock")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.work.join("admin.kubeconfig")
    }
}

/// Whether nothing is there: no such directory, or one in which there are empty directories at most.
fn is_free(path: &Path) -> Result<bool> {
    match fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot read {}", path.display()))?;
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if !is_dir || !is_free(&entry.path())? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The names of the machine's network namespaces.
pub(crate) fn network_namespaces() -> Result<Vec<String>> {
    match fs::read_dir("/run/netns") {
        Ok(entries) => {
            Ok(entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context("cannot read /run/netns"),
    }
}

#[cfg(test)]
mod tests {
    use super::is_free;

    #[test]
    fn empty_directories_are_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_free(&dir.path().join("not there")).unwrap());
        std::fs::create_dir_all(dir.path().join("runc/k8s.io")).unwrap();
        assert!(is_free(dir.path()).unwrap());
        std::fs::write(dir.path().join("runc/k8s.io/state.json"), "{}").unwrap();
        assert!(!is_free(dir.path()).unwrap());
    }
}
