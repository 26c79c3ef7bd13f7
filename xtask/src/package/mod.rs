//! `cargo xtask package`: what is shipped. The static binary, the image with it, the manifests, their hashes and a bill of materials.

mod manifests;
pub(crate) mod oci;
mod sbom;
pub(crate) mod tar;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::build::{self, Profile};
use crate::cmd::say;
use crate::workspace;

pub(crate) const IMAGE: &str = "docker.io/meshseal/meshseal";
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to put it; default: target/package
    #[arg(long)]
    out: Option<PathBuf>,
}

/// The verb; prints the directory.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let out = args.out.clone().unwrap_or_else(|| workspace::target().join("package"));
    package(Profile::Release, &out)?;
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds everything into `out`. A file that was there is replaced whole or not at all.
pub(crate) fn package(profile: Profile, out: &Path) -> Result<()> {
    let binary = build::meshseal(profile)?;
    let binary = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let base = workspace::root().join("deploy/base");
    let yaml = manifests::render(&base, IMAGE, VERSION)?;
    say!("packing the image {IMAGE}:{VERSION}");
    let default = workspace::root().join("deploy/image/default.yaml");
    let default = fs::read(&default).with_context(|| format!("cannot read {}", default.display()))?;
    let image = image(&binary, &default)?;
    let bill = sbom::cyclonedx(VERSION, &oci::sha256(&binary))?;

    let files: [(&str, u32, &[u8]); 4] = [
        ("SBOM", 0o644, bill.as_bytes()),
        ("meshseal", 0o755, &binary),
        ("meshseal-image.tar", 0o644, &image),
        ("meshseal.yaml", 0o644, yaml.as_bytes()),
    ];
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut sums = String::new();
    for (name, mode, content) in files {
        sums.push_str(&format!("{}  {name}\n", oci::sha256(content)));
        replace(&out.join(name), mode, content)?;
    }
    replace(&out.join("SHA256SUMS"), 0o644, sums.as_bytes())
}

/// The image: the binary, the configuration for a node, and the places where things are mounted. Nothing else, no shell.
fn image(binary: &[u8], default: &[u8]) -> Result<Vec<u8>> {
    let mut layer = tar::Tar::default();
    for dir in [
        "dev",
        "etc",
        "etc/meshseal",
        "etc/meshseal/baselines",
        "etc/meshseal/config",
        "etc/meshseal/keys",
        "proc",
        "run",
        "run/meshseal",
        "sys",
        "usr",
        "usr/bin",
        "var",
        "var/lib",
        "var/lib/meshseal",
    ] {
        layer.directory(dir, 0o755)?;
    }
    layer.file("etc/meshseal/default.yaml", 0o644, default)?;
    layer.file("usr/bin/meshseal", 0o755, binary)?;
    oci::archive(oci::Image {
        name: &format!("{IMAGE}:{VERSION}"),
        entrypoint: &["/usr/bin/meshseal"],
        cmd: &[
            "agent",
            "--config",
            "/etc/meshseal/config/config.yaml",
            "--config",
            "/etc/meshseal/default.yaml",
        ],
        user: "0:0",
        path: "/usr/bin",
        labels: &[
            ("org.opencontainers.image.licenses", "Apache-2.0"),
            ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY")),
            ("org.opencontainers.image.title", "meshseal"),
            ("org.opencontainers.image.version", VERSION),
        ],
        layer,
    })
}

fn replace(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let file =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("cannot write in {}", dir.display()))?;
    fs::write(file.path(), content).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
