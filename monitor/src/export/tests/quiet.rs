//! What a quiet node sends.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::faults::Bench;
use crate::config::Protocol;
use crate::export::summary::{self, Summed};
use crate::model::{Draft, GapBody, Record, RecordBody, Severity, SummaryBody, Time};

const MINUTE: i64 = 60_000_000_000;

fn routine(time: Time) -> Draft {
    let reason = "scrub".to_owned();
    let body = RecordBody::ObjectVerified { reason, objects: 1, intact: 1, violated: 0, duration_ms: 1 };
    Draft::at(time, Severity::Info, body)
}

/// A day of routine, and one thing that is none, through journal and exporter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_day_sends_little_and_the_journal_keeps_all() {
    let mut bench = Bench::new(Protocol::Grpc).await;
    let begin = Time::now();
    let at = |minute: i64| Time(begin.0 + minute * MINUTE);
    let day: Vec<Draft> = (0..1440).map(|minute| routine(at(minute))).collect();
    for part in day.chunks(100) {
        bench.append(part.to_vec()).await;
    }
    let gap = Draft::at(at(1440), Severity::Low, RecordBody::Gap(GapBody::default()));
    let last = bench.append(vec![gap]).await;
    bench.start();
    let taken = bench.taken(&last).await;
    assert!((24..=100).contains(&taken.len()), "{} records left", taken.len());
    let kept = bench.records().into_iter().filter(|record| record.body.is_routine()).count();
    assert_eq!(kept, 1440);
    let status = bench.status("all done", |status| status.acknowledged_seq >= last[0].seq).await;
    assert_eq!(status.last_error, None);
    bench.end().await;
}

#[tokio::test]
async fn summaries_tell_what_there_was() {
    let bench = Bench::new(Protocol::Grpc).await;
    let first = bench.append(vec![routine(Time(1)), routine(Time(2))]).await;
    bench.append(vec![Draft::at(Time(3), Severity::Low, RecordBody::Gap(GapBody::default()))]).await;
    let mut reader = bench.handle.reader().unwrap();
    let one = summary::count(&mut reader, 1, 3).unwrap().unwrap();
    assert_eq!((one.from_seq, one.from_time, one.to_seq, one.to_time), (first[0].seq, Time(1), 3, Time(3)));
    // All records of the stretch are counted, so that a receiver can tell what it misses.
    let counts = [("gap", 1), ("object.verified", 2)].map(|(kind, count)| (kind.to_owned(), count));
    assert_eq!(one.counts, counts.into());
    // Nothing routine, no summary.
    assert_eq!(summary::count(&mut reader, 3, 3).unwrap(), None);

    let (cancel, mut tasks) = (CancellationToken::new(), tokio::task::JoinSet::new());
    let every = Duration::from_millis(10);
    tasks.spawn(summary::run(bench.handle.clone(), Summed::default(), every, cancel.clone()));
    let summaries = || -> Vec<SummaryBody> {
        let summary = |record: Record| match record.body {
            RecordBody::Summary(one) => Some(one),
            _ => None,
        };
        bench.records().into_iter().filter_map(summary).collect()
    };
    let mut durable = bench.handle.durable();
    while summaries().is_empty() {
        durable.changed().await.unwrap();
    }
    bench.append(vec![routine(Time(9))]).await;
    while summaries().len() < 2 {
        durable.changed().await.unwrap();
    }
    let [one, two] = &summaries()[..] else { panic!("more than was routine") };
    assert_eq!((two.from_seq, two.counts["object.verified"]), (one.to_seq + 1, 1));
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
    bench.discard().await;
}
