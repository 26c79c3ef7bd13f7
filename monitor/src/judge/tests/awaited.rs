//! Publishes that come before the baseline that approves them, where they may wait for it.

use std::time::Duration;

use super::{Bench, publish, volume};
use crate::model::{InodeKey, Operation};
use crate::status::Posture;

/// Nothing of what is asserted takes as long.
const LONG: Duration = Duration::from_secs(600);

async fn patient(wait: Duration) -> Bench {
    Bench::with_patience(volume, &["/pods/v"], wait).await
}

impl Bench {
    /// Waits until something is awaited.
    async fn awaits(&self) {
        loop {
            let status = self.status().await;
            if status.reasons == ["approval_awaited"] {
                assert_eq!((status.posture, status.objects.unverified), (Posture::Uncertain, 1));
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// A baseline in which the volume's file holds `content`.
    async fn approve(&self, content: &str, revision: u64) {
        let at = self.path("/pods/v").join("..data/root.pem");
        let now = std::fs::read(&at).unwrap();
        std::fs::write(&at, content).unwrap();
        self.accept_after(&["/pods/v"], revision, || std::fs::write(&at, now).unwrap()).await;
    }
}

#[tokio::test]
async fn a_baseline_that_comes_after_the_publish_makes_it_an_accepted_change() {
    let mut bench = patient(LONG).await;
    publish(&bench, "kubelet", "..2026_02", "two").await;
    bench.awaits().await;
    bench.approve("two", 2).await;
    assert_eq!(bench.next().await, "accepted /pods/v Rename kubelet");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn when_the_time_is_over_it_is_told() {
    let mut bench = patient(Duration::from_millis(1500)).await;
    publish(&bench, "kubelet", "..2026_02", "two").await;
    assert_eq!(bench.next().await, "opened Content /pods/v/root.pem Rename kubelet");
    bench.approve("two", 2).await;
    assert_eq!(bench.next().await, "Rebaselined Content /pods/v/root.pem");
}

#[tokio::test]
async fn a_baseline_that_approves_something_else_ends_it() {
    let mut bench = patient(LONG).await;
    publish(&bench, "kubelet", "..2026_02", "two").await;
    bench.awaits().await;
    bench.approve("three", 2).await;
    assert_eq!(bench.next().await, "opened Content /pods/v/root.pem Rename kubelet");
}

#[tokio::test]
async fn what_is_taken_back_before_anybody_approved_it_is_told() {
    let mut bench = patient(LONG).await;
    publish(&bench, "kubelet", "..2026_02", "two").await;
    bench.awaits().await;
    publish(&bench, "kubelet", "..2026_03", "one").await;
    assert_eq!(bench.next().await, "opened Content /pods/v/root.pem Rename kubelet");
}

#[tokio::test]
async fn somebody_elses_act_ends_it() {
    let mut bench = patient(LONG).await;
    publish(&bench, "kubelet", "..2026_02", "two").await;
    bench.awaits().await;
    std::fs::write(bench.path("/pods/v/..2026_02/root.pem"), "evil").unwrap();
    let on = |o: &mut crate::model::Observation| {
        o.name = Some(b"root.pem".to_vec());
        o.inode = Some(InodeKey { dev: 0, ino: 1 });
    };
    bench.see("dd", Operation::Write, "/pods/v/..2026_02/root.pem", on).await;
    assert_eq!(bench.next().await, "opened Content /pods/v/root.pem Write dd");
}

#[tokio::test]
async fn neither_the_agents_end_nor_the_pods_hides_it() {
    let stopped = patient(LONG).await;
    publish(&stopped, "kubelet", "..2026_02", "two").await;
    stopped.awaits().await;
    assert_eq!(stopped.verdicts().await, ["opened Content /pods/v/root.pem Rename kubelet"]);

    let gone = patient(LONG).await;
    publish(&gone, "kubelet", "..2026_02", "two").await;
    gone.awaits().await;
    std::fs::remove_dir_all(gone.path("/pods/v")).unwrap();
    gone.see("kubelet", Operation::Rmdir, "/pods", |o| o.name = Some(b"v".to_vec())).await;
    let told = gone.verdicts().await;
    assert_eq!(
        told,
        ["opened Content /pods/v/root.pem Rename kubelet", "Redeployed Content /pods/v/root.pem"]
    );
}
