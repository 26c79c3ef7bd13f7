//! As written → resolved: defaults filled in, units parsed, every value checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_saphyr::Spanned;

use super::written::{self, Text, Written};
use super::{
    Baselines, Compression, Config, ConfigError, Endpoint, Enforce, Journal, Kubernetes, LogLevel, Mode,
    OnAgentLoss, Protocol, RungChoice, Scrub, Sensor, Tls, environment, units,
};
use crate::profile::Profiles;

const API_VERSION: &str = "meshseal/v1";
const MAX_LIST: usize = 256;
/// What is not approved is told after a while, whatever the config says.
const LONGEST_AWAITED: Duration = Duration::from_secs(600);
/// A pod that is replaced, or one that the kubelet starts again after a first failure.
const AWAITS_INSTALLER: Duration = Duration::from_secs(60);
/// Below this the journal could not hold a segment and its successor.
const MIN_JOURNAL: u64 = 1 << 20;

/// Knows the file, and turns a refusal of a value into an error with its line.
struct Context<'a> {
    file: &'a Path,
}

impl Context<'_> {
    fn refuse<T>(&self, value: &Spanned<T>, key: &str, why: &str) -> ConfigError {
        let line = value.referenced.line();
        ConfigError::new(self.file.display(), (line > 0).then_some(line), format!("{key}: {why}"))
    }

    fn choice<T: Copy>(
        &self,
        text: &Text,
        key: &str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let found = choices.iter().find(|(word, _)| *word == text.value).map(|&(_, choice)| choice);
        found.ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|&(word, _)| word).collect();
            self.refuse(
                text,
                key,
                &format!("'{}' is no valid value, expected one of {}", text.value, words.join(", ")),
            )
        })
    }

    fn path(&self, text: &Text, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        text.as_ref().map(|text| self.absolute(text, key)).transpose()
    }

    fn absolute(&self, text: &Spanned<String>, key: &str) -> Result<PathBuf, ConfigError> {
        if text.value.starts_with('/') {
            return Ok(PathBuf::from(&text.value));
        }
        Err(self.refuse(text, key, &format!("'{}' is no valid path, expected an absolute path", text.value)))
    }

    fn paths(&self, list: &written::List, key: &str, default: &str) -> Result<Vec<PathBuf>, ConfigError> {
        let Some(list) = list else { return Ok(vec![PathBuf::from(default)]) };
        if let Some(beyond) = list.get(MAX_LIST) {
            return Err(self.refuse(beyond, key, &format!("too many entries, expected at most {MAX_LIST}")));
        }
        list.iter().enumerate().map(|(at, text)| self.absolute(text, &format!("{key}[{at}]"))).collect()
    }

    fn unit<T>(
        &self,
        text: &Text,
        key: &str,
        parse: fn(&str) -> Result<T, String>,
        default: T,
    ) -> Result<T, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        parse(&text.value).map_err(|why| self.refuse(text, key, &why))
    }

    /// As [`Self::unit`], but not below `least` (which `words` says).
    fn at_least<T: PartialOrd>(
        &self,
        text: &Text,
        key: &str,
        parse: fn(&str) -> Result<T, String>,
        default: T,
        (least, words): (T, &str),
    ) -> Result<T, ConfigError> {
        let value = self.unit(text, key, parse, default)?;
        match text {
            Some(text) if value < least => Err(self.refuse(
                text,
                key,
                &format!("'{}' is too little, expected at least {words}", text.value),
            )),
            _ => Ok(value),
        }
    }
}

/// What runs without any file.
pub(super) fn built_in() -> Result<Config, ConfigError> {
    let mut config = check(Path::new("built-in"), &Written::default())?;
    config.file = None;
    Ok(config)
}

/// Checks a file's content.
pub(super) fn resolve(file: &Path, written: &Written) -> Result<Config, ConfigError> {
    let context = Context { file };
    match &written.api_version {
        None => {
            return Err(ConfigError::new(
                file.display(),
                None,
                format!("missing key 'apiVersion', expected {API_VERSION}"),
            ));
        }
        Some(version) if version.value != API_VERSION => {
            let why = format!("'{}' is not supported, expected {API_VERSION}", version.value);
            return Err(context.refuse(version, "apiVersion", &why));
        }
        Some(_) => {}
    }
    check(file, written)
}

fn check(file: &Path, written: &Written) -> Result<Config, ConfigError> {
    let context = Context { file };
    let mode = context.choice(
        &written.mode,
        "mode",
        &[("observe", Mode::Observe), ("enforce", Mode::Enforce)],
        Mode::Observe,
    )?;
    if let (Mode::Enforce, Some(text)) = (mode, &written.mode) {
        // Observing where enforcement was asked for would be a promise broken in silence.
        let why = "enforce is not implemented in this version, expected observe";
        return Err(context.refuse(text, "mode", why));
    }
    let path = |text: &Text, key: &str, default: &str| -> Result<PathBuf, ConfigError> {
        Ok(context.path(text, key)?.unwrap_or_else(|| PathBuf::from(default)))
    };
    let socket = path(&written.socket, "socket", super::DEFAULT_SOCKET)?;
    if let Some(text) = &written.socket
        && text.value.len() > 107
    {
        return Err(context.refuse(
            text,
            "socket",
            "path is too long for a socket, expected at most 107 bytes",
        ));
    }
    Ok(Config {
        file: Some(file.to_owned()),
        candidates: vec![file.to_owned()],
        mode,
        state_dir: path(&written.state_dir, "stateDir", "/var/lib/meshseal")?,
        socket,
        host_root: path(&written.host_root, "hostRoot", "/")?,
        node: node(&context, &written.node)?,
        baselines: baselines(&context, written.baselines.as_ref())?,
        profile_files: match &written.profiles {
            None => Vec::new(),
            list => context.paths(list, "profiles", "")?,
        },
        profiles: Arc::clone(Profiles::built_in()),
        journal: Journal {
            max_bytes: context.at_least(
                &written.journal.as_ref().and_then(|journal| journal.max_bytes.clone()),
                "journal.maxBytes",
                units::bytes,
                1 << 30,
                (MIN_JOURNAL, "1MiB"),
            )?,
        },
        scrub: scrub(&context, written.scrub.as_ref())?,
        enforce: enforce(&context, written.enforce.as_ref())?,
        export: export(&context, written.export.as_ref())?,
        sensor: sensor(&context, written.sensor.as_ref())?,
        kubernetes: kubernetes(&context, written.kubernetes.as_ref())?,
        log: context.choice(
            &written.log.as_ref().and_then(|log| log.level.clone()),
            "log.level",
            &[
                ("error", LogLevel::Error),
                ("warn", LogLevel::Warn),
                ("info", LogLevel::Info),
                ("debug", LogLevel::Debug),
                ("trace", LogLevel::Trace),
            ],
            LogLevel::Info,
        )?,
    })
}

/// The node's name: from the file, else `NODE_NAME`, else the host's name.
fn node(context: &Context<'_>, written: &Text) -> Result<String, ConfigError> {
    let valid = |name: &str| {
        !name.is_empty()
            && name.len() <= 253
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    let expected = "expected 1 to 253 letters, digits, '-', '_' or '.'";
    if let Some(text) = written {
        if valid(&text.value) {
            return Ok(text.value.clone());
        }
        return Err(context.refuse(text, "node", &format!("'{}' is no node name, {expected}", text.value)));
    }
    if let Some(name) = std::env::var_os("NODE_NAME").filter(|name| !name.is_empty()) {
        let name = name.to_string_lossy().into_owned();
        if valid(&name) {
            return Ok(name);
        }
        let message = format!("'{name}' is no node name, {expected}");
        return Err(ConfigError::new("environment variable NODE_NAME", None, message));
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(if valid(&host) { host } else { "localhost".to_owned() })
}

fn baselines(context: &Context<'_>, written: Option<&written::Baselines>) -> Result<Baselines, ConfigError> {
    let none = written::Baselines::default();
    let written = written.unwrap_or(&none);
    let require_signatures = match &written.require_signatures {
        Some(count) if !(1..=16).contains(&count.value) => {
            let why = format!("{} is out of range, expected 1 to 16", count.value);
            return Err(context.refuse(count, "baselines.requireSignatures", &why));
        }
        Some(count) => count.value,
        None => 1,
    };
    let awaited = |text: &Text, key: &str, default: Duration| {
        let wait = context.unit(text, key, units::duration, default)?;
        match text {
            Some(text) if wait > LONGEST_AWAITED => {
                let why = format!("'{}' is too long, expected at most 10m", text.value);
                Err(context.refuse(text, key, &why))
            }
            _ => Ok(wait),
        }
    };
    Ok(Baselines {
        files: context.paths(&written.files, "baselines.files", "/etc/meshseal/baseline.dsse.json")?,
        trusted_keys: context.paths(
            &written.trusted_keys,
            "baselines.trustedKeys",
            "/etc/meshseal/keys/release.pub",
        )?,
        require_signatures,
        secret_key: context.path(&written.secret_key, "baselines.secretKey")?,
        trust_on_first_use: written.trust_on_first_use.unwrap_or(false),
        await_approval: awaited(&written.await_approval, "baselines.awaitApproval", Duration::ZERO)?,
        await_installer: awaited(&written.await_installer, "baselines.awaitInstaller", AWAITS_INSTALLER)?,
    })
}

fn scrub(context: &Context<'_>, written: Option<&written::Scrub>) -> Result<Scrub, ConfigError> {
    let none = written::Scrub::default();
    let written = written.unwrap_or(&none);
    Ok(Scrub {
        interval: context.at_least(
            &written.interval,
            "scrub.interval",
            units::duration,
            Duration::from_secs(86_400),
            (Duration::from_secs(1), "1s"),
        )?,
        io_budget: context.at_least(
            &written.io_budget,
            "scrub.ioBudget",
            units::rate,
            10 << 20,
            (64 << 10, "64KiB/s"),
        )?,
    })
}

fn enforce(context: &Context<'_>, written: Option<&written::Enforce>) -> Result<Enforce, ConfigError> {
    let none = written::Enforce::default();
    let written = written.unwrap_or(&none);
    let choices = [("release", OnAgentLoss::Release), ("keep", OnAgentLoss::Keep)];
    Ok(Enforce {
        on_agent_loss: context.choice(
            &written.on_agent_loss,
            "enforce.onAgentLoss",
            &choices,
            OnAgentLoss::Release,
        )?,
        lease: context.at_least(
            &written.lease,
            "enforce.lease",
            units::duration,
            Duration::from_secs(60),
            (Duration::from_secs(1), "1s"),
        )?,
    })
}

fn sensor(context: &Context<'_>, written: Option<&written::Sensor>) -> Result<Sensor, ConfigError> {
    let none = written::Sensor::default();
    let written = written.unwrap_or(&none);
    let choices = [
        ("auto", RungChoice::Auto),
        ("lsm", RungChoice::Lsm),
        ("fentry", RungChoice::Fentry),
        ("fanotify", RungChoice::Fanotify),
        ("inotify", RungChoice::Inotify),
        ("none", RungChoice::None),
    ];
    let ring = context.unit(&written.ring_bytes, "sensor.ringBytes", units::bytes, 8 << 20)?;
    let ring_bytes = match u32::try_from(ring) {
        Ok(ring) if ring.is_power_of_two() && (64 << 10..=1 << 30).contains(&ring) => ring,
        _ => {
            let why = "is no ring size, expected a power of two from 64KiB to 1GiB";
            return Err(match &written.ring_bytes {
                Some(text) => context.refuse(text, "sensor.ringBytes", &format!("'{}' {why}", text.value)),
                None => ConfigError::new(context.file.display(), None, format!("sensor.ringBytes: {why}")),
            });
        }
    };
    let max_slots = match &written.max_slots {
        Some(count) if !(16..=4_000_000).contains(&count.value) => {
            let why = format!("{} is out of range, expected 16 to 4000000", count.value);
            return Err(context.refuse(count, "sensor.maxSlots", &why));
        }
        Some(count) => count.value,
        None => 65_536,
    };
    Ok(Sensor {
        rung: context.choice(&written.rung, "sensor.rung", &choices, RungChoice::Auto)?,
        ring_bytes,
        max_slots,
        canary_interval: context.at_least(
            &written.canary_interval,
            "sensor.canaryInterval",
            units::duration,
            Duration::from_secs(60),
            (Duration::from_secs(1), "1s"),
        )?,
    })
}

fn kubernetes(
    context: &Context<'_>,
    written: Option<&written::Kubernetes>,
) -> Result<Kubernetes, ConfigError> {
    let none = written::Kubernetes::default();
    let written = written.unwrap_or(&none);
    Ok(Kubernetes {
        api: context.choice(&written.api, "kubernetes.api", &[("auto", true), ("off", false)], true)?,
        kubeconfig: context.path(&written.kubeconfig, "kubernetes.kubeconfig")?,
    })
}

fn export(context: &Context<'_>, written: Option<&written::Export>) -> Result<Vec<Endpoint>, ConfigError> {
    let Some(list) = written.and_then(|export| export.otlp.as_ref()) else {
        return environment::endpoints(&|name| std::env::var(name).ok());
    };
    if let Some(beyond) = list.get(8) {
        let why = "too many endpoints, expected at most 8";
        return Err(context.refuse(&beyond.endpoint, "export.otlp", why));
    }
    list.iter().enumerate().map(|(at, otlp)| endpoint(context, &format!("export.otlp[{at}]"), otlp)).collect()
}

fn endpoint(context: &Context<'_>, at: &str, otlp: &written::Otlp) -> Result<Endpoint, ConfigError> {
    let key = |name: &str| format!("{at}.{name}");
    let protocol = context.choice(
        &otlp.protocol,
        &key("protocol"),
        &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)],
        Protocol::Grpc,
    )?;
    check_url(&otlp.endpoint.value).map_err(|why| context.refuse(&otlp.endpoint, &key("endpoint"), &why))?;
    let none = written::Tls::default();
    let tls = otlp.tls.as_ref().unwrap_or(&none);
    let files = Tls {
        ca: context.path(&tls.ca, &key("tls.ca"))?,
        cert: context.path(&tls.cert, &key("tls.cert"))?,
        key: context.path(&tls.key, &key("tls.key"))?,
    };
    match (&tls.cert, &tls.key) {
        (Some(one), None) => {
            return Err(context.refuse(one, &key("tls.cert"), "without tls.key, expected both"));
        }
        (None, Some(one)) => {
            return Err(context.refuse(one, &key("tls.key"), "without tls.cert, expected both"));
        }
        _ => {}
    }
    for (name, value) in otlp.headers.iter().flatten() {
        // The value is not repeated: it may be a credential.
        check_header(name, &value.value).map_err(|why| context.refuse(value, &key("headers"), &why))?;
    }
    Ok(Endpoint {
        endpoint: otlp.endpoint.value.clone(),
        protocol,
        headers: otlp
            .headers
            .iter()
            .flatten()
            .map(|(name, text)| (name.clone(), text.value.clone()))
            .collect(),
        tls: files,
        compression: context.choice(
            &otlp.compression,
            &key("compression"),
            &[("none", Compression::None), ("gzip", Compression::Gzip)],
            Compression::None,
        )?,
        timeout: context.at_least(
            &otlp.timeout,
            &key("timeout"),
            units::duration,
            Duration::from_secs(10),
            (Duration::from_millis(100), "100ms"),
        )?,
    })
}

/// An endpoint is `http://` or `https://` with a host.
pub(super) fn check_url(text: &str) -> Result<(), String> {
    if text.contains('@') {
        // Not repeated: it may hold a password.
        return Err("user and password in the URL, expected credentials in headers".to_owned());
    }
    let expected = || format!("'{text}' is no endpoint, expected http://HOST:PORT or https://HOST:PORT");
    let url: http::Uri = text.parse().map_err(|_| expected())?;
    let host = url.host().is_some_and(|host| !host.is_empty());
    if matches!(url.scheme_str(), Some("http" | "https")) && host { Ok(()) } else { Err(expected()) }
}

/// A header that HTTP can carry.
pub(super) fn check_header(name: &str, value: &str) -> Result<(), String> {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(format!("'{name}' is no header name, expected letters, digits and '-'"));
    }
    if http::HeaderValue::from_str(value).is_err() {
        return Err(format!("the value of '{name}' cannot be sent, expected printable text"));
    }
    Ok(())
}
