//! Lanes of `--full`: signatures between Meshseal and other makers' tools, and the fuzzers for long.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Tally, checks};
use crate::build::{self, Profile};
use crate::cache::Cache;
use crate::cmd::{self, say};
use crate::setup::{self, Need};
use crate::{ebpf, workspace};

const COSIGN: &str = "3.1.3";
const SECURESYSTEMSLIB: &str = "1.6.0";
/// Brings the schema of SARIF 2.1.0 along.
const JEST_SARIF: &str = "1.0.0-beta.0";
const CARGO_FUZZ: &str = "0.13.1";
/// Seconds for each parser.
const FUZZ_SECONDS: u32 = 120;

/// The tests of `monitor/tests/interop.rs` and `images.rs`, with every tool they can use.
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

/// Every parser for long: guided by coverage where rustup's nightly and cargo-fuzz can be had, else by changed seeds.
pub(super) fn fuzz() -> Result<Tally> {
    match cargo_fuzz() {
        Ok(bin) => guided(&bin),
        Err(error) => {
            say!("no coverage-guided fuzzing: {error:#}");
            let objects = ebpf::build()?;
            let mut cargo = build::static_cargo(Profile::Lane, "test", &objects);
            cargo.env("MESHSEAL_FUZZ_SECONDS", FUZZ_SECONDS.to_string());
            cargo.args(["--package", "monitor", "--lib", "fuzz::"]);
            Ok(Tally { note: "without coverage: no nightly".into(), ..checks::libtest(&mut cargo)? })
        }
    }
}

/// The directory with `cargo-fuzz` in it.
fn cargo_fuzz() -> Result<PathBuf> {
    let nightly = cmd::output(cmd::clean("rustc").env("RUSTUP_TOOLCHAIN", "nightly").arg("-vV"));
    nightly.context("rustup has no nightly toolchain")?;
    let dir = Cache::open()?.entry("cargo-fuzz", CARGO_FUZZ, |dir| {
        say!("building cargo-fuzz {CARGO_FUZZ}, once");
        let mut cargo = cmd::clean("cargo");
        cargo
            .env_remove("CARGO_TARGET_DIR")
            .current_dir("/")
            .args(["install", "--quiet", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root"])
            .arg(dir);
        cmd::run(&mut cargo)
    })?;
    Ok(dir.join("bin"))
}

fn guided(bin: &Path) -> Result<Tally> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path)))?;
    let dir = workspace::root().join("fuzz");
    let cargo = |args: &[&str]| {
        let mut cargo = cmd::clean("cargo");
        cargo.env("PATH", &path).env("RUSTUP_TOOLCHAIN", "nightly").current_dir(&dir).arg("fuzz").args(args);
        cargo
    };
    let names = cmd::output(&mut cargo(&["list"]))?;
    let mut seeds = cmd::cargo();
    seeds.args([
        "run",
        "--quiet",
        "--package",
        "monitor",
        "--features",
        "fuzz",
        "--example",
        "fuzz_seeds",
        "--",
    ]);
    cmd::run(seeds.arg(dir.join("corpus")))?;
    let limits = [format!("-max_total_time={FUZZ_SECONDS}"), "-timeout=10".into(), "-max_len=65536".into()];
    let mut tally = Tally::default();
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        say!("fuzzing {name} for {FUZZ_SECONDS} s");
        let mut run = cargo(&["run", name, "--"]);
        let out = run.args(&limits).output().context("cannot start cargo fuzz")?;
        tally.log.push_str(&format!("== {name}\n{}", cmd::tail(&String::from_utf8_lossy(&out.stderr), 40)));
        if out.status.success() {
            tally.passed += 1;
        } else {
            tally.failed += 1;
            tally.log.push_str(&format!("\nFAIL fuzz {name}: the input lies in fuzz/artifacts/{name}\n"));
        }
    }
    if tally.passed + tally.failed == 0 {
        bail!("cargo fuzz lists no target");
    }
    Ok(tally)
}
