//! A kubeconfig, as far as the agent takes one: a server, its certificate authority, and a token or a client certificate. What runs
//! programs (`exec`, `auth-provider`) or leaves the server unproven is refused.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::fault::Fault;

/// Longest kubeconfig, in bytes.
pub(super) const FILE_MAX: u64 = 1 << 20;

/// PEM text, or the file it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

/// What the current context of a kubeconfig says.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Kubeconfig {
    pub(super) server: String,
    pub(super) server_name: Option<String>,
    pub(super) ca: Option<Pem>,
    pub(super) identity: Option<(Pem, Pem)>,
    pub(super) token: Option<String>,
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    current_context: String,
    #[serde(default)]
    contexts: Vec<Entry<Context>>,
    #[serde(default)]
    clusters: Vec<Entry<Cluster>>,
    #[serde(default)]
    users: Vec<Entry<User>>,
}

#[derive(Deserialize)]
struct Entry<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    of: T,
}

#[derive(Deserialize, Clone)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

#[derive(Deserialize, Clone, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

fn find<T: Clone>(list: &[Entry<T>], what: &str, name: &str) -> Result<T, String> {
    let found = list.iter().find(|entry| entry.name == name).map(|entry| entry.of.clone());
    found.ok_or_else(|| format!("there is no {what} '{name}'"))
}

/// Reads what the current context says. Relative paths are relative to `dir`, where the kubeconfig is.
pub(super) fn parse(text: &str, dir: &Path) -> Result<Kubeconfig, Fault> {
    read(text, dir).map_err(|why| Fault::Access(format!("kubeconfig: {why}")))
}

fn read(text: &str, dir: &Path) -> Result<Kubeconfig, String> {
    // The parser's own words may quote a credential.
    let file: File = serde_saphyr::from_str(text).map_err(|_| "is not as kubectl reads it".to_owned())?;
    let context = find(&file.contexts, "context", &file.current_context)?;
    let cluster = find(&file.clusters, "cluster", &context.cluster)?;
    let user =
        if context.user.is_empty() { User::default() } else { find(&file.users, "user", &context.user)? };
    let unsupported = [
        (cluster.insecure_skip_tls_verify, "insecure-skip-tls-verify: the server would not be proven"),
        (cluster.proxy_url.is_some(), "proxy-url"),
        (user.exec.is_some(), "exec: the agent runs no programs"),
        (user.auth_provider.is_some(), "auth-provider"),
        (user.username.is_some(), "username"),
        (user.impersonate.is_some(), "as"),
    ];
    if let Some((_, why)) = unsupported.iter().find(|(there, _)| *there) {
        return Err(format!("is not supported: {why}"));
    }
    let pem = |data: Option<String>, file: Option<PathBuf>, key: &str| match (data, file) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .map(|text| Some(Pem::Text(text)))
            .map_err(|_| format!("{key}-data is not base64")),
        (None, Some(file)) => Ok(Some(Pem::File(dir.join(file)))),
        (None, None) => Ok(None),
    };
    let cert = pem(user.client_certificate_data, user.client_certificate, "client-certificate")?;
    let key = pem(user.client_key_data, user.client_key, "client-key")?;
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err("has one of client certificate and key, expected both".to_owned()),
    };
    Ok(Kubeconfig {
        server: cluster.server,
        server_name: cluster.tls_server_name,
        ca: pem(cluster.certificate_authority_data, cluster.certificate_authority, "certificate-authority")?,
        identity,
        token: user.token.filter(|token| !token.is_empty()),
        token_file: user.token_file.map(|file| dir.join(file)),
    })
}
