//! A receiver that misbehaves as it is told, by gRPC and by HTTP/protobuf.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::config::{Compression, Endpoint, Protocol, Tls};

/// What comes of one request.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Taken.
    Accept,
    /// Not taken; by HTTP and by gRPC in these words, and perhaps with a time to wait.
    Refuse(u16, Code, Option<Duration>),
    /// Over the receiver's limit, as servers say it.
    TooLarge,
    /// Taken but for so many.
    Partial(i64),
    /// Never answered.
    Hang,
    /// The connection is cut before anything was taken.
    Cut,
    /// Taken, and the connection is cut before the answer.
    TakeAndCut,
}

#[derive(Debug, Default)]
struct Orders {
    /// Answers to the next requests; when there is none left, `then`.
    script: VecDeque<Answer>,
    /// For requests that it holds: refused as poison, or too large.
    limit: Option<usize>,
}

type Shared = Arc<Mutex<Orders>>;

/// Listens until dropped.
pub(super) struct Receiver {
    pub(super) protocol: Protocol,
    /// How long the exporter waits for it.
    pub(super) timeout: Duration,
    address: SocketAddr,
    orders: Shared,
    taken: watch::Sender<Vec<LogRecord>>,
    seen: watch::Sender<Vec<Instant>>,
    tasks: JoinSet<()>,
}

impl Receiver {
    /// Listens on a port of its own.
    pub(super) async fn start(protocol: Protocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut receiver = Self {
            protocol,
            timeout: Duration::from_secs(20),
            address,
            orders: Shared::default(),
            taken: watch::channel(Vec::new()).0,
            seen: watch::channel(Vec::new()).0,
            tasks: JoinSet::new(),
        };
        receiver.listen(listener);
        receiver
    }

    fn listen(&mut self, listener: TcpListener) {
        let (protocol, orders) = (self.protocol, Arc::clone(&self.orders));
        let (taken, seen) = (self.taken.clone(), self.seen.clone());
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let state = State {
                    protocol,
                    orders: Arc::clone(&orders),
                    taken: taken.clone(),
                    seen: seen.clone(),
                    cut: CancellationToken::new(),
                };
                connections.spawn(connection(stream, state));
            }
        });
    }

    /// Stops listening, and cuts all connections.
    pub(super) async fn down(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Listens again, at the same place.
    pub(super) async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listen(listener);
    }

    /// Says what comes of the next requests.
    pub(super) fn then(&self, answers: impl IntoIterator<Item = Answer>) {
        self.orders.lock().unwrap().script.extend(answers);
    }

    /// From now on requests of more bytes are too large.
    pub(super) fn limit(&self, bytes: usize) {
        self.orders.lock().unwrap().limit = Some(bytes);
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        let path = if self.protocol == Protocol::HttpProtobuf { "/v1/logs" } else { "" };
        Endpoint {
            endpoint: format!("http://{}{path}", self.address),
            protocol: self.protocol,
            headers: BTreeMap::new(),
            tls: Tls::default(),
            compression: Compression::None,
            timeout: self.timeout,
        }
    }

    pub(super) fn taken(&self) -> watch::Receiver<Vec<LogRecord>> {
        self.taken.subscribe()
    }

    /// When requests came.
    pub(super) fn seen(&self) -> watch::Receiver<Vec<Instant>> {
        self.seen.subscribe()
    }
}

#[derive(Clone)]
struct State {
    protocol: Protocol,
    orders: Shared,
    taken: watch::Sender<Vec<LogRecord>>,
    seen: watch::Sender<Vec<Instant>>,
    cut: CancellationToken,
}

async fn connection(stream: TcpStream, state: State) {
    let (protocol, cut) = (state.protocol, state.cut.clone());
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(request, state).await) }
    });
    let io = TokioIo::new(stream);
    let served = async {
        // How it ends is the test's doing.
        match protocol {
            Protocol::Grpc => {
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(http.serve_connection(io, service).await);
            }
            Protocol::HttpProtobuf => {
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = cut.cancelled() => {}
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, state: State) -> Response<Body> {
    let grpc = state.protocol == Protocol::Grpc;
    let next = state.orders.lock().unwrap().script.pop_front().unwrap_or(Answer::Accept);
    let at = Instant::now();
    if matches!(next, Answer::Cut) {
        state.seen.send_modify(|seen| seen.push(at));
        state.cut.cancel();
        return std::future::pending().await;
    }
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    // A gRPC message has a flag and its length before it.
    let bytes = if grpc { bytes.slice(5..) } else { bytes };
    let limit = state.orders.lock().unwrap().limit;
    let next = if limit.is_some_and(|limit| bytes.len() > limit) { Answer::TooLarge } else { next };
    let logs: Vec<LogRecord> = ExportLogsServiceRequest::decode(bytes)
        .unwrap()
        .resource_logs
        .into_iter()
        .flat_map(|of_resource| of_resource.scope_logs)
        .flat_map(|of_scope| of_scope.log_records)
        .collect();
    state.seen.send_modify(|seen| seen.push(at));
    let take = || state.taken.send_modify(|taken| taken.extend(logs));
    match next {
        Answer::Accept => {
            take();
            accepted(grpc, &ExportLogsServiceResponse::default())
        }
        Answer::Partial(rejected) => {
            take();
            let partial =
                ExportLogsPartialSuccess { rejected_log_records: rejected, error_message: "no".to_owned() };
            accepted(grpc, &ExportLogsServiceResponse { partial_success: Some(partial) })
        }
        Answer::Refuse(status, code, after) => refused(grpc, status, code, "refused", after),
        Answer::TooLarge => refused(
            grpc,
            413,
            Code::OutOfRange,
            "Error, decoded message length too large: found 9 bytes",
            None,
        ),
        Answer::Hang => std::future::pending().await,
        Answer::TakeAndCut => {
            take();
            state.cut.cancel();
            std::future::pending().await
        }
        Answer::Cut => unreachable!("cut above"),
    }
}

fn accepted(grpc: bool, response: &ExportLogsServiceResponse) -> Response<Body> {
    let message = response.encode_to_vec();
    if !grpc {
        return Response::new(Full::from(message).boxed());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.extend_from_slice(&message);
    trailed(framed.freeze(), &tonic::Status::ok(""))
}

fn refused(grpc: bool, status: u16, code: Code, message: &str, after: Option<Duration>) -> Response<Body> {
    if grpc {
        let details = ErrorDetails::with_retry_info(after);
        let status = match after {
            Some(_) => tonic::Status::with_error_details(code, message, details),
            None => tonic::Status::new(code, message),
        };
        return trailed(Bytes::new(), &status);
    }
    let mut response = Response::new(Full::default().boxed());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    if let Some(after) = after {
        response.headers_mut().insert("retry-after", after.as_secs().to_string().parse().unwrap());
    }
    response
}

fn trailed(message: Bytes, status: &tonic::Status) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    let body = Full::from(message).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(BodyExt::boxed(body));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}
