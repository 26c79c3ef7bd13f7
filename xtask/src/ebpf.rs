//! `cargo xtask ebpf`: the eBPF objects, from source, the same bytes from every checkout.
//!
//! Every binary of `monitor-ebpf` is compiled for `bpfel-unknown-none` and laid into `target/ebpf/<name>`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::cmd::{self, say};
use crate::{setup, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// The verb.
pub(crate) fn run() -> Result<ExitCode> {
    let dir = build()?;
    println!("{}", dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the objects; the answer is the directory that holds them.
pub(crate) fn build() -> Result<PathBuf> {
    let toolchain = setup::bpf_toolchain()?;
    say!("eBPF objects: {}", toolchain.name);
    let names = binaries()?;
    let root = workspace::root();
    let work = workspace::target().join("ebpf-build");

    let mut cargo = cmd::cargo();
    // Paths of this machine would end in the objects by way of DWARF and BTF line information.
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let mut flags = vec![
        format!("-Clinker={}", toolchain.linker.display()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=/meshseal", root.display()),
    ];
    if let Some(home) = home {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }
    // The encoded form, because a path may hold a space.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo.env("CARGO_TARGET_DIR", &work);
    match &toolchain.rustc {
        // aya-ebpf uses `asm_experimental_arch`: a release compiler must be told that this is meant.
        Some(rustc) => cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1"),
        None => cargo.env("RUSTUP_TOOLCHAIN", "nightly").args(["-Z", "build-std=core"]),
    };
    cargo.args(["build", "--quiet", "--locked", "--release", "--package", "monitor-ebpf", "--bins"]);
    cargo.args(["--target", TARGET]);
    cmd::run(&mut cargo).context("the eBPF objects do not build")?;

    let out = workspace::target().join("ebpf");
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    for old in std::fs::read_dir(&out).with_context(|| format!("cannot read {}", out.display()))? {
        let old = old?;
        // An object whose program is gone must not be embedded.
        if !names.iter().any(|name| old.file_name() == name.as_str()) {
            std::fs::remove_file(old.path())
                .with_context(|| format!("cannot remove {}", old.path().display()))?;
        }
    }
    for name in &names {
        let built = work.join(TARGET).join("release").join(name);
        let bytes = std::fs::read(&built).with_context(|| format!("no eBPF object {}", built.display()))?;
        let object = out.join(name);
        // Left alone when the same, so that the agent is not rebuilt for nothing.
        if std::fs::read(&object).is_ok_and(|old| old == bytes) {
            continue;
        }
        std::fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
        say!("eBPF object {name}: {} KiB", bytes.len() / 1024);
    }
    Ok(out)
}

/// The binaries that `monitor-ebpf` declares.
fn binaries() -> Result<Vec<String>> {
    let text =
        cmd::output(cmd::cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let names: Vec<String> = list(&metadata["packages"])
        .iter()
        .filter(|package| package["name"] == "monitor-ebpf")
        .flat_map(|package| list(&package["targets"]))
        .filter(|target| list(&target["kind"]).iter().any(|kind| kind == "bin"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    if names.is_empty() {
        bail!("monitor-ebpf declares no binaries");
    }
    Ok(names)
}
