//! Requests to the API server, and answers of it: none of them longer than is said, and none waited for longer than is said.
//!
//! kube-rs's own client is not used: it reads an answer of any size into memory, and keeps a token for a minute.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

use super::access::{Access, Token};
use super::fault::{Fault, bounded, causes};

const AGENT: &str = concat!("meshseal/", env!("CARGO_PKG_VERSION"));
/// Longest answer that is no success, in bytes.
const REFUSAL_MAX: usize = 64 << 10;

/// A way to ask.
#[derive(Clone)]
pub(super) struct Client {
    hyper: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    server: Uri,
    token: Token,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Client {
    /// `timeout` is how long a request may take until its answer is there, or begins if it is a stream.
    pub(super) fn new(access: Access, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(timeout));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(30)));
        let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(access.tls).https_or_http();
        let builder = match access.server_name {
            Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
            None => builder,
        };
        let connector = builder.enable_http1().wrap_connector(connector);
        let hyper = HyperClient::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self { hyper, server: access.server, token: access.token, timeout }
    }

    /// The server, for people.
    pub(super) fn server(&self) -> String {
        self.server.to_string().trim_end_matches('/').to_owned()
    }

    /// An answer of at most `max` bytes.
    pub(super) async fn whole<T: DeserializeOwned>(
        &self,
        request: Request<Vec<u8>>,
        max: usize,
    ) -> Result<T, Fault> {
        let whole = async {
            let body = self.send(request).await?.into_body();
            read(body, max).await
        };
        let bytes = self.in_time(self.timeout, whole).await?;
        serde_json::from_slice(&bytes).map_err(|e| Fault::malformed(&e))
    }

    /// A stream of lines. Its first may take as long as they like.
    pub(super) async fn lines(&self, request: Request<Vec<u8>>) -> Result<Lines, Fault> {
        let response = self.in_time(self.timeout, self.send(request)).await?;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), searched: 0, ended: false })
    }

    async fn in_time<T>(
        &self,
        timeout: Duration,
        what: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        tokio::time::timeout(timeout, what).await.unwrap_or(Err(Fault::Silent(timeout)))
    }

    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Incoming>, Fault> {
        let (mut head, body) = request.into_parts();
        let below = head.uri.path_and_query().map_or("/", |below| below.as_str());
        let base = self.server.path().trim_end_matches('/');
        let authority = self.server.authority().map_or("", |authority| authority.as_str());
        let scheme = self.server.scheme_str().unwrap_or("https");
        let whole = format!("{scheme}://{authority}{base}{below}");
        head.uri =
            whole.parse().map_err(|_| Fault::Access(format!("'{}' is no address", bounded(&whole))))?;
        head.headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        head.headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(token) = self.token.now().await? {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|_| Fault::Access("the token cannot be sent".to_owned()))?;
            value.set_sensitive(true);
            head.headers.insert(AUTHORIZATION, value);
        }
        let request = Request::from_parts(head, Full::new(Bytes::from(body)));
        let response = self.hyper.request(request).await.map_err(|e| Fault::Unreachable(causes(&e)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // What it says beside its status is a help, no more.
        let said = read(response.into_body(), REFUSAL_MAX).await.unwrap_or_default();
        Err(Fault::of_status(status.as_u16(), &said))
    }
}

async fn read(body: Incoming, max: usize) -> Result<Bytes, Fault> {
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(Fault::TooLarge(max)),
        Err(e) => Err(Fault::Unreachable(causes(&*e))),
    }
}

/// Lines of an answer that has no end.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer has no line end in it.
    searched: usize,
    ended: bool,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A whole line, without its end.
    Whole(Bytes),
    /// A line longer than that, passed over.
    PassedOver,
}

impl Lines {
    /// The next line of at most `max` bytes, within `timeout`; `None` at the end. What comes drop by drop must be whole by then too.
    pub(super) async fn next(&mut self, max: usize, timeout: Duration) -> Result<Option<Line>, Fault> {
        tokio::time::timeout(timeout, self.line(max)).await.unwrap_or(Err(Fault::Silent(timeout)))
    }

    async fn line(&mut self, max: usize) -> Result<Option<Line>, Fault> {
        let mut passed_over = false;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                if passed_over || line.len() > max {
                    return Ok(Some(Line::PassedOver));
                }
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(Line::Whole(line)));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > max {
                passed_over = true;
                self.buffer.clear();
                self.searched = 0;
            }
            if self.ended {
                let rest = self.buffer.split();
                self.searched = 0;
                return match rest.trim_ascii().is_empty() {
                    true => Ok(None),
                    false => Err(Fault::Unreachable("the stream ended within an event".to_owned())),
                };
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => return Err(Fault::Unreachable(causes(&e))),
                None => self.ended = true,
            }
        }
    }
}
