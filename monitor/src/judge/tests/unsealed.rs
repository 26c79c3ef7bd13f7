//! Mesh files that no baseline covers, as the judge tells of them.

use std::sync::Arc;

use super::{Bench, bench};
use crate::judge::{Command, MeshFiles};
use crate::model::{HostPath, RecordBody, Severity};

impl Bench {
    async fn finds(&self, paths: &[&str], truncated: bool) {
        let paths = paths.iter().map(|path| HostPath::from(*path)).collect();
        *self.world.mesh_files.lock().unwrap() = Arc::new(MeshFiles { paths, truncated });
        self.commands.send(Command::Inventory).await.unwrap();
    }

    async fn unsealed(&mut self) -> (Vec<String>, bool) {
        loop {
            for draft in self.drafts.recv().await.unwrap() {
                if let RecordBody::ObjectUnsealed { objects, truncated, .. } = draft.body {
                    assert_eq!(draft.severity, Severity::Low);
                    return (objects.iter().map(ToString::to_string).collect(), truncated);
                }
            }
        }
    }
}

#[tokio::test]
async fn what_no_baseline_covers_is_told_once() {
    let mut bench = bench().await;
    // `/d` is sealed with its names: what lies in it is covered.
    bench.finds(&["/d/a", "/d/x/y", "/etc/cni/net.d/10-x"], false).await;
    assert_eq!(bench.unsealed().await, (vec!["/etc/cni/net.d/10-x".to_owned()], false));
    bench.finds(&["/etc/cni/net.d/10-x"], false).await;
    bench.finds(&["/etc/cni/net.d/10-x", "/opt/cni/bin/y"], true).await;
    assert_eq!(bench.unsealed().await, (vec!["/opt/cni/bin/y".to_owned()], true));
    let status = bench.status().await;
    assert_eq!((status.objects.unsealed, status.objects.unsealed_truncated), (2, true));
}
