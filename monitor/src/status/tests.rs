//! The server over a real socket with a judge and a journal of the test's own; the client against what is no agent.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::{Client, ClientError};
use super::{
    Acknowledged, AgentStatus, BaselineStatus, EventSource, ExportStatus, JournalStatus, KubernetesFault,
    KubernetesPod, KubernetesState, KubernetesStatus, LossStatus, ObjectCounts, ObjectEntry, ObjectState,
    Posture, Proof, Query, SensorStatus, Server, Socket, SocketError, StatusReport, ViolationCounts,
    ViolationEntry, ViolationState, ViolationStory, Watched,
};
use crate::journal::evidence::{Evidence, Proven};
use crate::model::{
    Action, Class, Coverage, Family, HostPath, ObjectRef, Operation, Rung, Severity, Time, ViolationBody,
    ViolationKind,
};
use crate::sensor::{Hook, Lapse};

const ID: &str = "01J00000000000000000000000";
const AT: Time = Time(1_700_000_000_000_000_000);
const HOSTILE: &str = "/etc/<script>alert(1)</script>\n\\xff";

#[derive(Debug)]
struct Journal {
    records: Mutex<Vec<Bytes>>,
    durable: watch::Sender<u64>,
}

impl Journal {
    fn with(count: u64) -> Arc<Self> {
        let journal = Arc::new(Self { records: Mutex::default(), durable: watch::channel(0).0 });
        (0..count).for_each(|_| journal.append());
        journal
    }

    fn append(&self) {
        let mut records = self.records.lock().unwrap();
        let seq = records.len() as u64 + 1;
        records.push(record(seq));
        self.durable.send_replace(seq);
    }
}

fn record(seq: u64) -> Bytes {
    let body = json!({"seq": seq, "time": AT, "node": "n", "severity": "info", "uid": ID, "coverage": "full",
        "kind": "agent.stopped", "reason": "test"});
    Bytes::from(body.to_string())
}

impl EventSource for Journal {
    fn read_from(&self, seq: u64, max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        let records = self.records.lock().unwrap();
        Ok((1..).zip(records.iter().cloned()).filter(|(at, _)| *at >= seq).take(max).collect())
    }

    fn seq_at_time(&self, time: Time) -> io::Result<u64> {
        Ok(if time <= AT { 1 } else { *self.durable.borrow() + 1 })
    }

    fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    fn checkpoint(&self) -> io::Result<Option<String>> {
        Ok(Some("n\n3\nroot\n\n— n sig\n".to_owned()))
    }

    fn proof(&self, seq: u64) -> io::Result<Option<Proof>> {
        let text = || "AA==".to_owned();
        let proof = |seq| Proof {
            seq,
            tree_size: 3,
            leaf_hash: text(),
            hashes: vec![text()],
            root: text(),
            checkpoint: text(),
        };
        Ok((seq <= 3).then(|| proof(seq)))
    }

    fn evidence(&self, violation: &str, seqs: &[u64]) -> io::Result<Option<Evidence>> {
        let text = || "AA==".to_owned();
        let proven = |seq: &u64| Proven { seq: *seq, payload: text(), hashes: vec![text()] };
        Ok(Some(Evidence {
            format: text(),
            violation: violation.to_owned(),
            origin: text(),
            key: text(),
            rotations: Vec::new(),
            checkpoint: text(),
            omitted: 0,
            records: seqs.iter().map(proven).collect(),
        }))
    }
}

fn report() -> StatusReport {
    let lapse = Some(Lapse { dead_since: Some(AT), live_since: AT, tries: 1 });
    let (name, family) = ("file_open".to_owned(), Family::Open);
    let hook = Hook { name, family, live: true, last_canary: Some(AT), lapse };
    StatusReport {
        node: "n".to_owned(),
        posture: Posture::Violated,
        reasons: vec!["violations_open".to_owned()],
        since: AT,
        mode: "observe".to_owned(),
        coverage: Coverage::Full,
        sensor: SensorStatus {
            rung: Rung::Lsm,
            hooks: vec![hook],
            blind_to: Vec::new(),
            watched: Watched { slots: 4, inodes: 5 },
        },
        objects: ObjectCounts { total: 1, violated: 1, ..ObjectCounts::default() },
        violations: ViolationCounts { open: 1, total: 1 },
        baseline: vec![BaselineStatus {
            name: "b".to_owned(),
            revision: 1,
            accepted: AT,
            not_after: None,
            signers: vec!["k".to_owned()],
        }],
        loss: LossStatus::default(),
        export: vec![ExportStatus {
            endpoint: "http://c:4317".to_owned(),
            acknowledged_seq: 2,
            oldest_unsent_age_s: 0,
            last_error: None,
        }],
        journal: JournalStatus { seq: 3, tree_size: 3, root: "AA==".to_owned() },
        agent: AgentStatus {
            version: "1".to_owned(),
            started: AT,
            ready: true,
            host_root: HostPath::from_text("/"),
        },
        kubernetes: KubernetesStatus {
            state: KubernetesState::Lost,
            server: Some("https://k:443".to_owned()),
            since: AT,
            last_sync: Some(AT),
            last_heard: Some(AT),
            fault: Some(KubernetesFault { kind: "silent".to_owned(), message: "m".to_owned() }),
            pods: 1,
            lists: 1,
            unknown: vec!["u".to_owned()],
            ..KubernetesStatus::default()
        },
    }
}

fn entry() -> ViolationEntry {
    let object = ObjectRef {
        id: "o".to_owned(),
        path: HostPath::from_text(HOSTILE),
        class: Class::Sealed,
        baseline: Some("b".to_owned()),
        revision: Some(1),
    };
    ViolationEntry {
        uid: ID.to_owned(),
        seq: 1,
        time: AT,
        severity: Severity::High,
        state: ViolationState::Open,
        resolution: None,
        updates: 0,
        body: ViolationBody {
            violation: ViolationKind::Content,
            object,
            operation: Operation::Write,
            operations: Vec::new(),
            sensor: Rung::Lsm,
            count: 1,
            first_time: AT,
            last_time: AT,
            fingerprint: "f".to_owned(),
            action: Action::Observed,
            expected: BTreeMap::new(),
            actual: BTreeMap::new(),
            actor: None,
            actor_unknown_because: Some("test".to_owned()),
            target: None,
            attack: Vec::new(),
            detail: None,
        },
    }
}

fn object() -> ObjectEntry {
    ObjectEntry {
        id: "o".to_owned(),
        path: HostPath::from_text(HOSTILE),
        class: Class::Sealed,
        baseline: Some("b".to_owned()),
        revision: Some(1),
        state: ObjectState::Violated,
        kind: "file".to_owned(),
        last_verified: Some(AT),
        violations: vec![ID.to_owned()],
    }
}

/// A server with all that keeps it running; it ends with this.
struct Running {
    socket: PathBuf,
    journal: Arc<Journal>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

fn start(records: u64) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/agent.sock");
    let socket = Socket::bind(&path).unwrap();
    let (journal, stop) = (Journal::with(records), CancellationToken::new());
    let writes = Arc::clone(&journal);
    let (queries, mut asked) = mpsc::channel(8);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(query) = asked.recv().await {
            match query {
                Query::Status(answer) => drop(answer.send(report())),
                Query::Objects(answer) => drop(answer.send(vec![object()])),
                Query::Violations(answer) => drop(answer.send(vec![entry()])),
                Query::Violation(id, answer) => {
                    let records = vec![serde_json::from_slice(&record(1)).unwrap()];
                    let story = ViolationStory { entry: entry(), records };
                    drop(answer.send((id == ID).then(|| Box::new(story))));
                }
                Query::Acknowledge(id, by, answer) => {
                    let own = (rustix::process::geteuid().as_raw(), std::process::id());
                    assert_eq!((by.uid, by.pid), own);
                    assert!(by.exe.is_some_and(|exe| exe.as_path().is_absolute()));
                    let what = match by.reason.as_str() {
                        "standing" => Acknowledged::Standing,
                        "resolved" => Acknowledged::Resolved,
                        "elsewhere" => Acknowledged::Elsewhere(4_026_532_000),
                        _ if id == ID => Acknowledged::Done(ID.to_owned()),
                        _ => Acknowledged::Unknown,
                    };
                    let done = matches!(what, Acknowledged::Done(_));
                    assert!(answer.send(what).is_ok());
                    if done {
                        writes.append();
                    }
                }
                Query::Pods(answer) => drop(answer.send(vec![KubernetesPod {
                    uid: "u".to_owned(),
                    owner: Some(crate::model::Owner { kind: "DaemonSet".to_owned(), name: "d".to_owned() }),
                    ..KubernetesPod::default()
                }])),
                Query::Unsealed(answer) => drop(answer.send(vec![HostPath::from_text(HOSTILE)])),
            }
        }
    });
    tasks.spawn(Server::new(queries, journal.clone(), stop.clone()).serve(socket));
    Running { socket: path, journal, stop, tasks, _dir: dir }
}

async fn get(path: &str) -> Result<Bytes, ClientError> {
    let running = start(3);
    Client::connect(&running.socket).await.unwrap().get(path).await
}

async fn refused(path: &str) -> (Option<u16>, String) {
    let error = get(path).await.unwrap_err();
    (error.status, error.to_string())
}

async fn decoded<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&get(path).await.unwrap()).unwrap()
}

#[tokio::test]
async fn answers_are_what_the_judge_said() {
    assert_eq!(decoded::<StatusReport>("/v1/status").await, report());
    assert_eq!(decoded::<Vec<ObjectEntry>>("/v1/objects").await, [object()]);
    assert_eq!(decoded::<Vec<ViolationEntry>>("/v1/violations").await, [entry()]);
    assert_eq!(decoded::<Vec<HostPath>>("/v1/unsealed").await, [HostPath::from_text(HOSTILE)]);
    let story = decoded::<ViolationStory>(&format!("/v1/violations/{}", ID.to_lowercase())).await;
    assert_eq!((story.entry, story.records.len()), (entry(), 1));
    assert_eq!(get("/healthz").await.unwrap(), "ok\n");
    assert_eq!(get("/readyz").await.unwrap(), "ready\n");
    assert_eq!(get("/v1/journal/checkpoint").await.unwrap(), "n\n3\nroot\n\n— n sig\n");
}

#[tokio::test]
async fn events_are_lines_from_a_number_or_a_time_on() {
    let lines = |seqs: &[u64]| -> Bytes {
        seqs.iter().flat_map(|&seq| [record(seq), Bytes::from_static(b"\n")].concat()).collect()
    };
    assert_eq!(get("/v1/events").await.unwrap(), lines(&[1, 2, 3]));
    assert_eq!(get("/v1/events?since=0").await.unwrap(), lines(&[1, 2, 3]));
    assert_eq!(get("/v1/events?since=2").await.unwrap(), lines(&[2, 3]));
    assert_eq!(get("/v1/events?since=2&limit=1").await.unwrap(), lines(&[2]));
    assert_eq!(get("/v1/events?limit=0").await.unwrap(), "");
    assert_eq!(get("/v1/events?since=18446744073709551615").await.unwrap(), "");
    assert_eq!(get("/v1/events?since_time=2023-11-14T22:13:20Z").await.unwrap(), lines(&[1, 2, 3]));
    assert_eq!(get("/v1/events?since_time=2024-11-14T22:13:20Z").await.unwrap(), "");
}

#[tokio::test]
async fn a_follower_gets_what_comes_and_is_told_the_end() {
    let mut running = start(600);
    let client = Client::connect(&running.socket).await.unwrap();
    let (journal, stop) = (running.journal.clone(), running.stop.clone());
    let mut seen = Vec::new();
    let followed = client.lines("/v1/events?since=2", true, |line: &[u8]| {
        seen.push(Bytes::copy_from_slice(line));
        match seen.len() {
            599 => journal.append(),
            600 => stop.cancel(),
            _ => {}
        }
        Ok::<(), ClientError>(())
    });
    assert_eq!(followed.await, Ok(()));
    assert_eq!(seen, (2..=601).map(record).collect::<Vec<_>>());
    while running.tasks.join_next().await.is_some() {}
    assert!(!running.socket.exists());
}

#[tokio::test]
async fn wrong_questions_are_told_what_is_right() {
    for (path, status, expected) in [
        ("/v2", 404, "request: /v2: no such route, expected one of /openapi.json"),
        (
            "/../../etc/passwd",
            404,
            "request: /../../etc/passwd: no such route, expected one of /openapi.json",
        ),
        (
            "/v1/violations/nonsense",
            400,
            "request: id: no violation id, expected a ULID (26 letters and digits)",
        ),
        (
            "/v1/violations/01J00000000000000000000001",
            404,
            "violation: 01J00000000000000000000001: no such violation, expected an id of /v1/violations",
        ),
        (
            "/v1/events?since=-1",
            400,
            "request: query: Failed to deserialize query string: since: invalid digit found in string",
        ),
        (
            "/v1/events?from=1",
            400,
            "request: query: Failed to deserialize query string: from: unknown field `from`, expected one of \
             `since`, `since_time`, `limit`",
        ),
        (
            "/v1/events?since_time=yesterday",
            400,
            "request: since_time: expected RFC 3339 time between 1677 and 2262, such as 2026-01-31T12:00:00Z",
        ),
        (
            "/v1/journal/proof?seq=4",
            404,
            "journal: seq 4: not covered by the latest checkpoint, expected a sequence number from 1 to its size",
        ),
    ] {
        assert_eq!(refused(path).await, (Some(status), expected.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn hostile_input_leaves_the_server_alive() {
    let running = start(3);
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "a".repeat(1 << 20));
    let deep = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a/".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(2_000));
    let raw: [(&[u8], &str); 7] = [
        (b"\x16\x03\x01garbage\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (long.as_bytes(), "HTTP/1.1 431 Request Header Fields Too Large"),
        (deep.as_bytes(), "HTTP/1.1 4"),
        (many.as_bytes(), "HTTP/1.1 431 Request Header Fields Too Large"),
        (
            b"POST /v1/status HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 405 M",
        ),
        (b"GET /%00%ff HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"GET / HTT", ""),
    ];
    for (request, expected) in raw {
        let mut stream = UnixStream::connect(&running.socket).await.unwrap();
        // It may hang up while we still write: that is an answer too.
        let _refused = stream.write_all(request).await;
        let _refused = stream.shutdown().await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        // Only who is cut off while still sending may miss the answer.
        let cut = request.len() > 8 << 10 && answer.is_empty();
        assert!(
            cut || (answer.starts_with(expected) && answer.is_empty() == expected.is_empty()),
            "{answer}"
        );
    }
    let answer = Client::connect(&running.socket).await.unwrap().get("/healthz").await;
    assert_eq!(answer.unwrap(), "ok\n");
}

#[tokio::test]
async fn the_page_runs_and_loads_nothing() {
    let page = String::from_utf8(get("/").await.unwrap().to_vec()).unwrap();
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("<code>/etc/&lt;script&gt;alert(1)&lt;/script&gt;\\x0a\\xff</code>"), "{page}");
    assert!(!page.contains("http-equiv=\"refresh\" content=\"0") && !page.contains("src="), "{page}");
}

#[tokio::test]
async fn metrics_are_the_status_in_numbers() {
    let text = String::from_utf8(get("/metrics").await.unwrap().to_vec()).unwrap();
    let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let expected = [
        "meshseal_posture{posture=\"violated\"} 1",
        "meshseal_posture{posture=\"blind\"} 0",
        "meshseal_posture{posture=\"uncertain\"} 0",
        "meshseal_posture{posture=\"intact\"} 0",
        "meshseal_coverage_full 1",
        "meshseal_hook_live{hook=\"file_open\",family=\"open\"} 1",
        "meshseal_objects{state=\"intact\"} 0",
        "meshseal_objects{state=\"violated\"} 1",
        "meshseal_objects{state=\"unverified\"} 0",
        "meshseal_objects{state=\"unsealed\"} 0",
        "meshseal_objects{state=\"superseded\"} 0",
        "meshseal_unsealed_truncated 0",
        "meshseal_violations_open 1",
        "meshseal_violations_total 1",
        "meshseal_lost_events_total 0",
        "meshseal_loss_unreconciled 0",
        "meshseal_watched_slots 4",
        "meshseal_watched_inodes 5",
        "meshseal_journal_seq 3",
        "meshseal_journal_tree_size 3",
        "meshseal_export_acknowledged_seq{endpoint=\"http://c:4317\"} 2",
        "meshseal_export_oldest_unsent_age_seconds{endpoint=\"http://c:4317\"} 0",
        "meshseal_kubernetes_state{state=\"off\"} 0",
        "meshseal_kubernetes_state{state=\"connecting\"} 0",
        "meshseal_kubernetes_state{state=\"connected\"} 0",
        "meshseal_kubernetes_state{state=\"lost\"} 1",
        "meshseal_kubernetes_pods 1",
        "meshseal_kubernetes_contradictory_pods 0",
        "meshseal_kubernetes_lists_total 1",
        "meshseal_kubernetes_last_heard_timestamp_seconds 1700000000",
        "meshseal_build_info{version=\"1\",node=\"n\"} 1",
    ];
    assert_eq!(values, expected);
}

/// Whether `value` is of `schema`, with no property that is not declared.
fn matches(document: &Value, schema: &Value, value: &Value) -> bool {
    if let Some(name) = schema["$ref"].as_str() {
        return matches(document, document.pointer(name.trim_start_matches('#')).unwrap(), value);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| matches(document, schema, value));
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.contains(value);
    }
    match schema["type"].as_str().unwrap() {
        "object" => {
            let Some(declared) = schema["properties"].as_object() else { return value.is_object() };
            let found = value.as_object().unwrap();
            schema["required"].as_array().unwrap().iter().all(|key| found.contains_key(key.as_str().unwrap()))
                && found.iter().all(|(key, value)| {
                    declared.get(key).is_some_and(|schema| matches(document, schema, value))
                })
        }
        "array" => value.as_array().unwrap().iter().all(|value| matches(document, &schema["items"], value)),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => value.is_string(),
    }
}

#[tokio::test]
async fn the_document_describes_the_routes() {
    let document: Value = decoded("/openapi.json").await;
    let running = start(3);
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 16);
    for (path, item) in paths.iter().filter(|(_, item)| item.get("get").is_some()) {
        let asked = path.replace("{id}", ID).replace("/proof", "/proof?seq=1");
        let answer = Client::connect(&running.socket).await.unwrap().get(&asked).await.unwrap();
        if let Some(json) = item["get"]["responses"]["200"]["content"].get("application/json") {
            let value: Value = serde_json::from_slice(&answer).unwrap();
            // The story is an entry with records: the two halves are checked apart.
            let schema = &json["schema"];
            if schema["$ref"] == "#/components/schemas/ViolationStory" {
                let mut half = value.clone();
                assert!(half.as_object_mut().unwrap().remove("records").unwrap().is_array());
                assert!(matches(&document, &document["components"]["schemas"]["Violation"], &half), "{half}");
            } else {
                assert!(matches(&document, schema, &value), "{path}: {value}");
            }
        }
    }
}

#[tokio::test]
async fn it_is_acknowledged_with_a_reason_and_told_once_it_is_on_disk() {
    let running = start(3);
    let asked = async |id: &str, body: Value| {
        let mut client = Client::connect(&running.socket).await.unwrap();
        let answer = client.post(&format!("/v1/violations/{id}/acknowledge"), &body).await;
        answer.map(|done| String::from_utf8(done.to_vec()).unwrap()).map_err(|e| (e.status, e.to_string()))
    };
    let good = asked(ID, json!({"reason": " seen, harmless "})).await;
    assert_eq!(serde_json::from_str::<Value>(&good.unwrap()).unwrap(), json!({"acknowledged": ID, "seq": 4}));
    let other = "01J00000000000000000000001";
    for (id, body, status) in [
        (other, json!({"reason": "x"}), 404),
        ("nonsense", json!({"reason": "x"}), 400),
        (ID, json!({"reason": "standing"}), 409),
        (ID, json!({"reason": "resolved"}), 409),
        (ID, json!({"reason": "elsewhere"}), 409),
        (ID, json!({"reason": " "}), 400),
        (ID, json!({"reason": "two\nlines"}), 400),
        (ID, json!({"reason": "x".repeat(1001)}), 400),
        (ID, json!({"because": "x"}), 400),
        (ID, json!([]), 400),
        (ID, json!({"reason": "x".repeat(100_000)}), 413),
    ] {
        let (found, told) = asked(id, body).await.unwrap_err();
        assert_eq!(found, Some(status), "{told}");
        assert!(!told.contains('\n'), "{told}");
    }
}

#[tokio::test]
async fn the_socket_is_private_and_not_taken_from_the_living() {
    let running = start(0);
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&running.socket), 0o600);
    assert_eq!(mode(running.socket.parent().unwrap()), 0o700);
    let in_use = Socket::bind(&running.socket).unwrap_err();
    assert!(matches!(in_use, SocketError::InUse(_)), "{in_use}");

    let dir = tempfile::tempdir().unwrap();
    let (stale, file) = (dir.path().join("stale"), dir.path().join("file"));
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let socket = Socket::bind(&stale).unwrap();
    assert_eq!(mode(&stale), 0o600);
    drop(socket);
    assert!(!stale.exists());
    std::fs::write(&file, "precious").unwrap();
    let refused = Socket::bind(&file).unwrap_err().to_string();
    assert_eq!(refused, format!("socket: {}: is no socket, expected a socket or nothing", file.display()));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["file"]);
}

async fn told(path: &Path) -> String {
    let error = match Client::connect(path).await {
        Ok(mut client) => client.get_json::<StatusReport>("/v1/status").await.unwrap_err(),
        Err(error) => error,
    };
    error.to_string().replace(&path.display().to_string(), "PATH")
}

#[tokio::test]
async fn what_is_no_agent_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert_eq!(told(&at("none")).await, "agent: PATH: no such socket, expected a running agent");
    std::fs::write(at("file"), "").unwrap();
    assert_eq!(told(&at("file")).await, "agent: PATH: is no socket, expected the agent's socket");
    assert_eq!(told(dir.path()).await, "agent: PATH: is no socket, expected the agent's socket");
    drop(std::os::unix::net::UnixListener::bind(at("dead")).unwrap());
    assert_eq!(told(&at("dead")).await, "agent: PATH: nobody listens, expected a running agent");
    if !rustix::process::geteuid().is_root() {
        std::fs::set_permissions(at("dead"), std::fs::Permissions::from_mode(0o000)).unwrap();
        let expected = "agent: PATH: permission denied, expected to be run as root or the agent's user";
        assert_eq!(told(&at("dead")).await, expected);
    }
    for (name, answer, expected) in [
        ("silent", "", "agent: PATH: hung up without an answer, expected a meshseal agent"),
        ("garbage", "SSH-2.0-x\r\n\r\n", "agent: PATH: the answer is no HTTP, expected a meshseal agent"),
        (
            "json",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
            "agent: PATH: the answer to /v1/status is not what a meshseal agent answers (invalid length 0, expected \
             struct StatusReport with 15 elements at line 1 column 2)",
        ),
        (
            "broken",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[]",
            "agent: PATH: the answer broke off, expected a whole one",
        ),
        (
            "error",
            "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
            "agent: PATH: HTTP status 500, expected 200",
        ),
        (
            "known",
            "HTTP/1.1 503 No\r\ncontent-length: 53\r\n\r\n{\"error\":{\"what\":\"a\",\"where\":\"b\",\"expected\":\"c\"}}    ",
            "a: b: c",
        ),
    ] {
        let listener = UnixListener::bind(at(name)).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1_024];
            let _read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        assert_eq!(told(&at(name)).await, expected, "{name}");
    }
}
