//! The lane of `--full` alone: signatures and images between Meshseal and other makers' tools.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Tally, checks};
use crate::build::{self, Profile};
use crate::cache::Cache;
use crate::cmd::{self, say};
use crate::ebpf;
use crate::setup::{self, Need};

const COSIGN: &str = "3.1.3";
const SECURESYSTEMSLIB: &str = "1.6.0";
/// Brings the schema of SARIF 2.1.0 along.
const JEST_SARIF: &str = "1.0.0-beta.0";

/// The tests of `monitor/tests/interop.rs` and `monitor/tests/images`, with every tool they can use.
pub(super) fn interop() -> Result<Tally> {
    setup::packages(&[
        Need { what: "openssl", package: "openssl" },
        Need { what: "ssh-keygen", package: "openssh-client" },
        Need { what: "python3", package: "python3" },
        Need { what: "umoci", package: "umoci" },
        Need { what: "skopeo", package: "skopeo" },
    ])?;
    let cache = Cache::open()?;
    let mut note = Vec::new();
    let mut or_note = |found: Result<PathBuf>| match found {
        Ok(path) => Some(path),
        Err(error) => {
            say!("{error:#}");
            note.push(format!("{error:#}"));
            None
        }
    };
    let tools = [
        ("MESHSEAL_INTEROP_COSIGN", or_note(cosign(&cache))),
        ("MESHSEAL_INTEROP_PYTHON", or_note(python(&cache))),
        ("MESHSEAL_INTEROP_SARIF", or_note(sarif_schema(&cache))),
    ];
    let objects = ebpf::build()?;
    let mut cargo = build::static_cargo(Profile::Lane, "test", &objects);
    cargo.args(["--package", "monitor", "--test", "interop", "--test", "images", "--no-fail-fast"]);
    for (variable, tool) in tools {
        if let Some(tool) = tool {
            cargo.env(variable, tool);
        }
    }
    Ok(Tally { note: note.join("; "), ..checks::libtest(&mut cargo)? })
}

fn cosign(cache: &Cache) -> Result<PathBuf> {
    let dir = cache.entry("cosign", COSIGN, |dir| {
        say!("building cosign {COSIGN}, some minutes, once");
        let module = format!("github.com/sigstore/cosign/v3/cmd/cosign@v{COSIGN}");
        cmd::run(cmd::clean("go").env("GOBIN", dir).args(["install", &module]))
            .context("no cosign: it needs Go 1.26 or later and a module proxy")
    })?;
    Ok(dir.join("cosign"))
}

fn python(cache: &Cache) -> Result<PathBuf> {
    let version = format!("securesystemslib-{SECURESYSTEMSLIB}");
    let dir = cache.entry("interop-python", &version, |dir| {
        // pip, without a virtual environment: that would have the path of its making inside.
        let packages =
            [format!("securesystemslib=={SECURESYSTEMSLIB}"), "cryptography".into(), "jsonschema".into()];
        let mut pip = cmd::clean("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(dir.join("lib")).args(packages);
        cmd::run(&mut pip).context("no securesystemslib: it needs python3-pip and PyPI")?;
        let script = "#!/bin/sh\nPYTHONPATH=\"$(dirname \"$0\")/lib\" exec python3 \"$@\"\n";
        let python = dir.join("python");
        std::fs::write(&python, script)?;
        executable(&python)
    })?;
    Ok(dir.join("python"))
}

fn sarif_schema(cache: &Cache) -> Result<PathBuf> {
    let dir = cache.entry("sarif-schema", JEST_SARIF, |dir| {
        let package = format!("@microsoft/jest-sarif@{JEST_SARIF}");
        let mut npm = cmd::clean("npm");
        npm.current_dir(dir).args(["pack", "--silent", &package]);
        cmd::run(&mut npm).context("no schema of SARIF: it needs npm and its registry")?;
        let mut tar = cmd::clean("sh");
        tar.current_dir(dir)
            .args(["-c", "tar xzf ./*.tgz --strip-components=3 package/lib/schemas && rm ./*.tgz"]);
        cmd::run(&mut tar)
    })?;
    let file = std::fs::read_dir(&dir)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ext| ext == "json"));
    file.with_context(|| format!("{} holds no schema", dir.display()))
}

fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}
