//! A directory in which names come and go all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Bench;
use crate::model::Operation;
use crate::status::Posture;

#[tokio::test]
async fn what_is_made_in_a_directory_that_never_rests_is_told_while_it_goes_on() {
    let make = |root: &std::path::Path| {
        std::fs::create_dir(root.join("closed")).unwrap();
        std::fs::write(root.join("closed/a"), "a").unwrap();
    };
    let bench = Bench::new(make, &["/closed"]).await;
    bench.is_soon(Posture::Intact).await;
    let (over, busy) = (Arc::new(AtomicBool::new(false)), bench.path("/closed/busy"));
    let storm = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            while !over.load(Ordering::Acquire) {
                std::fs::write(&busy, "").unwrap();
                std::fs::remove_file(&busy).unwrap();
            }
        }
    });
    std::fs::write(bench.path("/closed/extra"), "x").unwrap();
    bench.see("sh", Operation::Create, "/closed", |seen| seen.name = Some(b"extra".to_vec())).await;
    bench.is_soon(Posture::Violated).await;
    assert!(!storm.is_finished());
    over.store(true, Ordering::Release);
    storm.join().unwrap();
    // Once it rests nothing else is found, and nothing is told twice.
    assert_eq!(bench.verdicts().await, ["opened Unexpected /closed/extra Create sh"]);
}
