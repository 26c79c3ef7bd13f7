//! What the API told of cluster and node, kept over a restart: scopes of baselines must hold from boot, when no API answers yet.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::known::Cluster;
use crate::baseline::remove_left_over;

/// Longest file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The file it is kept in.
#[derive(Debug, Clone)]
pub struct Remembered {
    file: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    node: String,
    cluster_uid: Option<String>,
    node_labels: Option<BTreeMap<String, String>>,
}

impl Remembered {
    /// In the agent's state directory, which is root's own.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join("cluster.json") }
    }

    /// What was last known of this node. A file of another node, as on a copied disk, counts for nothing.
    #[must_use]
    pub fn read(&self, node: &str) -> Cluster {
        let text = crate::baseline::read_bounded(&self.file, FILE_MAX).ok();
        let kept: Option<Kept> = text.and_then(|text| serde_json::from_slice(&text).ok());
        kept.filter(|kept| kept.node == node)
            .map(|kept| Cluster { uid: kept.cluster_uid, labels: kept.node_labels })
            .unwrap_or_default()
    }

    /// Keeps it, whole or not at all.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn write(&self, node: &str, cluster: &Cluster) -> std::io::Result<()> {
        let kept = Kept {
            node: node.to_owned(),
            cluster_uid: cluster.uid.clone(),
            node_labels: cluster.labels.clone(),
        };
        let new = self.file.with_extension("new");
        remove_left_over(&new)?;
        let mut file = fs::File::create_new(&new)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        file.sync_all()?;
        fs::rename(new, &self.file)
    }
}

/// What the fuzzers give to the reader of the file.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(serde_json::from_slice::<Kept>(bytes).is_ok());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Cluster, Remembered};

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let dir = tempfile::tempdir().unwrap();
        for name in ["cluster.json", "cluster.new"] {
            mknodat(CWD, dir.path().join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        let remembered = Remembered::new(dir.path());
        assert_eq!(remembered.read("n"), Cluster::default());
        let cluster = Cluster { uid: Some("u".to_owned()), labels: None };
        remembered.write("n", &cluster).unwrap();
        assert_eq!(remembered.read("n"), cluster);
    }

    #[test]
    fn it_is_kept_for_this_node_alone() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(dir.path());
        assert_eq!(remembered.read("n"), Cluster::default());
        let labels = BTreeMap::from([("pool".to_owned(), "edge".to_owned())]);
        let cluster = Cluster { uid: Some("u".to_owned()), labels: Some(labels) };
        remembered.write("n", &cluster).unwrap();
        assert_eq!(remembered.read("n"), cluster);
        assert_eq!(remembered.read("other"), Cluster::default());
        std::fs::write(dir.path().join("cluster.json"), "{").unwrap();
        assert_eq!(remembered.read("n"), Cluster::default());
    }
}
