//! Asking an agent over its socket: bounded in time and size, each way it can fail told apart.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Longer than the server takes to give up on the judge.
const TIMEOUT: Duration = Duration::from_secs(10);
/// 10,000 objects are some megabytes.
const MAX_ANSWER: usize = 256 << 20;

/// Why there is no answer: `agent: WHERE: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {place}: {expected}")]
pub struct ClientError {
    /// Which part.
    pub what: String,
    /// The socket, or what the agent names.
    pub place: String,
    /// What was found and expected.
    pub expected: String,
    /// HTTP status, where the agent answered with an error.
    pub status: Option<u16>,
}

/// A connection to an agent. Dropping it closes it.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    sender: SendRequest<Full<Bytes>>,
    /// Drives the connection.
    _connection: JoinSet<()>,
}

/// The agent's own word on an error.
#[derive(Debug, Deserialize)]
struct ErrorAnswer {
    error: ErrorDetail,
}

#[derive(Debug, Deserialize)]
struct ErrorDetail {
    what: String,
    #[serde(rename = "where")]
    place: String,
    expected: String,
}

fn refuse(socket: &Path, expected: impl Into<String>) -> ClientError {
    let place = socket.display().to_string();
    ClientError { what: "agent".to_owned(), place, expected: expected.into(), status: None }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody answers there, or somebody who is no agent.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let timed_out = || refuse(socket, "no answer within 10 s, expected a running agent");
        // connect() says "refused" of anything that is no socket: the file itself tells more.
        match std::fs::metadata(socket) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(refuse(socket, "is no socket, expected the agent's socket"));
            }
            Ok(_) => {}
            Err(error) => return Err(refuse(socket, unreachable(error.kind(), &error))),
        }
        let stream = tokio::time::timeout(TIMEOUT, UnixStream::connect(socket))
            .await
            .map_err(|_| timed_out())?
            .map_err(|error| refuse(socket, unreachable(error.kind(), &error)))?;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| refuse(socket, format!("{error}, expected a running agent")))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // A broken connection shows as an error of the request.
            let _seen_by_the_request = connection.await;
        });
        Ok(Self { socket: socket.to_owned(), sender, _connection: tasks })
    }

    async fn send(&mut self, path: &str, accept: &str) -> Result<hyper::Response<Incoming>, ClientError> {
        let request = hyper::Request::get(path).header("accept", accept);
        self.request(path, request, Bytes::new()).await
    }

    async fn request(
        &mut self,
        path: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<hyper::Response<Incoming>, ClientError> {
        let request = request
            .header("host", "meshseal")
            .body(Full::new(body))
            .map_err(|error| refuse(&self.socket, format!("'{path}' cannot be asked: {error}")))?;
        match tokio::time::timeout(TIMEOUT, self.sender.send_request(request)).await {
            Err(_) => Err(refuse(&self.socket, "no answer within 10 s, expected a running agent")),
            Ok(Err(error)) if error.is_parse() => {
                Err(refuse(&self.socket, "the answer is no HTTP, expected a meshseal agent"))
            }
            Ok(Err(_)) => Err(refuse(&self.socket, "hung up without an answer, expected a meshseal agent")),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// Asks for `path` and returns the whole answer.
    ///
    /// # Errors
    /// No answer, or the agent's own error.
    pub async fn get(&mut self, path: &str) -> Result<Bytes, ClientError> {
        let response = self.send(path, "*/*").await?;
        self.whole(response).await
    }

    /// Tells the agent to do something, and returns the whole answer.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&mut self, path: &str, body: &serde_json::Value) -> Result<Bytes, ClientError> {
        let request = hyper::Request::post(path).header("content-type", "application/json");
        let response = self.request(path, request, body.to_string().into()).await?;
        self.whole(response).await
    }

    async fn whole(&self, response: hyper::Response<Incoming>) -> Result<Bytes, ClientError> {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER).collect();
        let body = match tokio::time::timeout(TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => return Err(refuse(&self.socket, "the answer broke off, expected a whole one")),
            Err(_) => return Err(refuse(&self.socket, "the answer stalled for 10 s, expected a whole one")),
        };
        if status.is_success() {
            return Ok(body);
        }
        Err(self.refusal(status, &body))
    }

    /// Asks for `path` and decodes the answer.
    ///
    /// # Errors
    /// As [`Self::get`], or the answer is not of that shape.
    pub async fn get_json<T: serde::de::DeserializeOwned>(
        &mut self,
        path: &str,
    ) -> Result<(T, Bytes), ClientError> {
        let body = self.get(path).await?;
        match serde_json::from_slice(&body) {
            Ok(value) => Ok((value, body)),
            Err(error) => {
                let expected = format!("the answer to {path} is not what a meshseal agent answers ({error})");
                Err(refuse(&self.socket, expected))
            }
        }
    }

    fn refusal(&self, status: hyper::StatusCode, body: &[u8]) -> ClientError {
        let code = status.as_u16();
        let status = Some(code);
        match serde_json::from_slice::<ErrorAnswer>(body) {
            Ok(ErrorAnswer { error: ErrorDetail { what, place, expected } }) => {
                ClientError { what, place, expected, status }
            }
            Err(_) => {
                ClientError { status, ..refuse(&self.socket, format!("HTTP status {code}, expected 200")) }
            }
        }
    }

    /// Asks for `path` and hands over its lines as they come, until they end or `line` says to stop. With `follow`
    /// asks for an event stream, hands over what stands after `data: `, and waits for ever.
    ///
    /// # Errors
    /// No answer, the agent's own error, a line longer than 16 MiB, a stream that breaks off, or what `line` returns.
    pub async fn lines<E: From<ClientError>>(
        mut self,
        path: &str,
        follow: bool,
        mut line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let accept = if follow { "text/event-stream" } else { "application/jsonl" };
        let response = self.send(path, accept).await?;
        let status = response.status();
        if !status.is_success() {
            let body = http_body_util::Limited::new(response.into_body(), 1 << 20).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            return Err(self.refusal(status, &body).into());
        }
        let mut body = response.into_body();
        let mut pending: Vec<u8> = Vec::new();
        loop {
            // A follower hears a comment every 15 s; three missed, and the agent is gone.
            let frame = tokio::time::timeout(Duration::from_secs(60), body.frame())
                .await
                .map_err(|_| refuse(&self.socket, "silent for 60 s, expected a running agent"))?;
            let Some(frame) = frame else { break };
            let frame =
                frame.map_err(|_| refuse(&self.socket, "the stream broke off, expected a running agent"))?;
            let Some(data) = frame.data_ref() else { continue };
            let mut rest: &[u8] = data;
            while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                pending.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                let wanted = if follow { pending.strip_prefix(b"data: ") } else { Some(pending.as_slice()) };
                if let Some(wanted) = wanted {
                    line(wanted)?;
                }
                pending.clear();
            }
            pending.extend_from_slice(rest);
            if pending.len() > 16 << 20 {
                return Err(refuse(&self.socket, "a line is longer than 16 MiB, expected records").into());
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        Err(refuse(&self.socket, "the stream broke off within a record, expected a running agent").into())
    }
}

fn unreachable(kind: ErrorKind, error: &std::io::Error) -> String {
    match kind {
        ErrorKind::NotFound => "no such socket, expected a running agent".to_owned(),
        ErrorKind::PermissionDenied => {
            "permission denied, expected to be run as root or the agent's user".to_owned()
        }
        ErrorKind::ConnectionRefused => "nobody listens, expected a running agent".to_owned(),
        ErrorKind::InvalidInput => "the path is too long for a socket, expected at most 107 bytes".to_owned(),
        _ => format!("cannot connect ({error}), expected a running agent"),
    }
}
