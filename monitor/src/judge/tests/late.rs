//! What comes to pass long after the hook that told of it: whoever acts may have been kept waiting in between.

use super::{Bench, Root, bench, sealed, short, volume};
use crate::baseline::{Content, Seal};
use crate::model::{Class, Draft, HostPath, Operation, RecordBody, Time};
use crate::sensor::SensorEvent;

impl Bench {
    /// The next record that is told in short.
    pub(super) async fn next(&mut self) -> String {
        loop {
            let batch = self.drafts.recv().await.unwrap();
            let told = |body: &RecordBody| short(body);
            if let Some(one) = batch.iter().find_map(|draft| told(&draft.body)) {
                return one;
            }
        }
    }
}

#[tokio::test]
async fn a_write_that_comes_after_it_was_told_as_an_attempt_is_found() {
    let mut bench = bench().await;
    bench.see("dd", Operation::Write, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "attempt /x/lone Write dd");
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    assert_eq!(bench.next().await, "opened Content /x/lone Write dd");
}

#[tokio::test]
async fn what_passed_no_hook_is_found_when_its_writer_closes_and_is_by_whoever_opened_it() {
    let mut bench = bench().await;
    bench.see("dd", Operation::Open, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "attempt /x/lone Open dd");
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    let slot = bench.slot("/x/lone");
    bench.events.send(SensorEvent::Closed { slot }).await.unwrap();
    assert_eq!(bench.next().await, "opened Content /x/lone Open dd");
    // Whoever closed it does nothing any more.
    std::fs::write(bench.path("/x/lone"), "three").unwrap();
    bench.events.send(SensorEvent::Dirty { slot, events: 0 }).await.unwrap();
    assert_eq!(bench.next().await, "updated Content /x/lone Open dd");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_write_that_comes_after_all_looks_is_found_when_its_writer_closes_and_is_by_that_write() {
    let mut bench = bench().await;
    // Its memory keeps the kernel waiting: its times have moved, its bytes have not.
    bench.see("dd", Operation::Open, "/x/lone", |_| {}).await;
    bench.see("dd", Operation::Write, "/x/lone", |_| {}).await;
    std::fs::write(bench.path("/x/lone"), "one").unwrap();
    assert_eq!(bench.next().await, "opened Reverted /x/lone Write dd");
    // What is told later than it is looked at again later, too.
    bench.see("other", Operation::Write, "/d/a", |_| {}).await;
    assert_eq!(bench.next().await, "attempt /d/a Write other");
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    assert_eq!(bench.next().await, "opened Content /d/a Write other");
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    let slot = bench.slot("/x/lone");
    bench.events.send(SensorEvent::Closed { slot }).await.unwrap();
    assert_eq!(bench.next().await, "opened Content /x/lone Write dd");
}

#[tokio::test]
async fn what_the_kernel_writes_for_whoever_has_it_open_is_found_while_it_is_open() {
    let mut bench = bench().await;
    bench.see("losetup", Operation::Open, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "attempt /x/lone Open losetup");
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    assert_eq!(bench.next().await, "opened Content /x/lone Open losetup");
}

#[tokio::test]
async fn what_a_loop_device_writes_is_by_whoever_gave_it_the_file() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("losetup", Operation::Open, "/x/lone", |_| {}).await;
    let kernels = |seen: &mut crate::model::Observation| {
        if let Ok(actor) = &mut seen.actor {
            (actor.pid, actor.tgid, actor.ppid) = (500, 500, 2);
        }
    };
    bench.see("loop3", Operation::Write, "/x/lone", kernels).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Write losetup");
    // A process may call itself what it likes.
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    bench.see("losetup", Operation::Open, "/d/a", |_| {}).await;
    bench.see("loop3", Operation::Write, "/d/a", |_| {}).await;
    assert_eq!(bench.next().await, "opened Content /d/a Write loop3");
}

#[tokio::test]
async fn a_publish_that_is_seen_before_it_is_told_is_accepted_by_its_writer() {
    let mut bench = Bench::new(volume, &["/pods/v"]).await;
    std::fs::write(bench.path("/pods/v/..2026_01/root.pem"), "two").unwrap();
    bench.accept(&["/pods/v"], 2).await;
    let inherited = |o: &mut crate::model::Observation| {
        o.name = Some(b"root.pem".to_vec());
        o.inode = Some(crate::model::InodeKey { dev: 0, ino: 1 });
    };
    bench.see("kubelet", Operation::Create, "/pods/v", inherited).await;
    assert_eq!(bench.next().await, "accepted /pods/v Create kubelet");
}

#[tokio::test]
async fn a_publish_that_nothing_tells_of_is_accepted_of_nobody() {
    let mut bench = Bench::new(volume, &["/pods/v"]).await;
    std::fs::write(bench.path("/pods/v/..2026_01/root.pem"), "two").unwrap();
    bench.accept(&["/pods/v"], 2).await;
    assert_eq!(bench.next().await, "accepted /pods/v Scrub ?");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

impl Bench {
    /// A volume of what its publisher renews, such as tokens, looked at.
    async fn renewable() -> Self {
        let mut bench = Self::new(volume, &["/pods/v"]).await;
        let root = Root::open(bench.dir.path()).unwrap();
        let mut object = sealed(&root, &HostPath::from("/pods/v"));
        let Seal::Volume { entries } = &mut object.seal else { panic!("no volume") };
        for entry in entries.iter_mut().filter(|entry| entry.file.is_some()) {
            (entry.class, entry.file) = (Class::Opaque, Some(Content::Any));
        }
        bench.offer(vec![object], 2, None).await;
        loop {
            let batch = bench.drafts.recv().await.unwrap();
            let verified = |draft: &Draft| matches!(draft.body, RecordBody::ObjectVerified { .. });
            if batch.iter().any(verified) {
                return bench;
            }
        }
    }

    /// It is renewed, and looked at before anything tells of that.
    async fn renews(&self) {
        std::fs::write(self.path("/pods/v/..2026_01/root.pem"), "two").unwrap();
        let slot = self.slot("/pods/v");
        self.events.send(SensorEvent::Dirty { slot, events: 0 }).await.unwrap();
    }
}

#[tokio::test]
async fn a_renewal_that_is_seen_before_it_is_told_is_accepted_by_its_writer() {
    let mut bench = Bench::renewable().await;
    bench.renews().await;
    let onto = |o: &mut crate::model::Observation| {
        o.name = Some(b"..data_tmp".to_vec());
        o.inode = Some(crate::model::InodeKey { dev: 0, ino: 1 });
    };
    bench.see("kubelet", Operation::Create, "/pods/v", onto).await;
    assert_eq!(bench.next().await, "accepted /pods/v Create kubelet");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_renewal_that_nothing_tells_of_is_accepted_of_nobody() {
    let mut bench = Bench::renewable().await;
    bench.renews().await;
    assert_eq!(bench.next().await, "accepted /pods/v Scrub ?");
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_was_seen_half_written_is_seen_whole() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/x/lone"), "tw").unwrap();
    bench.see("dd", Operation::Write, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Write dd");
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    assert_eq!(bench.next().await, "updated Content /x/lone Write dd");
}

#[tokio::test]
async fn a_file_put_in_its_place_while_the_rename_was_looked_at_is_found() {
    let mut bench = bench().await;
    // Only the change time of the one that will be replaced has moved yet.
    let lone = std::fs::File::open(bench.path("/x/lone")).unwrap();
    lone.set_permissions(lone.metadata().unwrap().permissions()).unwrap();
    bench.see("mv", Operation::Rename, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Reverted /x/lone Rename mv");
    std::fs::write(bench.path("/new"), "two").unwrap();
    std::fs::rename(bench.path("/new"), bench.path("/x/lone")).unwrap();
    assert_eq!(bench.next().await, "opened Replaced /x/lone Rename mv");
}

#[tokio::test]
async fn a_change_is_told_by_the_write_though_its_open_came_first() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("dd", Operation::Open, "/x/lone", |_| {}).await;
    bench.see("dd", Operation::Write, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Write dd");
}

#[tokio::test]
async fn a_change_that_no_more_than_an_open_explains_is_told_all_the_same() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("dd", Operation::Open, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Open dd");
}

#[tokio::test]
async fn what_the_replacer_writes_right_after_is_no_second_violation() {
    let mut bench = bench().await;
    let replace = |bench: &Bench| {
        std::fs::write(bench.path("/new"), "").unwrap();
        std::fs::rename(bench.path("/new"), bench.path("/x/lone")).unwrap();
    };
    replace(&bench);
    bench.see("editor", Operation::Rename, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Replaced /x/lone Rename editor");
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    // As the clocks were measured a moment later, the process began at another time.
    bench
        .see("editor", Operation::Write, "/x/lone", |seen| {
            if let Ok(actor) = &mut seen.actor {
                actor.start_time = actor.start_time.map(|at| Time(at.0 + 1_700));
            }
        })
        .await;
    assert_eq!(bench.next().await, "updated Replaced /x/lone Write editor");
    // Another process's doing is its own.
    std::fs::write(bench.path("/x/lone"), "three").unwrap();
    bench
        .see("other", Operation::Write, "/x/lone", |seen| {
            if let Ok(actor) = &mut seen.actor {
                actor.tgid = 8;
            }
        })
        .await;
    assert_eq!(bench.next().await, "opened Content /x/lone Write other");
}
