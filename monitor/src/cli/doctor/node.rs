//! What `doctor` looks at beside the kernel's hooks: limits, directories, the socket, baselines and keys. Only looks.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Check;
use crate::baseline::{TrustedKey, dsse, read_bounded, statement};
use crate::config::{Baselines, Config};
use crate::inventory::api;

/// Longest envelope.
const MAX_ENVELOPE: u64 = 384 << 20;
/// Longest that one answer of the Kubernetes API is waited for.
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// A node with some thousand objects needs about that many; the kubelet shares them.
const WATCHES: u64 = 8192;

/// Everything that can be said without an agent.
pub(super) fn checks(config: Option<&Config>, default_socket: &Path) -> Vec<Check> {
    let mut checks = vec![watches("/proc/sys/fs/inotify/max_user_watches")];
    let Some(config) = config else {
        checks.push(socket(default_socket));
        return checks;
    };
    checks.push(socket(&config.socket));
    checks.push(state_dir(&config.state_dir));
    checks.extend(baselines(&config.baselines));
    checks.push(kubernetes(config));
    checks
}

/// Asks the API as the agent would, once. Without it the agent watches the same, and knows less of whose pods are whose.
fn kubernetes(config: &Config) -> Check {
    const NAME: &str = "kubernetes.api";
    const FIX: &str =
        "deploy/base/clusterrole.yaml has the rights it takes; `kubernetes: { api: off }` is without";
    if !config.kubernetes.api {
        return Check::good(
            NAME,
            "off, as the config says: owners, images by digest and sources stay unknown",
        );
    }
    let kubeconfig = config.kubernetes.kubeconfig.as_deref();
    let source = match api::Source::find(kubeconfig, &|name| std::env::var(name).ok()) {
        Ok(source) => source,
        Err(why) => return Check::good(NAME, format!("not asked: {why}")),
    };
    let timing = api::Timing { request: API_TIMEOUT, ..api::Timing::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = match runtime {
        Ok(runtime) => runtime.block_on(api::probe(&source, &config.node, timing)),
        Err(error) => return Check::bad(NAME, error.to_string(), "more threads and descriptors"),
    };
    match asked {
        Ok((server, refused)) if refused.is_empty() => {
            Check::good(NAME, format!("{server}: pods of node {} can be listed", config.node))
        }
        Ok((server, refused)) => Check::bad(NAME, format!("{server}: unknown: {}", refused.join("; ")), FIX),
        Err(fault) => Check::bad(NAME, format!("{}: {fault}", fault.word()), FIX),
    }
}

fn watches(file: &str) -> Check {
    const NAME: &str = "inotify.watches";
    let fix = format!("sysctl fs.inotify.max_user_watches={WATCHES} or more");
    match fs::read_to_string(file).map(|text| text.trim().parse::<u64>()) {
        Ok(Ok(limit)) if limit >= WATCHES => Check::good(NAME, format!("{limit} for each user")),
        Ok(Ok(limit)) => Check::bad(NAME, format!("only {limit} for each user"), fix),
        Ok(Err(error)) => Check::bad(NAME, format!("{file}: {error}"), fix),
        Err(error) => Check::bad(NAME, format!("{file}: {error}"), "mount /proc"),
    }
}

fn socket(path: &Path) -> Check {
    const NAME: &str = "socket";
    let place = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::good(NAME, format!("{place}: free, no agent runs"))
        }
        Err(error) => Check::bad(NAME, format!("{place}: {error}"), "run as root"),
        Ok(found) if !found.file_type().is_socket() => {
            Check::bad(NAME, format!("{place}: is no socket"), "remove it, or choose another socket")
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Check::good(NAME, format!("{place}: an agent answers")),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Check::good(NAME, format!("{place}: left over, the next agent replaces it"))
            }
            Err(error) => Check::bad(NAME, format!("{place}: {error}"), "run as root"),
        },
    }
}

fn state_dir(path: &Path) -> Check {
    const NAME: &str = "stateDir";
    const OWN: &str = "a directory of root's own, mode 0700, that can be written";
    let place = path.display();
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Check::bad(NAME, format!("{place}: is no directory"), OWN),
        Ok(found) => {
            let (mode, uid) = (found.permissions().mode() & 0o7777, found.uid());
            let writable = rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
            match writable {
                Err(error) => Check::bad(NAME, format!("{place}: {error}"), OWN),
                // The agent sets the mode at start; until then others may look into it.
                Ok(()) if mode & 0o077 != 0 => Check::bad(
                    NAME,
                    format!("{place}: mode {mode:04o}, owner {uid}"),
                    format!("chmod 0700 {place}"),
                ),
                Ok(()) => Check::good(NAME, format!("{place}: mode {mode:04o}, owner {uid}")),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::good(NAME, format!("{place}: not there yet, the agent makes it"))
        }
        Err(error) => Check::bad(NAME, format!("{place}: {error}"), OWN),
    }
}

/// Keys, then each envelope against them.
fn baselines(config: &Baselines) -> Vec<Check> {
    let present: Vec<&PathBuf> = config.trusted_keys.iter().filter(|path| path.exists()).collect();
    let keys = match TrustedKey::read_all(&present) {
        Ok(keys) => keys,
        Err(error) => {
            return vec![Check::bad("keys", error.to_string(), "PEM public keys, ECDSA P-256 or Ed25519")];
        }
    };
    let need = config.require_signatures as usize;
    let text = format!("{} trusted, {need} must sign", keys.len());
    let mut checks = vec![if keys.len() >= need {
        Check::good("keys", text)
    } else {
        Check::bad("keys", text, "more baselines.trustedKeys, or no baseline will be accepted")
    }];
    let files = envelopes(config, &mut checks);
    if files.is_empty() {
        checks.push(Check::bad(
            "baselines",
            "none: posture will be uncertain",
            "meshseal propose, review, meshseal sign, and put the envelope where baselines.files says",
        ));
    }
    for file in files {
        let place = file.display();
        let read = read_bounded(&file, MAX_ENVELOPE)
            .and_then(|bytes| dsse::verify(&bytes, &keys, need))
            .and_then(|verified| Ok((statement::parse(&verified.payload)?, verified.signers.len())));
        checks.push(match read {
            Ok((baseline, signers)) => Check::good(
                "baselines",
                format!(
                    "{place}: {} revision {}, {} objects, {signers} trusted signer(s)",
                    baseline.name,
                    baseline.revision,
                    baseline.objects.len()
                ),
            ),
            Err(error) => Check::bad("baselines", format!("{place}: {error}"), "sign it with trusted keys"),
        });
    }
    checks
}

/// The files the agent would offer.
fn envelopes(config: &Baselines, checks: &mut Vec<Check>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in config.files.iter().filter(|path| path.exists()) {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        match fs::read_dir(path) {
            Ok(entries) => {
                let entries = entries.filter_map(Result::ok).map(|entry| entry.path());
                files.extend(entries.filter(|file| file.to_string_lossy().ends_with(".dsse.json")));
            }
            Err(error) => {
                checks.push(Check::bad("baselines", format!("{}: {error}", path.display()), "run as root"));
            }
        }
    }
    files.sort();
    files
}
