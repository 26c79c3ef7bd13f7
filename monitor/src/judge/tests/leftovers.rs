//! What is gone, lawfully or because nothing seals it any more, leaves nothing behind; what took its place is told.

use std::os::unix::net::UnixListener;

use super::{Bench, bench, volume};
use crate::judge::Command;
use crate::model::{Observation, Operation, RenamedTo};
use crate::status::Watched;

const ALL: [&str; 3] = ["/d", "/d/a", "/x/lone"];

impl Bench {
    /// What is watched once these are sealed, and only these.
    async fn watches(&self, seal: &[&str], revision: u64) -> Watched {
        self.accept(seal, revision).await;
        loop {
            let status = self.status().await;
            let taken_up = status.baseline.first().is_some_and(|one| one.revision == revision);
            if taken_up && status.objects.intact == seal.len() as u64 {
                return status.sensor.watched;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_comes_and_goes_is_not_watched_for_ever() {
    let bench = bench().await;
    let all = bench.watches(&ALL, 2).await;
    // The objects, and the directories above them: `/`, and `/x`.
    assert_eq!(all, Watched { slots: 5, inodes: 5 });
    for revision in 0..8 {
        assert_eq!(bench.watches(&["/x/lone"], 3 + 2 * revision).await, Watched { slots: 3, inodes: 3 });
        assert_eq!(bench.watches(&ALL, 4 + 2 * revision).await, all);
    }
}

#[tokio::test]
async fn what_went_with_its_pod_is_not_missed_when_it_is_looked_for_again() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    std::fs::remove_dir_all(bench.path("/pods/v")).unwrap();
    bench.see("kubelet", Operation::Rmdir, "/pods", |o| o.name = Some(b"v".to_vec())).await;
    while bench.status().await.objects.total > 0 {
        tokio::task::yield_now().await;
    }
    bench.commands.send(Command::VerifyAll("again".to_owned())).await.unwrap();
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

/// A pod with a volume.
fn pod(root: &std::path::Path) {
    std::fs::create_dir_all(root.join("pods/uid/v")).unwrap();
    std::fs::write(root.join("pods/uid/v/f"), "one").unwrap();
}

#[tokio::test]
async fn what_went_with_its_pod_before_it_was_looked_at_is_not_missed() {
    let bench = Bench::new(pod, &[]).await;
    let sealed = ["/pods/uid/v", "/pods/uid/v/f"];
    bench.accept_after(&sealed, 2, || std::fs::remove_dir_all(bench.path("/pods/uid")).unwrap()).await;
    while bench.status().await.baseline.first().is_none_or(|one| one.revision != 2) {
        tokio::task::yield_now().await;
    }
    while bench.status().await.objects.total > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_gone_while_its_pod_is_there_is_missed() {
    let mut bench = Bench::new(pod, &["/pods/uid/v/f"]).await;
    std::fs::remove_file(bench.path("/pods/uid/v/f")).unwrap();
    bench.commands.send(Command::VerifyAll("again".to_owned())).await.unwrap();
    assert_eq!(bench.next().await, "opened Removed /pods/uid/v/f Scrub ?");
}

/// `/d`, sealed, with a socket in it.
async fn with_a_socket() -> Bench {
    let make = |root: &std::path::Path| {
        std::fs::create_dir(root.join("d")).unwrap();
        drop(UnixListener::bind(root.join("d/s")).unwrap());
    };
    Bench::new(make, &["/d"]).await
}

#[tokio::test]
async fn a_socket_in_place_of_a_socket_is_replaced() {
    let bench = with_a_socket().await;
    std::fs::remove_file(bench.path("/d/s")).unwrap();
    drop(UnixListener::bind(bench.path("/d/s")).unwrap());
    let named = |o: &mut Observation| o.name = Some(b"s".to_vec());
    bench.see("evil", Operation::Unlink, "/d", named).await;
    bench.see("evil", Operation::Mknod, "/d", named).await;
    assert_eq!(bench.verdicts().await, ["opened Replaced /d/s Mknod evil"]);
}

#[tokio::test]
async fn a_socket_renamed_onto_a_socket_is_replaced() {
    let bench = with_a_socket().await;
    drop(UnixListener::bind(bench.path("/mine")).unwrap());
    std::fs::rename(bench.path("/mine"), bench.path("/d/s")).unwrap();
    let dir = bench.slot("/d");
    bench
        .see("evil", Operation::Rename, "/d", |o| o.renamed_to = Some(RenamedTo::new(dir, b"s".to_vec())))
        .await;
    assert_eq!(bench.verdicts().await, ["opened Replaced /d/s Rename evil"]);
}

#[tokio::test]
async fn one_process_is_one_however_its_start_is_told() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    let at = bench.path("/pods/v");
    std::os::unix::fs::symlink("..data/other", at.join("tmp")).unwrap();
    std::fs::rename(at.join("tmp"), at.join("root.pem")).unwrap();
    bench.see("ln", Operation::Symlink, "/pods/v", |o| o.name = Some(b"tmp".to_vec())).await;
    let slot = bench.slot("/pods/v");
    bench
        .see("ln", Operation::Rename, "/pods/v", |o| {
            o.name = Some(b"tmp".to_vec());
            o.renamed_to = Some(RenamedTo::new(slot, b"root.pem".to_vec()));
            // It was gone when it was asked, and is known by what it executed.
            o.actor.as_mut().unwrap().start_boottime = 0;
        })
        .await;
    assert_eq!(bench.verdicts().await, ["opened Structure /pods/v/root.pem Rename ln"]);
}
