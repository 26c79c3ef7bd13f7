//! Actors whose executable takes its time to hash.

use std::sync::mpsc;

use super::bench;
use crate::model::{ExeHash, Operation, RecordBody};

#[tokio::test]
async fn a_hash_in_the_making_is_waited_for_by_what_its_actor_did_alone() {
    let mut bench = bench().await;
    let (made, making) = mpsc::channel();
    let hash = ExeHash::of(move || making.recv().ok());
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    bench
        .see("large", Operation::Write, "/d/a", |seen| {
            seen.actor.as_mut().unwrap().exe_sha256 = Some(hash);
        })
        .await;
    std::fs::write(bench.path("/x/lone"), "two").unwrap();
    bench.see("small", Operation::Write, "/x/lone", |_| {}).await;
    assert_eq!(bench.next().await, "opened Content /x/lone Write small");
    made.send("aa".to_owned()).unwrap();
    let told = bench.drafts.recv().await.unwrap();
    let opened = told.iter().find_map(|draft| match &draft.body {
        RecordBody::ViolationOpened(opened) => opened.actor.as_ref(),
        _ => None,
    });
    assert_eq!(opened.unwrap().exe_sha256.as_ref().and_then(ExeHash::get), Some("aa"));
}
