//! Events that come faster than they are judged.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::bench;
use crate::model::Operation;
use crate::sensor::SensorEvent;
use crate::status::Query;

/// Longer than anything here takes where it is not put off for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Enough that events never run out, on whichever processors.
const STORMS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asks_is_answered_while_a_storm_lasts() {
    let bench = bench().await;
    let write = bench.observed("storm", Operation::Write, "/x/lone");
    let mut storms = JoinSet::new();
    for _ in 0..STORMS {
        let (write, events) = (write.clone(), bench.events.clone());
        storms.spawn(async move {
            while events.send(SensorEvent::Observed(Box::new(write.clone()))).await.is_ok() {}
        });
    }
    for _ in 0..3 {
        let (reply, answer) = oneshot::channel();
        bench.queries.send(Query::Status(reply)).await.unwrap();
        let status = tokio::time::timeout(PATIENCE, answer).await.expect("no answer").unwrap();
        assert_eq!(status.objects.total, 3);
    }
    storms.shutdown().await;
    assert_eq!(bench.verdicts().await.len(), 1);
}
