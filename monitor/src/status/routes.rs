//! The routes of the contract's §5. `openapi.json` describes the same; a test holds them together.

use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query as Parameters, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::server::Peer;
use super::{Acknowledged, EventSource, Query, Server, StatusReport, feed, metrics, page};
use crate::model::{Acknowledgement, Time};

/// How long the judge may take: it verifies in between, but never for long at a stretch.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request's body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's body.
const MAX_BODY: usize = 16 << 10;
/// Characters of a reason.
const MAX_REASON: usize = 1000;
const JSON: &str = "application/json";
const OPENAPI: &str = include_str!("openapi.json");

pub(super) fn router(server: Server) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/v1/status", get(status))
        .route("/v1/objects", get(objects))
        .route("/v1/pods", get(pods))
        .route("/v1/unsealed", get(unsealed))
        .route("/v1/violations", get(violations))
        .route("/v1/violations/{id}", get(violation))
        .route("/v1/violations/{id}/evidence", get(evidence))
        .route("/v1/violations/{id}/acknowledge", post(acknowledge))
        .route("/v1/events", get(events))
        .route("/v1/journal/checkpoint", get(checkpoint))
        .route("/v1/journal/proof", get(proof))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/openapi.json", get(async || typed(JSON, OPENAPI)))
        .fallback(async |uri: Uri| {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "request",
                uri.path(),
                "no such route, expected one of /openapi.json",
            )
        })
        .method_not_allowed_fallback(async |uri: Uri| {
            Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "request",
                uri.path(),
                "method not allowed, expected one of /openapi.json",
            )
        })
        .with_state(server)
}

/// An error as `{"error":{"what","where","expected"}}`.
#[derive(Debug, Serialize)]
pub(super) struct Refusal {
    #[serde(skip)]
    status: StatusCode,
    what: &'static str,
    #[serde(rename = "where")]
    place: String,
    expected: String,
}

impl Refusal {
    fn new(
        status: StatusCode,
        what: &'static str,
        place: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self { status, what, place: place.into(), expected: expected.into() }
    }

    pub(super) fn journal(error: &std::io::Error) -> Self {
        let expected = format!("cannot be read ({error}), expected a readable journal");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "journal", "journal", expected)
    }

    pub(super) fn busy(place: &str, expected: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "agent", place, expected)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status;
        (status, typed(JSON, serde_json::json!({ "error": self }).to_string())).into_response()
    }
}

fn typed(kind: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body.into()).into_response()
}

fn json(value: &impl Serialize) -> Result<Response, Refusal> {
    let body = serde_json::to_string(value).map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "agent", "answer", error.to_string())
    })?;
    Ok(typed(JSON, body))
}

/// Puts a question to the judge task.
async fn ask<T>(server: &Server, question: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, Refusal> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        server.queries.send(question(answer)).await.ok()?;
        answered.await.ok()
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(Refusal::busy("judge", "stopping, expected a running agent")),
        Err(_) => Err(Refusal::busy("judge", "no answer within 5 s, expected a responsive agent")),
    }
}

/// Reads the journal on a thread that may wait for the disk.
async fn read<T: Send + 'static>(
    server: &Server,
    call: impl FnOnce(&dyn EventSource) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let source = server.events.clone();
    match tokio::task::spawn_blocking(move || call(&*source)).await {
        Ok(read) => read.map_err(|error| Refusal::journal(&error)),
        Err(_) => Err(Refusal::journal(&std::io::Error::other("reader failed"))),
    }
}

async fn status(State(server): State<Server>) -> Result<Response, Refusal> {
    json(&ask(&server, Query::Status).await?)
}

async fn objects(State(server): State<Server>) -> Result<Response, Refusal> {
    json(&ask(&server, Query::Objects).await?)
}

async fn pods(State(server): State<Server>) -> Result<Response, Refusal> {
    json(&ask(&server, Query::Pods).await?)
}

async fn unsealed(State(server): State<Server>) -> Result<Response, Refusal> {
    json(&ask(&server, Query::Unsealed).await?)
}

async fn violations(State(server): State<Server>) -> Result<Response, Refusal> {
    json(&ask(&server, Query::Violations).await?)
}

/// The id of a violation as it is written in records.
fn violation_id(id: &str) -> Result<String, Refusal> {
    if id.len() == 26 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(id.to_ascii_uppercase());
    }
    let expected = "no violation id, expected a ULID (26 letters and digits)";
    Err(Refusal::new(StatusCode::BAD_REQUEST, "request", "id", expected))
}

fn no_violation(id: String) -> Refusal {
    let expected = "no such violation, expected an id of /v1/violations";
    Refusal::new(StatusCode::NOT_FOUND, "violation", id, expected)
}

async fn violation(State(server): State<Server>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let asked = violation_id(&id)?;
    match ask(&server, |answer| Query::Violation(asked, answer)).await? {
        Some(story) => json(&*story),
        None => Err(no_violation(id)),
    }
}

async fn evidence(State(server): State<Server>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let asked = violation_id(&id)?;
    let story = ask(&server, |answer| Query::Violation(asked, answer)).await?;
    let story = story.ok_or_else(|| no_violation(id.clone()))?;
    let seqs: Vec<u64> = story.records.iter().map(|record| record.seq).collect();
    let uid = story.entry.uid.clone();
    if story.records.first().is_none_or(|first| first.uid != uid) {
        let expected =
            "its first record is not in the journal, expected one that is on disk and was not evicted";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "evidence", id, expected));
    }
    match read(&server, move |journal| journal.evidence(&uid, &seqs)).await? {
        Some(evidence) => json(&evidence),
        None => Err(Refusal::busy("journal", "its records are not signed yet, expected to be asked again")),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AcknowledgeBody {
    reason: String,
}

/// Over the socket alone, whose peers are root or the agent's own user: who asks is what the kernel says, and is recorded.
async fn acknowledge(
    State(server): State<Server>,
    peer: Option<Extension<Peer>>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let asked = violation_id(&id)?;
    let Some(Extension(peer)) = peer else {
        let expected = "not permitted, expected to be asked over the agent's socket";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "violation", id, expected));
    };
    let refuse = |expected: String| Refusal::new(StatusCode::BAD_REQUEST, "request", "reason", expected);
    let body = match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let expected = format!("more than {MAX_BODY} bytes or cut off, expected less and all of it");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "request", "body", expected));
        }
        Err(_) => {
            let expected = "not there within 10 s, expected to be sent at once";
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "request", "body", expected));
        }
    };
    let AcknowledgeBody { reason } =
        serde_json::from_slice(&body).map_err(|e| refuse(format!("{e}, expected {{\"reason\": TEXT}}")))?;
    let reason = reason.trim().to_owned();
    if reason.is_empty() || reason.chars().count() > MAX_REASON || reason.contains(char::is_control) {
        return Err(refuse(format!("expected 1 to {MAX_REASON} characters on one line")));
    }
    let exe = std::fs::read_link(format!("/proc/{}/exe", peer.pid)).ok();
    let exe = exe.map(|path| crate::model::HostPath::from(path.as_path()));
    let by = Acknowledgement { uid: peer.uid, pid: peer.pid, exe, reason };
    let refused = |status, expected: &str| Err(Refusal::new(status, "violation", id.clone(), expected));
    let before = *server.events.durable().borrow();
    match ask(&server, |answer| Query::Acknowledge(asked, by, answer)).await? {
        Acknowledged::Done(record) => match on_disk(&server, before, record).await? {
            Some(seq) => json(&serde_json::json!({ "acknowledged": id, "seq": seq })),
            None => Err(Refusal::busy(
                "journal",
                "it is acknowledged, but that is not on disk yet, expected a journal that can be written",
            )),
        },
        Acknowledged::Unknown => Err(no_violation(id)),
        Acknowledged::Elsewhere(namespace) => {
            let expected = format!(
                "the host sees it as before, but mount namespace {namespace} lives, and what lies over it there is not \
                 known to be gone: expected its processes to have ended"
            );
            refused(StatusCode::CONFLICT, &expected)
        }
        Acknowledged::Resolved => refused(StatusCode::CONFLICT, "resolved already, expected an open one"),
        Acknowledged::Standing => refused(
            StatusCode::CONFLICT,
            "its wrong state still stands, expected one that has passed: put it right, or sign a newer baseline",
        ),
    }
}

/// Of a record, what it is looked for by.
#[derive(Debug, Deserialize)]
struct Named {
    uid: String,
}

/// The number of a record that is about to be written, once it is durable; `None` if it is not in time.
async fn on_disk(server: &Server, before: u64, uid: String) -> Result<Option<u64>, Refusal> {
    let (mut durable, mut next) = (server.events.durable(), before.saturating_add(1));
    let until = tokio::time::Instant::now() + ANSWER_TIMEOUT;
    loop {
        let end = *durable.borrow_and_update();
        while next <= end {
            let records = read(server, move |journal| journal.read_from(next, 256)).await?;
            let Some((last, _)) = records.last() else { break };
            next = last.saturating_add(1);
            let is_it = |payload: &[u8]| {
                serde_json::from_slice::<Named>(payload).is_ok_and(|record| record.uid == uid)
            };
            if let Some((seq, _)) = records.iter().find(|(_, payload)| is_it(payload)) {
                return Ok(Some(*seq));
            }
        }
        if !matches!(tokio::time::timeout_at(until, durable.changed()).await, Ok(Ok(()))) {
            return Ok(None);
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    since: Option<u64>,
    since_time: Option<String>,
    limit: Option<u64>,
}

fn parameters<T>(parsed: Result<Parameters<T>, QueryRejection>) -> Result<T, Refusal> {
    parsed
        .map(|Parameters(parsed)| parsed)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "request", "query", error.body_text()))
}

async fn events(
    State(server): State<Server>,
    headers: HeaderMap,
    query: Result<Parameters<EventsQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let query = parameters(query)?;
    let follow = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|accept| accept.to_str().ok())
        .any(|accept| accept.contains("text/event-stream"));
    let mut since = query.since.unwrap_or(1).max(1);
    if let Some(text) = query.since_time {
        let time = Time::parse(&text).map_err(|error| {
            Refusal::new(StatusCode::BAD_REQUEST, "request", "since_time", error.to_string())
        })?;
        since = since.max(read(&server, move |journal| journal.seq_at_time(time)).await?);
    }
    // An event-stream client that lost its connection says what it had last.
    if let Some(last) = headers.get("last-event-id").filter(|_| follow) {
        let last: Option<u64> = last.to_str().ok().and_then(|last| last.parse().ok());
        let last = last.ok_or_else(|| {
            let expected = "is no sequence number, expected the id of the last event received";
            Refusal::new(StatusCode::BAD_REQUEST, "request", "Last-Event-ID", expected)
        })?;
        since = since.max(last.saturating_add(1));
    }
    feed::respond(&server, since, query.limit, follow)
}

async fn checkpoint(State(server): State<Server>) -> Result<Response, Refusal> {
    match read(&server, EventSource::checkpoint).await? {
        Some(note) => Ok(typed("text/plain; charset=utf-8", note)),
        None => {
            let expected = "none has been made yet, expected one within a minute of the first record";
            Err(Refusal::new(StatusCode::NOT_FOUND, "journal", "checkpoint", expected))
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProofQuery {
    seq: u64,
}

async fn proof(
    State(server): State<Server>,
    query: Result<Parameters<ProofQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let seq = parameters(query)?.seq;
    let found = if seq == 0 { None } else { read(&server, move |journal| journal.proof(seq)).await? };
    match found {
        Some(proof) => json(&proof),
        None => {
            let expected =
                "not covered by the latest checkpoint, expected a sequence number from 1 to its size";
            Err(Refusal::new(StatusCode::NOT_FOUND, "journal", format!("seq {seq}"), expected))
        }
    }
}

async fn prometheus(State(server): State<Server>) -> Result<Response, Refusal> {
    let report = ask(&server, Query::Status).await?;
    Ok(typed("text/plain; version=0.0.4; charset=utf-8", metrics::render(&report)))
}

/// Alive: the judge answers.
async fn healthz(State(server): State<Server>) -> Result<Response, Refusal> {
    ask(&server, Query::Status).await?;
    Ok(typed("text/plain; charset=utf-8", "ok\n"))
}

/// Ready: hooks are live and the first verification is done.
async fn readyz(State(server): State<Server>) -> Result<Response, Refusal> {
    let report: StatusReport = ask(&server, Query::Status).await?;
    if report.agent.ready {
        return Ok(typed("text/plain; charset=utf-8", "ready\n"));
    }
    Err(Refusal::busy("agent", "not ready yet, expected live hooks and a first verification"))
}

async fn root(State(server): State<Server>) -> Result<Response, Refusal> {
    let report = ask(&server, Query::Status).await?;
    let violations = ask(&server, Query::Violations).await?;
    let mut response = typed("text/html; charset=utf-8", page::render(&report, &violations));
    for (name, value) in page::headers() {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}
