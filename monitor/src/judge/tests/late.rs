//! What comes to pass long after the hook that told of it: whoever acts may have been kept waiting in between.

use super::{Bench, bench, short};
use crate::model::{Operation, RecordBody, Time};

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
    assert_eq!(bench.next().await, "opened Content /x/lone Scrub ?");
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
    assert_eq!(bench.next().await, "opened Replaced /x/lone Scrub ?");
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
