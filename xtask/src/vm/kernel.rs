//! Debian's cloud kernels, resolved by version series and cached by package version.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::apt::{Apt, Unpacked};
use crate::cache::Cache;
use crate::cmd;

/// The kernels that the VM lane knows, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "7.2")]
    V7_2,
}

impl Series {
    pub(crate) const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::V7_2];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
        }
    }

    const fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::V7_2 => "sid",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel that is ready to boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The Debian package and its version.
    pub(crate) package: String,
    /// What `uname -r` says.
    pub(crate) release: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// The package's tree of modules (`kernel/...`), `.ko` or `.ko.xz`.
    pub(crate) modules: PathBuf,
}

const META: &str = "linux-image-cloud-amd64";

/// The kernel of that series that Debian ships now, or, where the mirror cannot be asked, the one used before.
pub(crate) fn resolve(series: Series) -> Result<Kernel> {
    let cache = Cache::open()?;
    let _lock = cache.lock(&format!("kernel-{series}"))?;
    let apt = Apt::new(&cache, series.suite())?;
    let unpacked = apt
        .entry(&cache, "kernels", |apt| current(apt, series), lay)
        .with_context(|| format!("no {series} kernel"))?;
    load(&unpacked)
}

fn load(unpacked: &Unpacked) -> Result<Kernel> {
    let Unpacked { package, version, dir } = unpacked;
    let release = fs::read_to_string(dir.join("release"))
        .with_context(|| format!("the cached kernel {} is not whole: remove it", dir.display()))?;
    Ok(Kernel {
        package: format!("{package} {version}"),
        release: release.trim().to_owned(),
        image: dir.join("vmlinuz"),
        modules: dir.join("modules"),
    })
}

/// Package and version of the kernel that the suite's meta package names.
fn current(apt: &Apt, series: Series) -> Result<(String, String)> {
    let meta = apt.show(META)?;
    let (package, version) = meta
        .depends
        .iter()
        .find(|(name, _)| name.starts_with("linux-image-"))
        .with_context(|| format!("{META} of {} names no kernel", series.suite()))?;
    let version = version.clone().unwrap_or(meta.version);
    Ok((package.clone(), version))
}

/// Lays `vmlinuz`, `modules/` and `release` into `dir`, out of the package and what its files are spread over.
fn lay(apt: &Apt, package: &str, dir: &Path) -> Result<()> {
    let mut wanted = BTreeSet::from([package.to_owned()]);
    for (name, _) in apt.show(package)?.depends {
        if name.starts_with("linux-binary-") || name.starts_with("linux-modules-") {
            wanted.insert(name);
        }
    }
    let unpacked = apt.unpack(&wanted)?;
    let tree = unpacked.root();
    // Both `/lib` and `/usr/lib` are in use, and the image stands in `/boot` or with its modules.
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .find_map(|place| fs::read_dir(tree.join(place)).ok()?.next()?.ok())
        .with_context(|| format!("{package} has no modules"))?
        .path();
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = [tree.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| format!("{package} has no kernel image"))?;
    fs::copy(&image, dir.join("vmlinuz")).context("cannot keep the kernel image")?;
    cmd::output(Command::new("cp").arg("-a").arg(modules.join("kernel")).arg(dir.join("modules")))?;
    fs::write(dir.join("release"), release + "\n").context("cannot keep the kernel's release")
}
