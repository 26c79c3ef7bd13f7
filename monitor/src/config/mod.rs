//! The agent's configuration: as written ([`written`]) → resolved ([`Config`]), and what happens when it changes
//! ([`reload`]).
//!
//! Every error is one line that names file, line and key.

mod environment;
mod file;
pub mod reload;
mod resolve;
pub mod settings;
pub(crate) mod units;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::profile::{ProfileError, Profiles};
use crate::text::one_line;

pub use file::{DEFAULT_FILE, Source, choose, load, load_file, parse};

/// Where the agent listens if the config does not say otherwise.
pub const DEFAULT_SOCKET: &str = "/run/meshseal/agent.sock";

/// A configuration that can be run: every value has been checked and every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it came from; `None` for the built-in defaults.
    pub file: Option<PathBuf>,
    /// The files it may come from, best first; a reload takes the first that exists then.
    pub candidates: Vec<PathBuf>,
    /// Observe or enforce.
    pub mode: Mode,
    /// Where the agent keeps what must survive it; the journal is `<state_dir>/journal`.
    pub state_dir: PathBuf,
    /// The status socket.
    pub socket: PathBuf,
    /// Where the node's root is mounted. Only watched objects lie below it; all other paths are the agent's own.
    pub host_root: PathBuf,
    /// This node's name in records.
    pub node: String,
    /// What must be, and who may say so.
    pub baselines: Baselines,
    /// Files of profiles beside and instead of the built-in ones.
    pub profile_files: Vec<PathBuf>,
    /// What is known of meshes: the built-in profiles and those.
    pub profiles: Arc<Profiles>,
    /// The journal.
    pub journal: Journal,
    /// Re-verification over time.
    pub scrub: Scrub,
    /// Enforcement.
    pub enforce: Enforce,
    /// Receivers; empty: journal only.
    pub export: Vec<Endpoint>,
    /// The sensor.
    pub sensor: Sensor,
    /// The Kubernetes API.
    pub kubernetes: Kubernetes,
    /// The agent's own diagnostics.
    pub log: LogLevel,
}

/// Whether what is sealed is only watched or also kept from changing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Watch and report.
    Observe,
    /// Refuse changes.
    Enforce,
}

impl Mode {
    /// The word in config and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// Where baselines come from and who must have signed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baselines {
    /// DSSE envelopes, or directories of `*.dsse.json`. Any may be missing.
    pub files: Vec<PathBuf>,
    /// PEM public keys, or directories of `*.pub`. Any may be missing.
    pub trusted_keys: Vec<PathBuf>,
    /// How many distinct trusted keys must have signed.
    pub require_signatures: u32,
    /// The cluster's HMAC key, for sealed secrets.
    pub secret_key: Option<PathBuf>,
    /// Mesh files that no baseline covers are held to what they were when they were seen first.
    pub trust_on_first_use: bool,
    /// How long what the kubelet publishes may wait for the baseline that approves it; zero: not at all.
    pub await_approval: Duration,
    /// How long what an installer took away may be away before that is told.
    pub await_installer: Duration,
}

/// Bounds of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// Bytes it may take on disk.
    pub max_bytes: u64,
}

/// Re-verification over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrub {
    /// Every object is verified again within this time.
    pub interval: Duration,
    /// Bytes a second that may be read for it.
    pub io_budget: u64,
}

/// What enforcement does when the agent is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforce {
    /// Release or keep.
    pub on_agent_loss: OnAgentLoss,
    /// How long enforcement outlives the agent under `release`.
    pub lease: Duration,
}

/// What becomes of enforcement without an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAgentLoss {
    /// Lifted after the lease.
    Release,
    /// Stays.
    Keep,
}

/// An OTLP receiver.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// URL with scheme, host and port; for HTTP/protobuf the full URL that is posted to.
    pub endpoint: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Headers (metadata) sent with each request. May hold credentials: never printed.
    pub headers: BTreeMap<String, String>,
    /// TLS files.
    pub tls: Tls,
    /// Compression of requests.
    pub compression: Compression,
    /// How long one request may take.
    pub timeout: Duration,
}

impl Endpoint {
    /// Whether both name the same receiver, whatever their settings: it has one cursor.
    #[must_use]
    pub fn same_receiver(&self, other: &Self) -> bool {
        (self.protocol, &self.endpoint) == (other.protocol, &other.endpoint)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("endpoint", &self.endpoint)
            .field("protocol", &self.protocol)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("tls", &self.tls)
            .field("compression", &self.compression)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// How OTLP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// Protobuf over HTTP/1.1.
    HttpProtobuf,
}

/// How requests are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
}

/// TLS files (PEM) of a receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Roots to trust; `None`: none are built in, so an `https` endpoint needs it.
    pub ca: Option<PathBuf>,
    /// Client certificate chain.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
}

/// The sensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sensor {
    /// The highest rung to run on.
    pub rung: RungChoice,
    /// Bytes of the kernel's ring buffer, a power of two.
    pub ring_bytes: u32,
    /// How many inodes can be watched.
    pub max_slots: u32,
    /// How often it is proven by canaries.
    pub canary_interval: Duration,
}

/// The highest rung to run on: the agent takes the best that the kernel allows, from there downwards. In rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RungChoice {
    /// No sensor: objects are verified, and the agent says that it is blind.
    None,
    /// inotify watches.
    Inotify,
    /// fanotify marks.
    Fanotify,
    /// Tracing programs.
    Fentry,
    /// BPF LSM programs.
    Lsm,
    /// The best this kernel allows.
    Auto,
}

impl RungChoice {
    /// The rungs in falling order, with their names.
    pub const LADDER: [(Self, &'static str); 4] = [
        (Self::Lsm, "lsm"),
        (Self::Fentry, "fentry"),
        (Self::Fanotify, "fanotify"),
        (Self::Inotify, "inotify"),
    ];

    /// As the config writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Inotify => "inotify",
            Self::Fanotify => "fanotify",
            Self::Fentry => "fentry",
            Self::Lsm => "lsm",
            Self::Auto => "auto",
        }
    }
}

/// The Kubernetes API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// It is asked, where there is a way to it.
    pub api: bool,
    /// The way to it; `None`: the service account of the agent's pod.
    pub kubeconfig: Option<PathBuf>,
}

/// How much the agent says about itself on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Errors.
    Error,
    /// And warnings.
    Warn,
    /// And the course of things.
    Info,
    /// And details.
    Debug,
    /// And everything.
    Trace,
}

impl LogLevel {
    /// The word in config.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Why a configuration is refused: `config: FILE[:LINE]: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config: {}: {message}", self.place())]
pub struct ConfigError {
    /// The file (or environment variable).
    pub file: String,
    /// Line, from 1.
    pub line: Option<u64>,
    /// What was found and what was expected.
    pub message: String,
}

impl ConfigError {
    /// Values are repeated as they were written: what is a line break in them is none here.
    fn new(file: impl fmt::Display, line: Option<u64>, message: impl AsRef<str>) -> Self {
        Self { file: one_line(&file.to_string()), line, message: one_line(message.as_ref()) }
    }

    /// `FILE` or `FILE:LINE`.
    #[must_use]
    pub fn place(&self) -> String {
        match self.line {
            Some(line) => format!("{}:{line}", self.file),
            None => self.file.clone(),
        }
    }
}

impl From<ProfileError> for ConfigError {
    fn from(error: ProfileError) -> Self {
        Self::new(error.file, error.line, error.message)
    }
}

/// What the fuzzers give to the readers of variables, sizes, rates and durations.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_variables(text: &str) {
    environment::fuzz(text);
    crate::fuzz::used((units::bytes(text), units::rate(text), units::duration(text)));
}

#[cfg(test)]
mod tests;
