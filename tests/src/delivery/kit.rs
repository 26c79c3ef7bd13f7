//! Receivers that are not ours: rotel, and the reference decoder of OpenTelemetry.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::tls::Pki;

/// Longest that anything is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const SINK: &str = include_str!("sink.py");

/// Where the packages lie that `cargo xtask test` installed.
#[derive(Debug, Clone)]
pub(super) struct Kit {
    site: PathBuf,
}

impl Kit {
    /// From the environment. Without it these tests fail: a receiver of our own would prove nothing.
    pub(super) fn get() -> Result<Self> {
        let site = std::env::var_os("MESHSEAL_RECEIVERS")
            .context("no third-party receivers: MESHSEAL_RECEIVERS is not set, `cargo xtask test` installs them from PyPI")?;
        let kit = Self { site: site.into() };
        for needed in ["rotel/rotel-agent", "grpc", "opentelemetry/proto"] {
            ensure!(kit.site.join(needed).exists(), "{} has no {needed}", kit.site.display());
        }
        Ok(kit)
    }
}

/// A port nobody listens on at the moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Waits for a condition, looking at it again and again.
pub(super) fn wait<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < until, "no {what} within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A log record as a receiver wrote it down.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Received {
    /// `grpc` or `http`.
    pub(super) via: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) resource: Vec<(String, Value)>,
    pub(super) scope: String,
    pub(super) event_name: String,
    pub(super) time: u64,
    pub(super) observed: u64,
    pub(super) severity_number: i64,
    pub(super) severity_text: String,
    pub(super) body: Value,
    pub(super) attributes: Vec<(String, Value)>,
}

impl Received {
    pub(super) fn attribute(&self, name: &str) -> Option<&Value> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(super) fn uid(&self) -> Option<&str> {
        self.attribute("log.record.uid").and_then(Value::as_str)
    }
}

/// Where the reference decoder writes down what it takes.
#[derive(Debug, Clone)]
pub(super) struct Inbox(PathBuf);

impl Inbox {
    /// Everything it took so far.
    pub(super) fn received(&self) -> Result<Vec<Received>> {
        let text = fs::read_to_string(&self.0)?;
        // The last line may be half written: it has not been acknowledged then.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole]
            .lines()
            .map(|line| serde_json::from_str(line).context("a line of the receiver"))
            .collect()
    }
}

/// The reference decoder, listening for both protocols.
#[derive(Debug)]
pub(super) struct Sink {
    kit: Kit,
    dir: PathBuf,
    pub(super) inbox: Inbox,
    pki: Option<(Pki, bool)>,
    child: Option<Child>,
    pub(super) grpc: u16,
    pub(super) http: u16,
}

impl Sink {
    /// Starts it, with its files in `dir`. With a PKI it speaks TLS, and may ask for client certificates.
    pub(super) fn start(kit: &Kit, dir: &Path, pki: Option<(Pki, bool)>) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut sink = Self {
            kit: kit.clone(),
            dir: dir.to_owned(),
            inbox: Inbox(dir.join("received.jsonl")),
            pki,
            child: None,
            grpc: 0,
            http: 0,
        };
        sink.up()?;
        Ok(sink)
    }

    /// Starts it again, at the same ports.
    pub(super) fn up(&mut self) -> Result<()> {
        let log = self.dir.join("sink.log");
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &self.kit.site).args(["-c", SINK, "--out"]).arg(&self.inbox.0);
        command.args(["--grpc", &self.grpc.to_string(), "--http", &self.http.to_string()]);
        if let Some((pki, clients)) = &self.pki {
            command.arg("--cert").arg(&pki.server.cert).arg("--key").arg(&pki.server.key);
            if *clients {
                command.arg("--client-ca").arg(&pki.ca);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().context("python3")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        self.child = Some(child);
        let mut words = line.split_whitespace();
        let (Some("listening"), Some(grpc), Some(http)) = (words.next(), words.next(), words.next()) else {
            bail!("the receiver said {line:?}: {}", fs::read_to_string(log).unwrap_or_default());
        };
        (self.grpc, self.http) = (grpc.parse()?, http.parse()?);
        Ok(())
    }

    /// kill -9.
    pub(super) fn down(&mut self) -> Result<()> {
        end(&mut self.child)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _gone = self.down();
    }
}

/// rotel, which passes on to a [`Sink`] what it takes.
#[derive(Debug)]
pub(super) struct Rotel {
    kit: Kit,
    dir: PathBuf,
    onward: u16,
    child: Option<Child>,
    pub(super) grpc: u16,
    pub(super) http: u16,
}

impl Rotel {
    pub(super) fn start(kit: &Kit, dir: &Path, onward: &Sink) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (grpc, http) = (free_port()?, free_port()?);
        let mut rotel =
            Self { kit: kit.clone(), dir: dir.to_owned(), onward: onward.grpc, child: None, grpc, http };
        rotel.up()?;
        Ok(rotel)
    }

    /// Starts it (again), at the same ports.
    pub(super) fn up(&mut self) -> Result<()> {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let log = File::create(self.dir.join("rotel.out"))?;
        let mut command = Command::new(self.kit.site.join("rotel/rotel-agent"));
        command.arg("start").args(["--otlp-grpc-endpoint", &at(self.grpc)]);
        command.args(["--otlp-http-endpoint", &at(self.http), "--exporter", "otlp", "--disable-batching"]);
        command.args(["--otlp-exporter-endpoint", &format!("http://{}", at(self.onward))]);
        command.arg("--pid-file").arg(self.dir.join("rotel.pid"));
        command.arg("--log-file").arg(self.dir.join("rotel.log"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = self.child.insert(command.spawn().context("rotel")?);
        let (grpc, http) = (self.grpc, self.http);
        wait("listening rotel", || {
            ensure!(child.try_wait()?.is_none(), "rotel ended");
            let open = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
            Ok((open(grpc) && open(http)).then_some(()))
        })
    }

    /// kill -9. It acknowledges before it passes on, so that what it took must have arrived before this.
    pub(super) fn down(&mut self) -> Result<()> {
        end(&mut self.child)
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _gone = self.down();
    }
}

fn end(child: &mut Option<Child>) -> Result<()> {
    if let Some(mut child) = child.take() {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}
