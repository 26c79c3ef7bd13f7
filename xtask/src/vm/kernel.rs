//! Debian's cloud kernels, resolved by version series and cached by package version.
//!
//! The kernels come from the mirror that the machine's own apt uses, through an apt state of our own in the cache: signatures are
//! checked against the Debian archive keyring that is installed, and the machine's configuration stays as it is.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::cmd::{self, say};

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
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// A newer package within this time is not looked for.
const LISTS_FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// The kernel of that series that Debian ships now, or, where the mirror cannot be asked, the one used before.
pub(crate) fn resolve(series: Series) -> Result<Kernel> {
    let cache = Cache::open()?;
    let lock = cache.lock(&format!("kernel-{series}"))?;
    let apt = Apt::new(&cache, series)?;
    let pinned = apt.state.join("resolved");
    let fresh = fs::metadata(&pinned)
        .and_then(|meta| meta.modified())
        .is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age < LISTS_FRESH));
    let before = fs::read_to_string(&pinned).ok();
    let before = before.as_deref().and_then(|text| text.trim().split_once(' '));
    let directory = |package: &str| format!("kernels/{package}");
    if let Some((package, version)) = before.filter(|_| fresh) {
        let dir = cache.dir(&directory(package))?.join(version);
        if dir.is_dir() {
            return load(package, version, &dir);
        }
    }
    let (package, version) = match apt.update().and_then(|()| apt.current()) {
        Ok(found) => found,
        Err(error) => match before {
            Some((package, version)) if cache.dir(&directory(package))?.join(version).is_dir() => {
                say!("cannot ask for a newer {series} kernel, taking the cached one: {error:#}");
                (package.to_owned(), version.to_owned())
            }
            _ => return Err(error.context(format!("no {series} kernel: it comes from a Debian mirror"))),
        },
    };
    let dir = cache.entry(&directory(&package), &version, |dir| {
        say!("fetching {package} {version}");
        apt.fetch(&package, dir)
    })?;
    fs::write(&pinned, format!("{package} {version}\n"))
        .with_context(|| format!("cannot write {}", pinned.display()))?;
    drop(lock);
    load(&package, &version, &dir)
}

fn load(package: &str, version: &str, dir: &Path) -> Result<Kernel> {
    let release = fs::read_to_string(dir.join("release"))
        .with_context(|| format!("the cached kernel {} is not whole: remove it", dir.display()))?;
    Ok(Kernel {
        package: format!("{package} {version}"),
        release: release.trim().to_owned(),
        image: dir.join("vmlinuz"),
        modules: dir.join("modules"),
    })
}

/// An apt state of our own for one suite.
struct Apt {
    state: PathBuf,
    suite: &'static str,
}

impl Apt {
    fn new(cache: &Cache, series: Series) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            if cmd::find(tool).is_none() {
                bail!("{tool} is missing: Debian's kernels are fetched and unpacked with Debian's own tools");
            }
        }
        let state = cache.dir(&format!("apt/{}", series.suite()))?;
        for dir in ["lists/partial", "archives/partial"] {
            let dir = state.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(Self { state, suite: series.suite() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").args(["-qq"]);
        let state = self.state.display();
        for option in [
            format!("Dir::State={state}"),
            format!("Dir::State::lists={state}/lists"),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={state}"),
            format!("Dir::Cache::archives={state}/archives"),
            format!("Dir::Etc::sourcelist={state}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Dir::Etc::preferences=-".to_owned(),
            "Dir::Etc::preferencesparts=-".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // The cache is the user's own, and apt's unprivileged user need not see it.
            format!("APT::Sandbox::User={}", if rustix::process::geteuid().is_root() { "root" } else { "" }),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=2".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// Fetches the package lists of the suite.
    fn update(&self) -> Result<()> {
        if !Path::new(KEYRING).is_file() {
            bail!("{KEYRING} is missing: the package debian-archive-keyring provides it");
        }
        let mirror = machine_mirror()?;
        let sources = self.state.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {mirror} {} main\n", self.suite))
            .with_context(|| format!("cannot write {}", sources.display()))?;
        cmd::output(self.command("apt-get").args(["-o", "APT::Update::Post-Invoke-Success::=", "update"]))
            .with_context(|| format!("cannot fetch the package lists of {}", self.suite))?;
        Ok(())
    }

    /// Package and version of the kernel that the suite's meta package names.
    fn current(&self) -> Result<(String, String)> {
        let meta = self.show(META)?;
        let (package, version) = meta
            .depends
            .iter()
            .find(|(name, _)| name.starts_with("linux-image-"))
            .with_context(|| format!("{META} of {} names no kernel", self.suite))?;
        let version = version.clone().unwrap_or(meta.version);
        Ok((package.clone(), version))
    }

    fn show(&self, package: &str) -> Result<Stanza> {
        let text = cmd::output(self.command("apt-cache").args(["--no-all-versions", "show", package]))?;
        parse_stanza(&text).with_context(|| format!("apt-cache says nothing of {package}"))
    }

    /// Downloads the kernel and what its files are spread over, and lays `vmlinuz`, `config`, `modules/`, `release` into `dir`.
    fn fetch(&self, package: &str, dir: &Path) -> Result<()> {
        let mut wanted = BTreeSet::from([package.to_owned()]);
        for (name, _) in self.show(package)?.depends {
            if name.starts_with("linux-binary-") || name.starts_with("linux-modules-") {
                wanted.insert(name);
            }
        }
        let work = tempfile::tempdir_in(&self.state).context("cannot create a directory in the cache")?;
        cmd::output(self.command("apt-get").current_dir(work.path()).arg("download").args(&wanted))?;
        let tree = work.path().join("tree");
        for file in fs::read_dir(work.path())? {
            let file = file?.path();
            if file.extension().is_some_and(|ext| ext == "deb") {
                cmd::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&tree))?;
            }
        }
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
        fs::write(dir.join("release"), release + "\n").context("cannot keep the kernel's release")?;
        Ok(())
    }
}

/// The part of a package's description that matters here.
#[derive(Debug, PartialEq, Eq)]
struct Stanza {
    version: String,
    /// Name, and version where it is pinned by `=`.
    depends: Vec<(String, Option<String>)>,
}

fn parse_stanza(text: &str) -> Option<Stanza> {
    let stanza = text.split("\n\n").next()?;
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let depends = field("Depends:")
        .unwrap_or_default()
        .split(',')
        .filter_map(|item| {
            let item = item.split('|').next()?.trim();
            let name = item.split([' ', ':']).next().filter(|name| !name.is_empty())?;
            let version = item.split_once("(= ").and_then(|(_, rest)| rest.strip_suffix(')'));
            Some((name.to_owned(), version.map(str::to_owned)))
        })
        .collect();
    Some(Stanza { version: field("Version:")?.to_owned(), depends })
}

/// The Debian mirror that this machine's apt is configured with.
pub(crate) fn machine_mirror() -> Result<String> {
    let text = cmd::output(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI)",
        "Identifier: Packages",
    ]))
    .context("cannot ask apt for its sources")?;
    pick_mirror(&text)
        .map(str::to_owned)
        .context("this machine's apt has no Debian mirror (a source whose address ends in /debian)")
}

fn pick_mirror(uris: &str) -> Option<&str> {
    uris.lines().map(|uri| uri.trim().trim_end_matches('/')).find(|uri| uri.ends_with("/debian"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_archive_not_the_security_suite() {
        let uris = "http://deb.debian.org/debian-security/\nhttps://deb.example/node/\nhttp://mirror.example/debian/\n";
        assert_eq!(pick_mirror(uris), Some("http://mirror.example/debian"));
        assert_eq!(pick_mirror("https://deb.example/node/\n"), None);
    }

    #[test]
    fn a_stanza_gives_version_and_pinned_dependencies() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 7.2.13-1\n\
                    Depends: dracut | initramfs-tools (>= 0.120), linux-image-7.2.13-cloud-amd64 (= 7.2.13-1)\n\n\
                    Package: other\nVersion: 1\n";
        assert_eq!(
            parse_stanza(text),
            Some(Stanza {
                version: "7.2.13-1".to_owned(),
                depends: vec![
                    ("dracut".to_owned(), None),
                    ("linux-image-7.2.13-cloud-amd64".to_owned(), Some("7.2.13-1".to_owned())),
                ],
            })
        );
        assert_eq!(parse_stanza(""), None);
    }
}
