//! How the API server is reached: from inside a pod by its service account, or by a kubeconfig. Everything is read anew for each
//! connection, and the token for each request: it is replaced while the agent runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt as _;

use super::fault::Fault;
use super::kubeconfig::{self, Kubeconfig, Pem};

/// Where the kubelet puts a pod's token and certificate authority.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Longest token and certificate file, in bytes.
const PEM_MAX: u64 = 1 << 20;
const TOKEN_MAX: u64 = 64 << 10;

/// Where the way to the API server is described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The environment and service account of this pod.
    Pod {
        /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` as one address.
        server: String,
        /// Where token and certificate authority are.
        dir: PathBuf,
    },
    /// A kubeconfig.
    Kubeconfig(PathBuf),
}

impl Source {
    /// A kubeconfig if one is named; else the pod's own way, if this is a pod that has a token.
    ///
    /// # Errors
    /// There is neither; the text says why.
    pub fn find(
        kubeconfig: Option<&Path>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        if let Some(file) = kubeconfig {
            return Ok(Self::Kubeconfig(file.to_owned()));
        }
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let Some(host) = set("KUBERNETES_SERVICE_HOST") else {
            return Err(
                "not in a pod: KUBERNETES_SERVICE_HOST is not set, and no kubeconfig is named".to_owned()
            );
        };
        let port = set("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let dir = PathBuf::from(SERVICE_ACCOUNT);
        if !dir.join("token").exists() {
            return Err(format!("this pod has no token: {} is not there", dir.join("token").display()));
        }
        Ok(Self::Pod { server: format!("https://{host}:{port}"), dir })
    }
}

/// The token of requests.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Token {
    None,
    Fixed(String),
    File(PathBuf),
}

impl Token {
    /// As it is now.
    pub(super) async fn now(&self) -> Result<Option<String>, Fault> {
        match self {
            Self::None => Ok(None),
            Self::Fixed(token) => Ok(Some(token.clone())),
            Self::File(file) => {
                let text = read(file, TOKEN_MAX).await?;
                let text = String::from_utf8(text).map_err(|_| access(file, "is no token"))?;
                Ok(Some(text.trim().to_owned()))
            }
        }
    }
}

/// The way, read.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) server: http::Uri,
    pub(super) tls: rustls::ClientConfig,
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) token: Token,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Access {
    pub(super) async fn open(source: &Source) -> Result<Self, Fault> {
        match source {
            Source::Pod { server, dir } => {
                let kubeconfig = Kubeconfig {
                    server: server.clone(),
                    server_name: None,
                    ca: Some(Pem::File(dir.join("ca.crt"))),
                    identity: None,
                    token: None,
                    token_file: Some(dir.join("token")),
                };
                Self::of(kubeconfig).await
            }
            Source::Kubeconfig(file) => {
                let text = read(file, kubeconfig::FILE_MAX).await?;
                let text = String::from_utf8(text).map_err(|_| access(file, "is not UTF-8"))?;
                let dir = file.parent().unwrap_or(Path::new("/"));
                Self::of(kubeconfig::parse(&text, dir)?).await
            }
        }
    }

    async fn of(from: Kubeconfig) -> Result<Self, Fault> {
        let bad = |why: String| Fault::Access(why);
        let server: http::Uri =
            from.server.parse().map_err(|_| bad(format!("'{}' is no address", from.server)))?;
        let host = server.host().unwrap_or_default();
        match server.scheme_str() {
            Some("https") => {}
            // Whoever is between would read the token, and could tell whatever he likes.
            Some("http") if is_loopback(host) => {}
            _ => return Err(bad(format!("'{server}': expected https://HOST:PORT"))),
        }
        let mut roots = rustls::RootCertStore::empty();
        if let Some(ca) = &from.ca {
            for cert in CertificateDer::pem_slice_iter(&ca.read().await?) {
                let added =
                    cert.map_err(|e| e.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
                added.map_err(|why| bad(format!("certificate authority: {why}")))?;
            }
        }
        if server.scheme_str() == Some("https") && roots.is_empty() {
            return Err(bad("no certificate authority: the server could not be proven".to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(e.to_string()))?
            .with_root_certificates(roots);
        let tls = match &from.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(&cert.read().await?)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| bad(format!("client certificate: {e}")))?;
                let key = PrivateKeyDer::from_pem_slice(&key.read().await?)
                    .map_err(|e| bad(format!("client key: {e}")))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| bad(format!("client certificate: {e}")))?
            }
        };
        let server_name = from
            .server_name
            .map(|name| ServerName::try_from(name).map_err(|_| bad("tls-server-name is no name".to_owned())))
            .transpose()?;
        let token = match (from.token_file, from.token) {
            (Some(file), _) => Token::File(file),
            (None, Some(token)) => Token::Fixed(token),
            (None, None) => Token::None,
        };
        Ok(Self { server, tls, server_name, token })
    }
}

impl Pem {
    async fn read(&self) -> Result<Vec<u8>, Fault> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(file) => read(file, PEM_MAX).await,
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn access(file: &Path, why: &str) -> Fault {
    Fault::Access(format!("{}: {why}", file.display()))
}

async fn read(file: &Path, max: u64) -> Result<Vec<u8>, Fault> {
    let opened = tokio::fs::File::open(file).await.map_err(|e| access(file, &e.to_string()))?;
    let mut text = Vec::new();
    opened.take(max + 1).read_to_end(&mut text).await.map_err(|e| access(file, &e.to_string()))?;
    if text.len() as u64 > max {
        return Err(access(file, &format!("more than {max} bytes")));
    }
    Ok(text)
}
