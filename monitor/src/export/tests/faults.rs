//! Receivers that are down, refuse, hang, break off, restart or have limits: nothing is lost, violations go first, a
//! cursor moves on a clean acknowledgement only, and the journal is not filled with complaints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use tokio::sync::watch;
use tonic::Code;

use super::receiver::{Answer, Receiver};
use super::{kinds, text, uids};
use crate::config::Protocol;
use crate::export::{ExportStatus, Exporter, Policy, Resource};
use crate::journal::{Journal, JournalHandle, Options};
use crate::model::{
    Class, Draft, HostPath, ObjectRef, Record, RecordBody, Resolution, Severity, ViolationKind,
    ViolationResolved,
};

const BOTH: [Protocol; 2] = [Protocol::Grpc, Protocol::HttpProtobuf];
/// Of what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

fn policy() -> Policy {
    Policy {
        backoff: (Duration::from_millis(1), Duration::from_millis(10)),
        slow: Duration::from_millis(5),
        report_after: Duration::ZERO,
        report_every: Duration::from_secs(3600),
        flush: Duration::from_secs(5),
    }
}

fn rest(text: &str) -> Draft {
    Draft::now(Severity::Info, RecordBody::Breakglass { statement: text.to_owned() })
}

fn violation(text: &str) -> Draft {
    let object = ObjectRef {
        id: "o".to_owned(),
        path: HostPath::from(text),
        class: Class::Sealed,
        baseline: None,
        revision: None,
    };
    let body = ViolationResolved {
        violation_id: "v".to_owned(),
        resolution: Resolution::Restored,
        violation: ViolationKind::Content,
        object,
        actor: None,
        acknowledged: None,
        detail: None,
    };
    Draft::now(Severity::Info, RecordBody::ViolationResolved(Box::new(body)))
}

/// A journal, an exporter over it, and a receiver.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    journal: Journal,
    pub(super) handle: JournalHandle,
    receiver: Receiver,
    running: Option<Exporter>,
}

impl Bench {
    pub(super) async fn new(protocol: Protocol) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&dir.path().join("journal"), Options::new("n")).unwrap();
        let (handle, receiver) = (journal.handle(), Receiver::start(protocol).await);
        Self { dir, journal, handle, receiver, running: None }
    }

    pub(super) fn start(&mut self) {
        let resource = Resource { node: "n".to_owned(), ..Resource::default() };
        let endpoints = [self.receiver.endpoint()];
        let started = Exporter::start(&endpoints, self.dir.path(), &self.handle, &resource, policy());
        self.running = Some(started.unwrap());
    }

    /// As kill -9 would.
    fn kill(&mut self) {
        drop(self.running.take());
    }

    pub(super) async fn append(&self, drafts: Vec<Draft>) -> Vec<Record> {
        self.handle.append(drafts).await.unwrap()
    }

    /// Waits until the receiver has taken all of these.
    pub(super) async fn taken(&self, records: &[Record]) -> Vec<LogRecord> {
        let wanted: BTreeSet<&str> = records.iter().map(|record| record.uid.as_str()).collect();
        wait(self.receiver.taken(), "records at the receiver", |taken| {
            let got = uids(taken);
            wanted.iter().all(|uid| got.iter().any(|one| one == uid))
        })
        .await
    }

    pub(super) async fn status(&self, what: &str, fits: impl FnMut(&ExportStatus) -> bool) -> ExportStatus {
        wait(self.running.as_ref().unwrap().statuses().watch(0).unwrap(), what, fits).await
    }

    /// All of the journal.
    pub(super) fn records(&self) -> Vec<Record> {
        let mut reader = self.handle.reader().unwrap();
        let stored = reader.read_from(1, usize::MAX, usize::MAX).unwrap();
        stored.iter().map(|one| serde_json::from_slice(&one.payload).unwrap()).collect()
    }

    fn cursor(&self) -> (u64, u64) {
        cursor(self.dir.path())
    }

    fn failures(&self) -> usize {
        kinds(self.dir.path()).iter().filter(|kind| **kind == "delivery.failed").count()
    }

    pub(super) async fn end(mut self) -> (ExportStatus, usize) {
        let mut exporter = self.running.take().unwrap();
        exporter.stop().await;
        let status = exporter.statuses().now().remove(0);
        let failures = self.failures();
        self.receiver.down().await;
        drop(self.handle);
        self.journal.shutdown().await.unwrap();
        (status, failures)
    }
}

impl Bench {
    /// Without an exporter.
    pub(super) async fn discard(mut self) {
        self.receiver.down().await;
        drop(self.handle);
        self.journal.shutdown().await.unwrap();
    }
}

async fn wait<T: Clone>(mut of: watch::Receiver<T>, what: &str, fits: impl FnMut(&T) -> bool) -> T {
    tokio::time::timeout(PATIENCE, of.wait_for(fits))
        .await
        .unwrap_or_else(|_| panic!("no {what}"))
        .unwrap()
        .clone()
}

/// As it is on disk: violations, rest.
fn cursor(dir: &Path) -> (u64, u64) {
    let mut found = (0, 0);
    for entry in std::fs::read_dir(dir.join("export")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            let text = std::fs::read(path).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            found = (json["violations"].as_u64().unwrap(), json["rest"].as_u64().unwrap());
        }
    }
    found
}

/// How often each record came.
fn counts(taken: &[LogRecord]) -> BTreeMap<String, usize> {
    uids(taken).into_iter().fold(BTreeMap::new(), |mut counts, uid| {
        *counts.entry(uid).or_default() += 1;
        counts
    })
}

/// Sent again until taken, whatever is in the way; each once where nothing was taken before.
async fn survives(protocol: Protocol, what: &str, answers: Vec<Answer>, duplicates: bool) {
    let mut bench = Bench::new(protocol).await;
    let refusals = answers.len();
    if answers.iter().any(|answer| matches!(answer, Answer::Hang)) {
        bench.receiver.timeout = Duration::from_millis(300);
    }
    bench.receiver.then(answers);
    let records = bench.append(vec![violation("a"), violation("b"), violation("c")]).await;
    bench.start();
    bench.taken(&records).await;
    let last = records[2].seq;
    bench
        .status("acknowledgement", |status| status.oldest_unsent.is_none() && status.acknowledged_seq >= last)
        .await;
    let seen = bench.receiver.seen().borrow().clone();
    assert!(seen.len() > refusals, "{protocol:?} {what}: {seen:?}");
    let counts = counts(&bench.receiver.taken().borrow());
    let once = records.iter().all(|record| counts[&record.uid] == 1);
    assert_eq!(once, !duplicates, "{protocol:?} {what}: {counts:?}");
    let (status, failures) = bench.end().await;
    assert_eq!((status.dead_letters, &status.last_error), (0, &None), "{protocol:?} {what}");
    assert_eq!(failures, 1, "{protocol:?} {what}: one outage, one report");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_specification_calls_retryable_is_sent_again() {
    let by_http = [429, 502, 503, 504];
    let by_grpc = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unavailable,
        Code::DataLoss,
    ];
    let http = by_http.map(|status| Answer::Refuse(status, Code::Ok, None)).to_vec();
    let grpc = by_grpc.map(|code| Answer::Refuse(0, code, None)).to_vec();
    survives(Protocol::HttpProtobuf, "retryable", http, false).await;
    survives(Protocol::Grpc, "retryable", grpc, false).await;
}

/// The specification says that these must not be sent again; what is in the journal is not thrown away for a wrong
/// credential, path or pipeline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_can_put_right_is_kept_until_then() {
    let by_http = [401, 403, 404, 405, 500, 301];
    let by_grpc = [
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::NotFound,
        Code::Unimplemented,
        Code::Internal,
        Code::Unknown,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
    ];
    let http = by_http.map(|status| Answer::Refuse(status, Code::Ok, None)).to_vec();
    let grpc = by_grpc.map(|code| Answer::Refuse(0, code, None)).to_vec();
    survives(Protocol::HttpProtobuf, "configuration", http, false).await;
    survives(Protocol::Grpc, "configuration", grpc, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_and_broken_off_connections_are_sent_again() {
    for protocol in BOTH {
        survives(protocol, "hang", vec![Answer::Hang], false).await;
        survives(protocol, "cut", vec![Answer::Cut, Answer::Cut], false).await;
        // The acknowledgement was lost: once more, by the same uid.
        survives(protocol, "lost acknowledgement", vec![Answer::TakeAndCut], true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_may_say_when_to_come_again() {
    for (protocol, after) in
        [(Protocol::Grpc, Duration::from_millis(700)), (Protocol::HttpProtobuf, Duration::from_secs(1))]
    {
        let mut bench = Bench::new(protocol).await;
        // RESOURCE_EXHAUSTED is retryable with RetryInfo only.
        bench.receiver.then([Answer::Refuse(429, Code::ResourceExhausted, Some(after))]);
        let records = bench.append(vec![violation("a")]).await;
        bench.start();
        bench.taken(&records).await;
        let seen = bench.receiver.seen().borrow().clone();
        let waited = seen[1].duration_since(seen[0]);
        assert!(waited >= after, "{protocol:?}: {waited:?} instead of {after:?}");
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_moves_on_a_clean_acknowledgement_only() {
    for protocol in BOTH {
        let mut bench = Bench::new(protocol).await;
        bench.receiver.then(std::iter::repeat_n(Answer::Refuse(503, Code::Unavailable, None), 1_000_000));
        let records = bench.append(vec![violation("a"), rest("b")]).await;
        bench.start();
        wait(bench.receiver.seen(), "some tries", |seen| seen.len() > 5).await;
        assert_eq!(bench.cursor(), (0, 0), "{protocol:?}");
        let status = bench.status("an error", |status| status.last_error.is_some()).await;
        assert_eq!(status.acknowledged_seq, 0);
        // Killed and started again it knows no more than before.
        bench.kill();
        assert_eq!(bench.cursor(), (0, 0), "{protocol:?}");
        let mut receiver = Receiver::start(protocol).await;
        std::mem::swap(&mut receiver, &mut bench.receiver);
        receiver.down().await;
        bench.start();
        bench.taken(&records).await;
        let last = records[1].seq;
        bench.status("acknowledgement", |status| status.acknowledged_seq >= last).await;
        let (violations, rest) = bench.cursor();
        assert!(violations >= last && rest >= last, "{protocol:?}: {violations} {rest}");
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn violations_go_first_and_a_restarted_receiver_gets_all() {
    for protocol in BOTH {
        let mut bench = Bench::new(protocol).await;
        bench.receiver.down().await;
        bench.start();
        let mut records = Vec::new();
        for round in 0..30 {
            let mut drafts: Vec<_> = (0..40).map(|at| rest(&format!("{round} {at}"))).collect();
            drafts.push(violation(&format!("v{round}")));
            records.extend(bench.append(drafts).await);
        }
        bench.status("an error", |status| status.last_error.is_some()).await;
        assert!(bench.receiver.taken().borrow().is_empty());
        bench.receiver.up().await;
        let taken = bench.taken(&records).await;
        let kinds: Vec<_> =
            taken.iter().map(|log| log.event_name.starts_with("meshseal.violation.")).collect();
        let first_rest = kinds.iter().position(|violation| !violation).unwrap();
        let last_violation = kinds.iter().rposition(|violation| *violation).unwrap();
        assert!(last_violation < first_rest, "{protocol:?}: {last_violation} {first_rest}");
        assert_eq!(kinds.iter().filter(|violation| **violation).count(), 30);
        // It goes down in the middle of things, and comes back.
        for round in 0..5 {
            let records = bench.append(vec![violation("x"), rest(&format!("{round}"))]).await;
            bench.receiver.down().await;
            bench.receiver.up().await;
            bench.taken(&records).await;
        }
        let (status, _) = bench.end().await;
        assert_eq!(status.dead_letters, 0, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_for_a_receiver_is_split_and_what_never_fits_is_kept() {
    for protocol in BOTH {
        let mut bench = Bench::new(protocol).await;
        bench.receiver.limit(40_000);
        let mut drafts: Vec<_> = (0..300).map(|at| violation(&format!("/{at}"))).collect();
        drafts.insert(150, violation(&"x".repeat(60_000)));
        let records = bench.append(drafts).await;
        bench.start();
        let (fit, huge): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.seq != 151);
        let taken = bench.taken(&fit).await;
        assert!(counts(&taken).values().all(|count| *count == 1), "{protocol:?}");
        // The lane goes on.
        let after = bench.append(vec![violation("/after")]).await;
        bench.taken(&after).await;
        bench.status("dead letter", |status| status.dead_letters == 1).await;
        let letters = std::fs::read_to_string(bench.dir.path().join("export/dead-letters.jsonl")).unwrap();
        let letter: serde_json::Value = serde_json::from_str(&letters).unwrap();
        assert_eq!(letter["record"]["uid"], huge[0].uid, "{protocol:?}");
        let (_, failures) = bench.end().await;
        assert_eq!(failures, 1, "{protocol:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_refused_alone_is_tried_again_before_it_is_a_dead_letter() {
    for protocol in BOTH {
        let refuse = || Answer::Refuse(400, Code::InvalidArgument, None);
        let mut bench = Bench::new(protocol).await;
        let first = bench.append(vec![violation("a")]).await;
        bench.start();
        bench.taken(&first).await;
        // For a moment the receiver takes nothing.
        bench.receiver.then([refuse(), refuse()]);
        let second = bench.append(vec![violation("b")]).await;
        bench.taken(&second).await;
        let status = bench.status("recovery", |status| status.last_error.is_none()).await;
        assert_eq!(status.dead_letters, 0, "{protocol:?}");
        // This one it will never take. What comes after it does not wait.
        bench.receiver.then([refuse(), refuse(), refuse()]);
        let third = bench.append(vec![violation("c")]).await;
        bench.status("dead letter", |status| status.dead_letters == 1).await;
        let fourth = bench.append(vec![violation("d")]).await;
        let taken = bench.taken(&fourth).await;
        assert!(!uids(&taken).contains(&third[0].uid), "{protocol:?}");
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partly_refused_is_not_sent_again_but_kept() {
    for protocol in BOTH {
        let mut bench = Bench::new(protocol).await;
        bench.receiver.then([Answer::Partial(1)]);
        let records = bench.append(vec![violation("a"), violation("b")]).await;
        bench.start();
        let taken = bench.taken(&records).await;
        assert!(counts(&taken).values().all(|count| *count == 1), "{protocol:?}");
        let (status, failures) = bench.end().await;
        assert_eq!((status.dead_letters, failures), (2, 1), "{protocol:?}");
    }
}

/// A receiver that fails with every other request is reported a few times, and then now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_comes_and_goes_does_not_fill_the_journal() {
    for protocol in BOTH {
        let mut bench = Bench::new(protocol).await;
        bench.start();
        for round in 0..60 {
            bench.receiver.then([Answer::Refuse(401, Code::Unauthenticated, None), Answer::Accept]);
            let records = bench.append(vec![violation(&format!("{round}"))]).await;
            bench.taken(&records).await;
            // The report of the failure is a record of its own, and uses up answers as any other.
            bench.status("quiet", |status| status.oldest_unsent.is_none()).await;
        }
        let failures = bench.failures();
        assert!((1..=4).contains(&failures), "{protocol:?}: {failures} reports of 60 failures");
        bench.end().await;
    }
}

#[tokio::test]
async fn names_of_others_do_not_make_lines_of_their_own() {
    let mut bench = Bench::new(Protocol::HttpProtobuf).await;
    let records = bench.append(vec![violation("/a\nmeshseal: all is well\u{7}")]).await;
    bench.start();
    let taken = bench.taken(&records).await;
    let body = format!("{:?}", taken[0].body);
    assert!(body.contains(r"/a\\x0ameshseal: all is well\\x07 is right again"), "{body}");
    assert_eq!(text(&taken[0], "file.path").as_deref(), Some("/a\nmeshseal: all is well\u{7}"));
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_come_and_change_while_it_runs() {
    let mut bench = Bench::new(Protocol::Grpc).await;
    let early = bench.append(vec![violation("a"), rest("b")]).await;
    bench.start();
    bench.taken(&early).await;
    let late = Receiver::start(Protocol::HttpProtobuf).await;
    let (mut first, second) = (bench.receiver.endpoint(), late.endpoint());
    let exporter = bench.running.as_mut().unwrap();
    assert_eq!(exporter.apply(&[first.clone()]).await.unwrap(), Vec::<String>::new());
    let changes = exporter.apply(&[first.clone(), second.clone()]).await.unwrap();
    assert_eq!(changes, [format!("export.otlp: added {}", second.endpoint)]);
    // The one that came late gets all of it, and only that one.
    let uid = early[0].uid.clone();
    wait(late.taken(), "all of the journal", |taken| uids(taken).contains(&uid)).await;
    assert!(counts(&bench.receiver.taken().borrow()).values().all(|count| *count == 1));
    // What is taken and not acknowledged yet would be sent again.
    let last = early.last().unwrap().seq;
    bench.status("acknowledgement", |status| status.acknowledged_seq >= last).await;
    first.timeout = Duration::from_secs(2);
    let exporter = bench.running.as_mut().unwrap();
    let changes = exporter.apply(&[first.clone(), second]).await.unwrap();
    assert_eq!(changes, [format!("export.otlp: settings of {}", first.endpoint)]);
    let more = bench.append(vec![violation("c")]).await;
    let taken = bench.taken(&more).await;
    assert!(counts(&taken).values().all(|count| *count == 1), "it goes on where it was");
    bench.end().await;
}
