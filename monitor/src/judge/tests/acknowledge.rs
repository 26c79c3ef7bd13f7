//! What a person can close, and what stays open whoever asks.

use super::{ALIVE, Bench, bench};
use crate::judge::Query;
use std::sync::atomic::Ordering;

use crate::model::{Acknowledgement, Draft, HostPath, Operation, RecordBody, Resolution, Time};
use crate::status::{Acknowledged, Posture, StatusReport};
use tokio::sync::oneshot;

impl Bench {
    async fn opened(&mut self) -> Draft {
        loop {
            let batch = self.drafts.recv().await.unwrap();
            if let Some(draft) = batch.into_iter().find(|d| matches!(d.body, RecordBody::ViolationOpened(_)))
            {
                return draft;
            }
        }
    }

    async fn acknowledge(&self, uid: &str) -> Acknowledged {
        let (answer, told) = oneshot::channel();
        let by = Acknowledgement { uid: 0, pid: 1, exe: None, reason: "drill".to_owned() };
        self.queries.send(Query::Acknowledge(uid.to_owned(), by, answer)).await.unwrap();
        told.await.unwrap()
    }

    pub(super) async fn status(&self) -> StatusReport {
        let (answer, told) = oneshot::channel();
        self.queries.send(Query::Status(answer)).await.unwrap();
        told.await.unwrap()
    }
}

#[tokio::test]
async fn what_has_passed_is_acknowledged_once_and_recorded() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    std::fs::write(bench.path("/d/a"), "one").unwrap();
    bench.see("sh", Operation::Write, "/d/a", |_| {}).await;
    let opened = bench.opened().await;
    assert_eq!(bench.status().await.posture, Posture::Violated);
    let Acknowledged::Done(record) = bench.acknowledge(&opened.uid).await else { panic!() };
    let resolved = bench.drafts.recv().await.unwrap().remove(0);
    assert_eq!(resolved.uid, record);
    let RecordBody::ViolationResolved(body) = resolved.body else { panic!() };
    assert_eq!(
        (body.resolution, body.violation_id.as_str()),
        (Resolution::Acknowledged, opened.uid.as_str())
    );
    assert_eq!(body.acknowledged.unwrap().reason, "drill");
    assert_eq!(body.actor.unwrap().comm, "sh");
    assert_eq!(bench.status().await.posture, Posture::Intact);
    assert_eq!(bench.acknowledge(&opened.uid).await, Acknowledged::Resolved);
    assert_eq!(bench.acknowledge("01J00000000000000000000000").await, Acknowledged::Unknown);
}

#[tokio::test]
async fn what_still_differs_cannot_be_acknowledged() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    bench.see("sed", Operation::Write, "/d/a", |_| {}).await;
    let opened = bench.opened().await;
    assert_eq!(bench.acknowledge(&opened.uid).await, Acknowledged::Standing);
    std::fs::hard_link(bench.path("/x/lone"), bench.path("/alias")).unwrap();
    bench.see("ln", Operation::Link, "/x/lone", |o| o.path_in_fs = Some(HostPath::from("/alias"))).await;
    let linked = bench.opened().await;
    assert_eq!(bench.acknowledge(&linked.uid).await, Acknowledged::Standing);
    let status = bench.status().await;
    assert_eq!((status.posture, status.violations.open), (Posture::Violated, 2));
}

#[tokio::test]
async fn what_is_covered_in_a_living_namespace_stays_open() {
    for (namespace, lives) in [(ALIVE, true), (ALIVE + 1, false)] {
        let mut bench = bench().await;
        bench
            .see("mount", Operation::Mount, "/x/lone", |o| {
                o.actor.as_mut().unwrap().mount_ns = Some(namespace);
            })
            .await;
        let opened = bench.opened().await;
        let outcome = bench.acknowledge(&opened.uid).await;
        assert_eq!(outcome == Acknowledged::Elsewhere(ALIVE), lives, "{outcome:?}");
        assert_eq!(bench.status().await.violations.open, u64::from(lives));
    }
}

#[tokio::test]
async fn posture_is_so_since_it_changed_and_not_since_it_was_asked() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    bench.see("sed", Operation::Write, "/d/a", |_| {}).await;
    let opened = bench.opened().await;
    // Nobody asks before the judge has noted it by itself.
    let before = bench.world.asked.load(Ordering::SeqCst);
    while bench.world.asked.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
    let asked = Time::now();
    let status = bench.status().await;
    assert_eq!(status.posture, Posture::Violated);
    assert!(status.since >= opened.time && status.since < asked, "{}", status.since);
}
