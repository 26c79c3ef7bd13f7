//! Chains of CNI plugins: what a change means is told, however it was made.

use super::Bench;
use crate::model::{HostPath, Operation, RecordBody, RenamedTo, ViolationKind};

fn chain(name: &str, plugins: &[&str]) -> String {
    let plugins: Vec<String> = plugins.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
    format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{}]}}"#, plugins.join(","))
}

impl Bench {
    /// Stops the judge and tells its violations: kind, name, detail.
    pub(super) async fn told(mut self) -> Vec<(ViolationKind, String, String)> {
        self.stop.cancel();
        while self.judge.join_next().await.is_some() {}
        let mut told = Vec::new();
        while let Ok(batch) = self.drafts.try_recv() {
            told.extend(batch.into_iter().filter_map(|draft| match draft.body {
                RecordBody::ViolationOpened(opened) => {
                    let name = String::from_utf8_lossy(opened.object.path.name()).into_owned();
                    Some((opened.violation, name, opened.detail.unwrap_or_default()))
                }
                _ => None,
            }));
        }
        told
    }
}

#[tokio::test]
async fn a_way_around_the_mesh_is_told_however_it_is_made() {
    let files = ["/net/10-a.conflist", "/net/20-b.conflist", "/net/30-c.conflist"];
    let make = |root: &std::path::Path| {
        std::fs::create_dir(root.join("net")).unwrap();
        for file in files {
            let file = root.join(file.trim_start_matches('/'));
            std::fs::write(file, chain("n", &["bridge", "istio-cni"])).unwrap();
        }
    };
    let bench = Bench::new(make, &[&["/net"][..], &files].concat()).await;
    let (replaced, removed) = (bench.slot("/net/20-b.conflist"), bench.slot("/net/30-c.conflist"));

    std::fs::write(bench.path("/net/10-a.conflist"), chain("n", &["bridge"])).unwrap();
    bench.see("sed", Operation::Write, "/net/10-a.conflist", |_| {}).await;

    std::fs::write(bench.path("/new"), chain("n", &["istio-cni", "bridge"])).unwrap();
    std::fs::rename(bench.path("/new"), bench.path("/net/20-b.conflist")).unwrap();
    bench
        .see("mv", Operation::Rename, "/net", |seen| {
            seen.path_in_fs = Some(HostPath::from("/new"));
            seen.renamed_to = Some(RenamedTo::new(seen.slot, b"20-b.conflist".to_vec()));
            seen.replaced_slot = Some(replaced);
        })
        .await;

    std::fs::remove_file(bench.path("/net/30-c.conflist")).unwrap();
    bench
        .see("rm", Operation::Unlink, "/net", |seen| {
            seen.name = Some(b"30-c.conflist".to_vec());
            seen.child_slot = Some(removed);
        })
        .await;

    std::fs::write(bench.path("/net/00-z.conf"), "{}").unwrap();
    bench
        .see("cp", Operation::Create, "/net", |seen| {
            seen.name = Some(b"00-z.conf".to_vec());
        })
        .await;

    let bypass = "pods that start from now on may bypass the mesh";
    let told = bench.told().await;
    let said = |kind, name: &str| {
        let found: Vec<&str> = told
            .iter()
            .filter(|(of, at, _)| *of == kind && at == name)
            .map(|(_, _, detail)| detail.as_str())
            .collect();
        assert_eq!(found.len(), 1, "{kind:?} {name}: {told:?}");
        found[0].to_owned()
    };
    assert_eq!(
        said(ViolationKind::Content, "10-a.conflist"),
        format!("plugin istio-cni removed from the chain; {bypass}")
    );
    let replaced = said(ViolationKind::Replaced, "20-b.conflist");
    assert!(replaced.ends_with(&format!("plugins of the chain reordered; {bypass}")), "{replaced}");
    assert_eq!(
        said(ViolationKind::Removed, "30-c.conflist"),
        format!("the chain with plugin istio-cni is gone; {bypass}")
    );
    assert_eq!(
        said(ViolationKind::Unexpected, "00-z.conf"),
        format!("sorts before 10-a.conflist: the runtime takes it instead, and {bypass}")
    );
    assert_eq!(told.len(), 4, "{told:?}");
}
