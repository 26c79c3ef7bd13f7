//! Delivery over HTTP to a receiver that misbehaves.

mod faults;
mod quiet;
mod receiver;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{ExportStatus, Exporter, Policy, Resource};
use crate::config::{Compression, Endpoint, Protocol, Tls};
use crate::journal::{Journal, JournalHandle, Options, Reader};
use crate::model::{Draft, Record, RecordBody, Severity};

/// What the receiver answers next; when there is nothing left it accepts.
type Script = Arc<Mutex<Vec<(StatusCode, Vec<u8>)>>>;

struct Sink {
    endpoint: Endpoint,
    script: Script,
    /// What was accepted, in order.
    got: watch::Receiver<Vec<LogRecord>>,
    /// Refuses requests with a record of that statement.
    poison: Arc<Mutex<Option<String>>>,
    tasks: JoinSet<()>,
}

fn text(log: &LogRecord, key: &str) -> Option<String> {
    let value = log.attributes.iter().find(|a| a.key == key)?.value.clone()?.value?;
    match value {
        Value::StringValue(s) => Some(s),
        other => Some(format!("{other:?}")),
    }
}

async fn sink() -> Sink {
    let script = Script::default();
    let poison = Arc::new(Mutex::new(None::<String>));
    let (sender, got) = watch::channel(Vec::new());
    let (answers, bad) = (Arc::clone(&script), Arc::clone(&poison));
    let handler = move |headers: HeaderMap, body: Bytes| {
        let (answers, bad, sender) = (Arc::clone(&answers), Arc::clone(&bad), sender.clone());
        async move {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            assert_eq!(headers["authorization"], "Bearer secret");
            let request = ExportLogsServiceRequest::decode(body).unwrap();
            let logs: Vec<_> = request
                .resource_logs
                .into_iter()
                .flat_map(|r| {
                    // The resource's cluster, where it has one, on each record.
                    let cluster = r.resource.into_iter().flat_map(|resource| resource.attributes);
                    let cluster: Vec<_> = cluster.filter(|one| one.key == "k8s.cluster.uid").collect();
                    r.scope_logs.into_iter().flat_map(|s| s.log_records).map(move |mut log| {
                        log.attributes.extend(cluster.clone());
                        log
                    })
                })
                .collect();
            let mut left = answers.lock().unwrap();
            let next = if left.is_empty() { None } else { Some(left.remove(0)) };
            drop(left);
            let (status, body) = next.unwrap_or((StatusCode::OK, Vec::new()));
            if let Some(bad) = bad.lock().unwrap().as_ref()
                && logs.iter().any(|l| text(l, "meshseal.statement").as_ref() == Some(bad))
            {
                return (StatusCode::BAD_REQUEST, Vec::new());
            }
            if status == StatusCode::OK && !body.starts_with(b"<") {
                sender.send_modify(|got| got.extend(logs));
            }
            (status, body)
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/logs", listener.local_addr().unwrap());
    let app = axum::Router::new().route("/v1/logs", axum::routing::post(handler));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let endpoint = Endpoint {
        endpoint: url,
        protocol: Protocol::HttpProtobuf,
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer secret".to_owned())]),
        tls: Tls::default(),
        compression: Compression::None,
        timeout: Duration::from_secs(5),
    };
    Sink { endpoint, script, got, poison, tasks }
}

fn policy() -> Policy {
    Policy {
        backoff: (Duration::from_millis(1), Duration::from_millis(5)),
        slow: Duration::from_millis(5),
        report_after: Duration::ZERO,
        report_every: Duration::from_secs(3600),
        flush: Duration::from_secs(5),
    }
}

fn start(sink: &Sink, dir: &Path, handle: &JournalHandle) -> Exporter {
    let endpoints = [sink.endpoint.clone()];
    let resource = Resource { node: "n".to_owned(), ..Resource::default() };
    Exporter::start(&endpoints, dir, handle, &resource, policy()).unwrap()
}

async fn stop(mut running: Exporter) -> ExportStatus {
    running.stop().await;
    running.statuses().now().remove(0)
}

async fn append(handle: &JournalHandle, texts: &[&str]) -> Vec<Record> {
    let drafts = texts
        .iter()
        .map(|t| Draft::now(Severity::Info, RecordBody::Breakglass { statement: (*t).to_owned() }));
    handle.append(drafts.collect()).await.unwrap()
}

fn uids(logs: &[LogRecord]) -> Vec<String> {
    logs.iter().filter_map(|l| text(l, "log.record.uid")).collect()
}

async fn until(sink: &mut Sink, uid: &str) -> Vec<LogRecord> {
    let wait = sink.got.wait_for(|got| uids(got).iter().any(|u| u == uid));
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("delivered in time").unwrap().clone()
}

fn kinds(dir: &Path) -> Vec<&'static str> {
    let stored = Reader::open(&dir.join("journal")).unwrap().read_from(1, usize::MAX, usize::MAX).unwrap();
    stored.iter().map(|r| serde_json::from_slice::<Record>(&r.payload).unwrap().body.kind()).collect()
}

#[tokio::test]
async fn without_a_receiver_nothing_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_bytes: 256 << 10, ..Options::new("n") };
    let (journal, _) = Journal::open(&dir.path().join("journal"), options).unwrap();
    let handle = journal.handle();
    let mut exporter = Exporter::start(&[], dir.path(), &handle, &Resource::default(), policy()).unwrap();
    let body = || RecordBody::Breakglass { statement: "x".repeat(1000) };
    let drafts = (0..300).map(|_| Draft::now(Severity::Info, body())).collect();
    handle.append(drafts).await.unwrap();
    let mut reader = handle.reader().unwrap();
    exporter.stop().await;
    journal.shutdown().await.unwrap();
    let all = reader.read_from(1, usize::MAX, usize::MAX).unwrap();
    let all: Vec<Record> = all.iter().map(|r| serde_json::from_slice(&r.payload).unwrap()).collect();
    let gap = all.iter().find_map(|record| match &record.body {
        RecordBody::Gap(gap) => Some((gap, record.severity)),
        _ => None,
    });
    let (gap, severity) = gap.unwrap();
    assert_eq!(
        (gap.reason.as_str(), gap.from_seq, gap.to_seq, gap.lost, severity),
        (
            "evicted before delivery: the journal reached its bound of 262144 bytes; 0 violations are kept",
            Some(1),
            Some(all[0].seq - 1),
            all[0].seq - 1,
            Severity::High
        )
    );
}

#[tokio::test]
async fn records_survive_refusals_garbage_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&dir.path().join("journal"), Options::new("n")).unwrap();
    let (handle, mut sink) = (journal.handle(), sink().await);
    *sink.script.lock().unwrap() = vec![
        (StatusCode::SERVICE_UNAVAILABLE, Vec::new()),
        (StatusCode::UNAUTHORIZED, Vec::new()),
        (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
        (StatusCode::PAYLOAD_TOO_LARGE, Vec::new()),
        (StatusCode::OK, b"<html><body>Sign in</body></html>".to_vec()),
        (StatusCode::NO_CONTENT, Vec::new()),
        (StatusCode::OK, b"{\"status\":\"success\"}".to_vec()),
    ];
    let records = append(&handle, &["a", "b", "c"]).await;
    let running = start(&sink, dir.path(), &handle);
    let got = until(&mut sink, &records[2].uid).await;
    let wanted: Vec<_> = records.iter().map(|r| r.uid.clone()).collect();
    assert_eq!(uids(&got)[..3], wanted);
    assert_eq!(got[0].event_name, "meshseal.breakglass");
    assert_eq!(text(&got[0], "otel.event.name").as_deref(), Some("meshseal.breakglass"));
    assert_eq!(text(&got[0], "meshseal.seq").as_deref(), Some("IntValue(1)"));
    let status = stop(running).await;
    assert_eq!((status.last_error, status.dead_letters), (None, 0));
    // One outage, one report.
    assert_eq!(kinds(dir.path()).iter().filter(|k| **k == "delivery.failed").count(), 1);

    // A cursor that was not saved: the same again, by the same uids.
    for file in std::fs::read_dir(dir.path().join("export")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let last = append(&handle, &["d"]).await;
    let running = start(&sink, dir.path(), &handle);
    let got = uids(&until(&mut sink, &last[0].uid).await);
    assert_eq!(got.iter().filter(|u| **u == wanted[0]).count(), 2);
    stop(running).await;
    // A saved one: nothing again.
    let before = sink.got.borrow().len();
    stop(start(&sink, dir.path(), &handle)).await;
    assert_eq!(sink.got.borrow().len(), before);
    sink.tasks.abort_all();
    journal.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_becomes_known_is_told_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&dir.path().join("journal"), Options::new("n")).unwrap();
    let (handle, mut sink) = (journal.handle(), sink().await);
    let running = start(&sink, dir.path(), &handle);
    let mut told = Vec::new();
    for (name, cluster) in [("a", None), ("b", Some("c1".to_owned())), ("c", Some("c1".to_owned()))] {
        running.set_cluster_uid(cluster);
        let records = append(&handle, &[name]).await;
        let got = until(&mut sink, &records[0].uid).await;
        told.push(text(got.last().unwrap(), "k8s.cluster.uid"));
    }
    assert_eq!(told, [None, Some("c1".to_owned()), Some("c1".to_owned())]);
    stop(running).await;
    sink.tasks.abort_all();
    journal.shutdown().await.unwrap();
}

#[tokio::test]
async fn one_poison_record_becomes_a_dead_letter_and_the_rest_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&dir.path().join("journal"), Options::new("n")).unwrap();
    let (handle, mut sink) = (journal.handle(), sink().await);
    *sink.poison.lock().unwrap() = Some("bad".to_owned());
    let records = append(&handle, &["a", "b", "bad", "c", "d"]).await;
    let running = start(&sink, dir.path(), &handle);
    let got = uids(&until(&mut sink, &records[4].uid).await);
    assert!([0, 1, 3].iter().all(|i| got.contains(&records[*i].uid)) && !got.contains(&records[2].uid));
    let status = stop(running).await;
    assert_eq!(status.dead_letters, 1);
    let letters = std::fs::read_to_string(dir.path().join("export/dead-letters.jsonl")).unwrap();
    let letter: serde_json::Value = serde_json::from_str(&letters).unwrap();
    assert_eq!(letter["record"]["uid"], records[2].uid);
    sink.tasks.abort_all();
    journal.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_partial_success_is_not_sent_again_but_kept_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&dir.path().join("journal"), Options::new("n")).unwrap();
    let (handle, mut sink) = (journal.handle(), sink().await);
    let partial = ExportLogsPartialSuccess { rejected_log_records: 1, error_message: "no".to_owned() };
    let answer = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    *sink.script.lock().unwrap() = vec![(StatusCode::OK, answer)];
    let records = append(&handle, &["a", "b"]).await;
    let running = start(&sink, dir.path(), &handle);
    until(&mut sink, &records[1].uid).await;
    let status = stop(running).await;
    assert_eq!(status.dead_letters, 2);
    let got = uids(&sink.got.borrow());
    assert_eq!(got.iter().filter(|u| **u == records[0].uid).count(), 1);
    assert_eq!(kinds(dir.path()).iter().filter(|k| **k == "delivery.failed").count(), 1);
    sink.tasks.abort_all();
    journal.shutdown().await.unwrap();
}

/// Sends to a real receiver: `OTLP_TEST_ENDPOINT`, `OTLP_TEST_PROTOCOL` (`grpc` or `http/protobuf`), and for TLS
/// `OTLP_TEST_CA`, `OTLP_TEST_CERT` and `OTLP_TEST_KEY`. `OTLP_TEST_RECORDS` says how many records; prints how long it took.
#[tokio::test]
#[ignore = "needs a receiver"]
async fn a_real_receiver_acknowledges_everything() {
    let var = |name: &str| std::env::var(format!("OTLP_TEST_{name}")).ok();
    let count: usize = var("RECORDS").map_or(100, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&dir.path().join("journal"), Options::new("n")).unwrap();
    let handle = journal.handle();
    for i in 0..count.div_ceil(1000) {
        let texts: Vec<_> = (0..1000.min(count - i * 1000)).map(|n| format!("record {i} {n}")).collect();
        append(&handle, &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let http = var("PROTOCOL").is_some_and(|p| p == "http/protobuf");
    let endpoint = Endpoint {
        endpoint: var("ENDPOINT").expect("OTLP_TEST_ENDPOINT"),
        protocol: if http { Protocol::HttpProtobuf } else { Protocol::Grpc },
        headers: BTreeMap::new(),
        tls: Tls {
            ca: var("CA").map(Into::into),
            cert: var("CERT").map(Into::into),
            key: var("KEY").map(Into::into),
        },
        compression: if var("GZIP").is_some() { Compression::Gzip } else { Compression::None },
        timeout: Duration::from_secs(10),
    };
    let resource = Resource { node: "n".to_owned(), version: "0".to_owned(), ..Resource::default() };
    let began = std::time::Instant::now();
    let mut exporter = Exporter::start(&[endpoint], dir.path(), &handle, &resource, policy()).unwrap();
    let mut status = exporter.statuses().watch(0).unwrap();
    let last = u64::try_from(count).unwrap();
    let seen = tokio::time::timeout(
        Duration::from_secs(30),
        status.wait_for(|s| s.acknowledged_seq >= last || s.last_error.is_some()),
    );
    let seen = seen.await.expect("acknowledged in time").unwrap().clone();
    println!("{seen:?} after {:?}", began.elapsed());
    assert_eq!(seen.last_error, None);
    exporter.stop().await;
    journal.shutdown().await.unwrap();
}
