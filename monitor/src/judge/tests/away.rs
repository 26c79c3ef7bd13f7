//! What an installer takes away when it ends, and puts back when it has come again.

use super::{Bench, Root, sealed};
use crate::model::{HostPath, Operation, ViolationKind};
use crate::status::Posture;

const CHAIN: &str = r#"{"name":"n","plugins":[{"type":"ptp"},{"type":"istio-cni"}]}"#;
const WITHOUT: &str = r#"{"name":"n","plugins":[{"type":"ptp"}]}"#;

fn make(root: &std::path::Path) {
    std::fs::create_dir(root.join("installed")).unwrap();
    std::fs::write(root.join("installed/plugin"), "plugin").unwrap();
    std::fs::write(root.join("installed/10-a.conflist"), CHAIN).unwrap();
}

/// A plugin and a chain of its installer's.
async fn bench() -> Bench {
    Bench::new(make, &["/installed/plugin", "/installed/10-a.conflist"]).await
}

impl Bench {
    async fn removes(&self, comm: &str, file: &str) {
        std::fs::remove_file(self.path(file)).unwrap();
        self.see(comm, Operation::Unlink, file, |_| {}).await;
    }

    async fn renames(&self, comm: &str, content: &str, file: &str) {
        std::fs::write(self.path("/new"), content).unwrap();
        std::fs::rename(self.path("/new"), self.path(file)).unwrap();
        self.see(comm, Operation::Rename, file, |seen| seen.path_in_fs = Some(HostPath::from("/new"))).await;
    }

    pub(super) async fn is_soon(&self, wanted: Posture) {
        for _ in 0..200 {
            if self.status().await.posture == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("never {wanted:?}");
    }
}

#[tokio::test]
async fn what_comes_again_is_no_violation_and_meanwhile_the_node_is_not_intact() {
    let bench = bench().await;
    bench.is_soon(Posture::Intact).await;
    bench.removes("installer", "/installed/plugin").await;
    bench.renames("installer", WITHOUT, "/installed/10-a.conflist").await;
    bench.is_soon(Posture::Uncertain).await;
    bench.renames("installer", "plugin", "/installed/plugin").await;
    bench.renames("installer", CHAIN, "/installed/10-a.conflist").await;
    bench.is_soon(Posture::Intact).await;
    assert_eq!(bench.told().await, []);
}

#[tokio::test]
async fn what_is_unmounted_elsewhere_meanwhile_ends_no_wait() {
    let make = |root: &std::path::Path| {
        make(root);
        std::fs::write(root.join("installed/other"), "other").unwrap();
    };
    let all = ["/installed/plugin", "/installed/10-a.conflist", "/installed/other"];
    let bench = Bench::new(make, &all).await;
    bench.is_soon(Posture::Intact).await;
    bench.removes("installer", "/installed/plugin").await;
    bench.renames("installer", WITHOUT, "/installed/10-a.conflist").await;
    bench.is_soon(Posture::Uncertain).await;
    // The container of the next installer is made, which takes the root of the host away from itself.
    bench.see("runc", Operation::Umount, "/", |_| {}).await;
    let other = bench.path("/installed/other");
    std::fs::set_permissions(other, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    bench.see("chmod", Operation::Setattr, "/installed/other", |_| {}).await;
    bench.is_soon(Posture::Violated).await;
    bench.renames("installer", "plugin", "/installed/plugin").await;
    bench.renames("installer", CHAIN, "/installed/10-a.conflist").await;
    assert_eq!(bench.verdicts().await, ["opened Attributes /installed/other Setattr chmod"]);
}

#[tokio::test]
async fn what_does_not_is_told_with_who_took_it_away() {
    let bench = bench().await;
    bench.removes("installer", "/installed/plugin").await;
    bench.is_soon(Posture::Violated).await;
    let told = bench.verdicts().await;
    assert_eq!(told, ["opened Removed /installed/plugin Unlink installer"]);
}

impl Bench {
    /// It is sealed, and was taken away before the judge heard of it, as by an installer that is not back when the agent starts.
    async fn begins_without(&self, file: &str) {
        let all = ["/installed/10-a.conflist", file];
        self.accept_after(&all, 2, || std::fs::remove_file(self.path(file)).unwrap()).await;
    }
}

#[tokio::test]
async fn what_is_away_when_the_agent_starts_may_come_again() {
    let bench = Bench::new(make, &["/installed/10-a.conflist"]).await;
    bench.begins_without("/installed/plugin").await;
    bench.is_soon(Posture::Uncertain).await;
    bench.renames("installer", "plugin", "/installed/plugin").await;
    bench.is_soon(Posture::Intact).await;
    assert_eq!(bench.told().await, []);

    let bench = Bench::new(make, &["/installed/10-a.conflist"]).await;
    bench.begins_without("/installed/plugin").await;
    bench.is_soon(Posture::Violated).await;
    assert_eq!(bench.verdicts().await, ["opened Removed /installed/plugin Scrub ?"]);
}

#[tokio::test]
async fn what_another_took_away_is_told_at_once() {
    let bench = bench().await;
    bench.removes("installer", "/installed/plugin").await;
    bench.renames("sed", WITHOUT, "/installed/10-a.conflist").await;
    bench.is_soon(Posture::Violated).await;
    let told = bench.told().await;
    let first = told.first().map(|(kind, name, _)| (*kind, name.as_str()));
    assert_eq!(first, Some((ViolationKind::Replaced, "10-a.conflist")), "{told:?}");
}

#[tokio::test]
async fn what_another_did_is_told_though_the_installer_has_put_it_right_by_then() {
    let bench = bench().await;
    std::fs::write(bench.path("/installed/plugin"), "other").unwrap();
    bench.see("sed", Operation::Write, "/installed/plugin", |_| {}).await;
    bench.renames("installer", "plugin", "/installed/plugin").await;
    bench.is_soon(Posture::Violated).await;
    assert_eq!(bench.verdicts().await, ["opened Reverted /installed/plugin Write sed"]);
}

impl Bench {
    /// The same objects under another revision, whose installer is another version.
    async fn upgrades(&self, kept: bool) {
        let root = Root::open(self.dir.path()).unwrap();
        let all = || {
            ["/installed/10-a.conflist", "/installed/plugin"].map(|path| sealed(&root, &HostPath::from(path)))
        };
        self.offer(all().to_vec(), 2, kept.then(|| all().to_vec())).await;
    }
}

#[tokio::test]
async fn what_the_version_before_takes_away_may_come_again_while_the_transition_lasts() {
    let bench = bench().await;
    bench.is_soon(Posture::Intact).await;
    bench.upgrades(true).await;
    bench.removes("installer-1", "/installed/plugin").await;
    bench.renames("installer-1", WITHOUT, "/installed/10-a.conflist").await;
    bench.is_soon(Posture::Uncertain).await;
    bench.renames("installer-2", "plugin", "/installed/plugin").await;
    bench.renames("installer-2", CHAIN, "/installed/10-a.conflist").await;
    bench.is_soon(Posture::Intact).await;
    assert_eq!(bench.told().await, []);
}

#[tokio::test]
async fn without_a_transition_the_version_before_is_anybody() {
    let bench = bench().await;
    bench.is_soon(Posture::Intact).await;
    bench.upgrades(false).await;
    bench.removes("installer-1", "/installed/plugin").await;
    bench.is_soon(Posture::Violated).await;
    assert_eq!(bench.verdicts().await, ["opened Removed /installed/plugin Unlink installer-1"]);
}
