//! `meshseal verify` of a node-sized tree, beside AIDE with SHA-256 of the same tree and openssl over the same files.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::measure::{Contender, interleaved};
use super::{Budget, Figure};
use crate::build::{self, Profile};
use crate::cmd::{self, say};
use crate::setup::{self, Need};
use crate::workspace;

const NEEDS: &[Need] = &[
    Need { what: "aide", package: "aide" },
    Need { what: "openssl", package: "openssl" },
    Need { what: "xargs", package: "findutils" },
];

/// Files as in ConfigMaps and Secrets.
const SMALL: usize = 10_000;
const PER_DIRECTORY: usize = 100;
/// Binaries as of a proxy.
const LARGE: usize = 12;
const LARGE_BYTES: u64 = 90 << 20;
/// Changes whenever the tree does.
const STAMP: &str = "1";
const ROUNDS: usize = 5;
/// What AIDE looks at: what Meshseal looks at.
const AIDE_RULE: &str = "ftype+p+u+g+s+c+xattrs+sha256";
const AIDE_DIFFERS_NOT: i32 = 0;

pub(super) fn run() -> Result<Vec<Figure>> {
    setup::packages(NEEDS)?;
    let meshseal = build::meshseal(Profile::Release)?;
    let dir = workspace::target().join("bench/verify");
    let tree = dir.join("tree");
    let files = tree_of_files(&dir, &tree)?;
    seal(&meshseal, &dir)?;
    aide_init(&dir, &tree)?;

    let workers = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let verify = || {
        let mut command = Command::new(&meshseal);
        command.current_dir(&dir).args([
            "verify",
            "--baseline",
            "baseline.dsse.json",
            "--trusted-key",
            "key.pub",
        ]);
        command.args(["--root", "tree"]);
        command
    };
    let aide = || {
        let mut command = Command::new("aide");
        command.current_dir(&dir).args(["--config", "aide.conf", "--check"]);
        command
    };
    let parallel = |workers: &str, program: &str| {
        let mut command = Command::new("xargs");
        command.current_dir(&dir).args(["-0", "-a", "files", "-n", "250", "-P", workers]);
        command.args(program.split(' '));
        command
    };
    let openssl = || parallel(&workers, "openssl dgst -sha256");
    let sha256sum = || parallel("1", "sha256sum");
    let contenders = [
        Contender { name: "meshseal verify", command: &verify, status: 0 },
        Contender { name: "aide --check", command: &aide, status: AIDE_DIFFERS_NOT },
        Contender { name: "openssl dgst", command: &openssl, status: 0 },
        Contender { name: "sha256sum", command: &sha256sum, status: 0 },
    ];
    say!("{files} files, {ROUNDS} rounds of {} contenders on {workers} cores", contenders.len());
    let medians = interleaved(&contenders, ROUNDS)?;
    let [ours, aide, openssl, sha256sum] = medians[..] else {
        anyhow::bail!("not all contenders were timed")
    };
    let figure = |beside: &str, seconds: f64, budget: Option<Budget>| Figure {
        what: "meshseal verify".into(),
        value: ours,
        unit: "s",
        beside: Some((beside.to_owned(), seconds)),
        budget,
    };
    let faster = aide / ours;
    let slower = ours / openssl;
    Ok(vec![
        figure(
            "aide --check",
            aide,
            Some(Budget { says: "at least 6 times faster".into(), is: faster, met: faster >= 6.0 }),
        ),
        figure(
            &format!("openssl dgst -sha256, {workers} at a time"),
            openssl,
            Some(Budget { says: "at most 1.5 times its time".into(), is: slower, met: slower <= 1.5 }),
        ),
        figure("sha256sum, one at a time", sha256sum, None),
    ])
}

/// Makes the tree once, and the list of its files: large ones spread over it, each before some hundreds of small ones, so that
/// whoever takes the list in parts has the work shared out evenly. Answers how many there are.
fn tree_of_files(dir: &Path, tree: &Path) -> Result<usize> {
    let stamp = dir.join("stamp");
    let list = dir.join("files");
    if !fs::read_to_string(&stamp).is_ok_and(|known| known == STAMP) {
        say!("making a tree of {SMALL} files and {LARGE} of {} MiB", LARGE_BYTES >> 20);
        let _gone = fs::remove_dir_all(dir);
        fs::create_dir_all(tree.join("bin")).with_context(|| format!("cannot create {}", tree.display()))?;
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let mut small = Vec::new();
        for at in 0..SMALL {
            let path = tree.join(format!("etc/{:03}/{at:05}", at / PER_DIRECTORY));
            if at % PER_DIRECTORY == 0 {
                fs::create_dir_all(path.parent().unwrap_or(tree))?;
            }
            let bytes = 512 + noise.next() % (8192 - 512);
            write(&path, bytes, &mut noise)?;
            small.push(path);
        }
        let mut out = Vec::new();
        let mut put = |path: &PathBuf| {
            use std::os::unix::ffi::OsStrExt as _;
            out.extend_from_slice(path.as_os_str().as_bytes());
            out.push(0);
        };
        let chunk = SMALL.div_ceil(LARGE);
        for (at, part) in small.chunks(chunk).enumerate() {
            let path = tree.join(format!("bin/{at:02}"));
            write(&path, LARGE_BYTES, &mut noise)?;
            put(&path);
            part.iter().for_each(&mut put);
        }
        fs::write(&list, out)?;
        fs::write(&stamp, STAMP)?;
    }
    let list = fs::read(&list).context("the list of the bench's files")?;
    Ok(list.iter().filter(|byte| **byte == 0).count())
}

/// The same bytes each time, and none that a file system could keep as a hole.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn write(path: &Path, bytes: u64, noise: &mut Noise) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let mut left = bytes;
    while left > 0 {
        let part = noise.next().to_le_bytes();
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(part.len());
        out.write_all(part.get(..take).unwrap_or_default())?;
        left -= take as u64;
    }
    out.flush()?;
    Ok(())
}

fn seal(meshseal: &Path, dir: &Path) -> Result<()> {
    let run = |program: &Path, args: &[&str]| {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        cmd::output(Command::new(program).current_dir(dir).args(args))
    };
    let openssl = Path::new("openssl");
    run(openssl, &["genpkey", "-algorithm", "ed25519", "-out", "key.pem"])?;
    run(openssl, &["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"])?;
    run(meshseal, &["seal", "--root", "tree", "--path", "/etc", "/bin", "-o", "statement.json"])?;
    run(meshseal, &["sign", "--key", "key.pem", "statement.json", "-o", "baseline.dsse.json"])?;
    Ok(())
}

fn aide_init(dir: &Path, tree: &Path) -> Result<()> {
    let config = format!(
        "database_in=file:{0}/aide.db\ndatabase_out=file:{0}/aide.db\ngzip_dbout=no\nreport_url=stdout\n{1} {AIDE_RULE}\n",
        dir.display(),
        tree.display()
    );
    fs::write(dir.join("aide.conf"), config)?;
    cmd::output(Command::new("aide").current_dir(dir).args(["--config", "aide.conf", "--init"]))?;
    Ok(())
}
