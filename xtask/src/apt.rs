//! Debian packages that are unpacked into the cache and not installed.
//!
//! They come from the mirror that the machine's own apt uses, through an apt state of our own in the cache for each suite: signatures are
//! checked against the Debian archive keyring that is installed, and the machine's configuration stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::cmd::{self, say};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// A newer package within this time is not looked for.
const LISTS_FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// An apt state of our own for one suite.
#[derive(Debug)]
pub(crate) struct Apt {
    state: PathBuf,
    suite: String,
}

impl Apt {
    /// Take [`Cache::lock`] before it is used.
    pub(crate) fn new(cache: &Cache, suite: &str) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            if cmd::find(tool).is_none() {
                bail!(
                    "{tool} is missing: Debian's packages are fetched and unpacked with Debian's own tools"
                );
            }
        }
        let state = cache.dir(&format!("apt/{suite}"))?;
        for dir in ["lists/partial", "archives/partial"] {
            let dir = state.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(Self { state, suite: suite.to_owned() })
    }

    /// The entry `<under>/<package>/<version>` of the cache for the package that the suite has now; where the mirror cannot be asked, the
    /// one used before. `choose` names package and version, `fill` lays its files into a directory.
    pub(crate) fn entry(
        &self,
        cache: &Cache,
        under: &str,
        choose: impl FnOnce(&Self) -> Result<(String, String)>,
        fill: impl FnOnce(&Self, &str, &Path) -> Result<()>,
    ) -> Result<Unpacked> {
        let pinned = self.state.join("resolved");
        let fresh = fs::metadata(&pinned)
            .and_then(|meta| meta.modified())
            .is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age < LISTS_FRESH));
        let directory = |package: &str| format!("{under}/{package}");
        let before = fs::read_to_string(&pinned).ok().and_then(|text| {
            let (package, version) = text.trim().split_once(' ')?;
            let dir = cache.dir(&directory(package)).ok()?.join(version);
            dir.is_dir().then(|| Unpacked { package: package.into(), version: version.into(), dir })
        });
        if let Some(before) = before.clone().filter(|_| fresh) {
            return Ok(before);
        }
        let (package, version) = match (self.update().and_then(|()| choose(self)), before) {
            (Ok(found), _) => found,
            (Err(error), Some(before)) => {
                say!("cannot ask for a newer {}, taking {}: {error:#}", before.package, before.version);
                return Ok(before);
            }
            (Err(error), None) => {
                return Err(
                    error.context(format!("nothing of {}: it comes from a Debian mirror", self.suite))
                );
            }
        };
        let dir = cache.entry(&directory(&package), &version, |dir| {
            say!("fetching {package} {version}");
            fill(self, &package, dir)
        })?;
        fs::write(&pinned, format!("{package} {version}\n"))
            .with_context(|| format!("cannot write {}", pinned.display()))?;
        Ok(Unpacked { package, version, dir })
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

    /// What the suite says of a package.
    pub(crate) fn show(&self, package: &str) -> Result<Stanza> {
        let text = cmd::output(self.command("apt-cache").args(["--no-all-versions", "show", package]))?;
        parse_stanza(&text).with_context(|| format!("apt-cache says nothing of {package}"))
    }

    /// Downloads these packages, and unpacks all of them into a directory that goes with the answer.
    pub(crate) fn unpack(&self, packages: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Tree> {
        let work = tempfile::tempdir_in(&self.state).context("cannot create a directory in the cache")?;
        let mut download = self.command("apt-get");
        download.current_dir(work.path()).arg("download");
        download.args(packages.into_iter().map(|package| package.as_ref().to_owned()));
        cmd::output(&mut download)?;
        let tree = work.path().join("tree");
        for file in fs::read_dir(work.path())? {
            let file = file?.path();
            if file.extension().is_some_and(|ext| ext == "deb") {
                cmd::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&tree))?;
            }
        }
        Ok(Tree { work })
    }
}

/// A package in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) dir: PathBuf,
}

/// Unpacked files.
#[derive(Debug)]
pub(crate) struct Tree {
    work: tempfile::TempDir,
}

impl Tree {
    /// The directory that stands for the root.
    pub(crate) fn root(&self) -> PathBuf {
        self.work.path().join("tree")
    }
}

/// The part of a package's description that matters here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stanza {
    pub(crate) version: String,
    /// Name, and version where it is pinned by `=`.
    pub(crate) depends: Vec<(String, Option<String>)>,
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
