//! One OTLP receiver, over gRPC or HTTP, and what its answers mean.
//!
//! Facts: OTLP 1.x specification, "OTLP/gRPC Response" and "OTLP/HTTP Response". One deliberate departure: where the
//! specification says that the client must drop, a fault of configuration (credentials, path, pipeline) keeps the
//! records and is tried again slowly: what is in the journal is not thrown away because a token ran out.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as TonicEndpoint, Identity};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::config::{Compression, Endpoint, Protocol};

/// Largest response read, as the specification says.
const MAX_RESPONSE: usize = 4 << 20;
/// The longest a receiver may tell us to wait.
const MAX_WAIT: Duration = Duration::from_secs(300);
const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-meshseal/", env!("CARGO_PKG_VERSION"));
/// Where distributions keep the roots they trust.
const SYSTEM_ROOTS: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of it was taken; with a word of warning perhaps.
    Accepted(Option<String>),
    /// So many records of it were refused, nobody says which.
    Partial(i64, String),
    /// Again, soon; or after the time the receiver asked for.
    Retry(Option<Duration>, String),
    /// Again, slowly: somebody must change something first.
    Configuration(String),
    /// In smaller pieces.
    TooLarge(String),
    /// Something in it cannot be taken.
    Poison(String),
}

pub(super) enum Client {
    Grpc {
        client: LogsServiceClient<Channel>,
        metadata: MetadataMap,
        timeout: Duration,
    },
    Http {
        client: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
        uri: http::Uri,
        headers: HeaderMap,
        gzip: bool,
        timeout: Duration,
    },
}

impl Client {
    /// Reads the TLS files and prepares a connection, which is made with the first request.
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self, String> {
        match endpoint.protocol {
            Protocol::Grpc => grpc(endpoint),
            Protocol::HttpProtobuf => http(endpoint),
        }
    }

    pub(super) async fn send(&mut self, request: ExportLogsServiceRequest) -> Outcome {
        match self {
            Self::Grpc { client, metadata, timeout } => {
                let mut request = tonic::Request::new(request);
                *request.metadata_mut() = metadata.clone();
                match tokio::time::timeout(*timeout, client.export(request)).await {
                    Err(_) => Outcome::Retry(None, format!("no answer within {timeout:?}")),
                    Ok(Ok(response)) => accepted(&response.into_inner()),
                    Ok(Err(status)) => grpc_failed(&status),
                }
            }
            Self::Http { client, uri, headers, gzip, timeout } => {
                let sent = async {
                    let body = body(&request, *gzip).map_err(|e| Outcome::Configuration(e.to_string()))?;
                    let mut request = Request::post(uri.clone())
                        .body(Full::new(body))
                        .map_err(|e| Outcome::Configuration(e.to_string()))?;
                    *request.headers_mut() = headers.clone();
                    let response =
                        client.request(request).await.map_err(|e| Outcome::Retry(None, causes(&e)))?;
                    let (head, body) = response.into_parts();
                    let body = Limited::new(body, MAX_RESPONSE).collect().await;
                    let body = body.ok().map(http_body_util::Collected::to_bytes);
                    Ok(http_answered(head.status, &head.headers, body.as_deref()))
                };
                match tokio::time::timeout(*timeout, sent).await {
                    Err(_) => Outcome::Retry(None, format!("no answer within {timeout:?}")),
                    Ok(Ok(outcome) | Err(outcome)) => outcome,
                }
            }
        }
    }
}

fn body(request: &ExportLogsServiceRequest, gzip: bool) -> io::Result<Bytes> {
    let plain = request.encode_to_vec();
    if !gzip {
        return Ok(plain.into());
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain)?;
    encoder.finish().map(Into::into)
}

fn accepted(response: &ExportLogsServiceResponse) -> Outcome {
    match &response.partial_success {
        Some(partial) if partial.rejected_log_records > 0 => {
            Outcome::Partial(partial.rejected_log_records, partial.error_message.clone())
        }
        Some(partial) if !partial.error_message.is_empty() => {
            Outcome::Accepted(Some(partial.error_message.clone()))
        }
        _ => Outcome::Accepted(None),
    }
}

fn grpc_failed(status: &Status) -> Outcome {
    let reason = format!("{:?}: {}", status.code(), status.message());
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay).map(|d| d.min(MAX_WAIT));
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::Unavailable | Code::DataLoss => {
            Outcome::Retry(after, reason)
        }
        Code::ResourceExhausted if after.is_some() => Outcome::Retry(after, reason),
        // Both codes are also given for a message over the server's limit; which it is only the words tell.
        Code::ResourceExhausted | Code::OutOfRange if is_about_size(status.message()) => {
            Outcome::TooLarge(reason)
        }
        Code::OutOfRange => Outcome::Retry(after, reason),
        Code::InvalidArgument => Outcome::Poison(reason),
        // Not from the receiver: the connection broke, or was never made.
        _ if std::error::Error::source(status).is_some()
            || status.message().contains("Service was not ready") =>
        {
            Outcome::Retry(None, reason)
        }
        _ => Outcome::Configuration(reason),
    }
}

/// The words of tonic, Go's and C++'s gRPC, and Java's for a message over their limit.
fn is_about_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["too large", "larger than max", "exceeds maximum size"].iter().any(|words| message.contains(words))
}

fn http_answered(status: StatusCode, headers: &HeaderMap, body: Option<&[u8]>) -> Outcome {
    let reason = format!("HTTP {status}");
    match status.as_u16() {
        // The specification has 200 alone; gateways that keep it for later answer 202.
        200 | 202 => {
            let Some(body) = body else {
                return Outcome::Retry(None, format!("{reason}, but the answer cannot be read"));
            };
            match ExportLogsServiceResponse::decode(body) {
                Ok(response) => accepted(&response),
                // Receivers that speak JSON, whatever they were asked in.
                Err(_) if is_json_object(body) => {
                    Outcome::Accepted(Some("the answer is JSON, not OTLP's protobuf".to_owned()))
                }
                // A login page, a proxy's greeting: whoever answers so has not said that it took anything.
                Err(_) => Outcome::Configuration(format!(
                    "{reason}, but the answer is no OTLP: is this a receiver?"
                )),
            }
        }
        408 | 429 | 502 | 503 | 504 => Outcome::Retry(retry_after(headers), reason),
        413 => Outcome::TooLarge(reason),
        400 => Outcome::Poison(reason),
        _ => Outcome::Configuration(reason),
    }
}

fn is_json_object(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).is_ok()
}

/// `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let wait = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
            Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_WAIT))
}

fn grpc(endpoint: &Endpoint) -> Result<Client, String> {
    let mut tonic = TonicEndpoint::from_shared(endpoint.endpoint.clone())
        .and_then(|e| e.user_agent(USER_AGENT))
        .map_err(|e| causes(&e))?
        .connect_timeout(endpoint.timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    if endpoint.endpoint.starts_with("https") {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots_pem(endpoint)?));
        if let (Some(cert), Some(key)) = (&endpoint.tls.cert, &endpoint.tls.key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        tonic = tonic.tls_config(tls).map_err(|e| causes(&e))?;
    }
    let mut client = LogsServiceClient::new(tonic.connect_lazy())
        .max_decoding_message_size(MAX_RESPONSE)
        .accept_compressed(CompressionEncoding::Gzip);
    if endpoint.compression == Compression::Gzip {
        client = client.send_compressed(CompressionEncoding::Gzip);
    }
    Ok(Client::Grpc {
        client,
        metadata: MetadataMap::from_headers(headers(endpoint)?),
        timeout: endpoint.timeout,
    })
}

fn http(endpoint: &Endpoint) -> Result<Client, String> {
    let uri: http::Uri = endpoint.endpoint.parse().map_err(|e| format!("endpoint: {e}"))?;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(endpoint.timeout));
    connector.set_nodelay(true);
    let tls = if uri.scheme_str() == Some("https") { tls(endpoint)? } else { plain_tls()? };
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let mut headers = headers(endpoint)?;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    let gzip = endpoint.compression == Compression::Gzip;
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    let client = HyperClient::builder(TokioExecutor::new()).build(connector);
    Ok(Client::Http { client, uri, headers, gzip, timeout: endpoint.timeout })
}

fn headers(endpoint: &Endpoint) -> Result<HeaderMap, String> {
    let mut out = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let key =
            HeaderName::try_from(name.as_str()).map_err(|_| format!("header {name}: not a header name"))?;
        // The value may be a credential: it is not told.
        let mut value =
            HeaderValue::try_from(value.as_str()).map_err(|_| format!("header {name}: bad value"))?;
        value.set_sensitive(true);
        out.insert(key, value);
    }
    Ok(out)
}

fn builder() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())
}

/// For plain HTTP: the connector wants one, and never uses it.
fn plain_tls() -> Result<rustls::ClientConfig, String> {
    Ok(builder()?.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
}

fn tls(endpoint: &Endpoint) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&roots_pem(endpoint)?) {
        let cert = cert.map_err(|e| format!("certificate authority: {e}"))?;
        // A system bundle may hold some that rustls does not take.
        let added = roots.add(cert);
        if endpoint.tls.ca.is_some() {
            added.map_err(|e| format!("certificate authority: {e}"))?;
        }
    }
    if roots.is_empty() {
        return Err("certificate authority: no certificate in the file".to_owned());
    }
    let builder = builder()?.with_root_certificates(roots);
    let (Some(cert), Some(key)) = (&endpoint.tls.cert, &endpoint.tls.key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("{}: {e}", cert.display()))?;
    let private =
        PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| format!("{}: {e}", key.display()))?;
    builder.with_client_auth_cert(chain, private).map_err(|e| format!("{}: {e}", cert.display()))
}

fn roots_pem(endpoint: &Endpoint) -> Result<Vec<u8>, String> {
    match &endpoint.tls.ca {
        Some(ca) => read(ca),
        None => SYSTEM_ROOTS.iter().find_map(|path| read(Path::new(path)).ok()).ok_or_else(|| {
            "no certificate authority is configured, and none of the system's bundles is there".to_owned()
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// An error and what lies under it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
