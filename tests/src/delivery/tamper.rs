//! The program that tampers, and its own log of what it did.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use monitor::model::HostPath;

/// The first argument of the process that tampers.
const ROLE: &str = "--tamper";
/// What every object holds when it is sealed.
const SEALED: &[u8] = b"sealed content\n";

/// A closed directory of objects, and who tampers with them.
#[derive(Debug, Clone)]
pub(super) struct Victims {
    pub(super) dir: PathBuf,
    log: PathBuf,
}

/// One file for each act of each round; the last act makes a name that is not there.
const ACTS: &[&str] = &["write", "chmod", "replace", "remove", "drop"];

/// What it is called in records and in the log.
fn name(round: &str, act: &str) -> Vec<u8> {
    // A name as an attacker would choose it.
    let hostile: &[u8] = if act == "drop" { b" <b>\n\xff\\" } else { b"" };
    [round.as_bytes(), b"-", act.as_bytes(), hostile].concat()
}

impl Victims {
    /// Makes the objects of these rounds.
    pub(super) fn new(scratch: &Path, rounds: &[&str]) -> Result<Self> {
        let victims = Self { dir: scratch.join("tree"), log: scratch.join("tampered.log") };
        fs::create_dir_all(&victims.dir)?;
        for round in rounds {
            for act in ACTS.iter().filter(|act| **act != "drop") {
                fs::write(victims.dir.join(OsStr::from_bytes(&name(round, act))), SEALED)?;
            }
        }
        Ok(victims)
    }

    /// Tampers with all objects of a round, by a process that lives on until the answer is dropped.
    pub(super) fn tamper(&self, round: &str) -> Result<Tamperer> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ROLE, round]).arg(&self.dir).arg(&self.log);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line == "done\n", "the tampering program said {line:?}");
        Ok(Tamperer(child))
    }

    /// What the program says it did: act, and path as records print it.
    pub(super) fn log(&self) -> Result<Vec<(String, String)>> {
        let text = fs::read_to_string(&self.log)?;
        let pair = |line: &str| {
            let (act, path) = line.split_once(' ').context("a line of the log")?;
            Ok((act.to_owned(), path.replace("\\x0a", "\n")))
        };
        text.lines().map(pair).collect()
    }
}

/// Some sensors ask who it was after the act.
#[derive(Debug)]
pub(super) struct Tamperer(Child);

impl Drop for Tamperer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ended = self.0.wait();
    }
}

/// What this process does if it was started to tamper.
pub(super) fn played() -> Option<Result<()>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    (arguments.first()?.to_str() == Some(ROLE)).then(|| match &arguments[1..] {
        [round, dir, log] => act_all(round.to_str().context("round")?, Path::new(dir), Path::new(log)),
        _ => bail!("no role"),
    })
}

fn act_all(round: &str, dir: &Path, log: &Path) -> Result<()> {
    let mut log = OpenOptions::new().create(true).append(true).open(log)?;
    for act in ACTS {
        let path = dir.join(OsStr::from_bytes(&name(round, act)));
        match *act {
            "write" => fs::write(&path, b"TAMPER")?,
            "chmod" => fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?,
            "replace" => {
                let beside = dir.with_file_name(format!("{round}-new"));
                fs::write(&beside, b"TAMPER")?;
                fs::rename(beside, &path)?;
            }
            "remove" => fs::remove_file(&path)?,
            _ => fs::write(&path, b"dropped")?,
        }
        // A newline in a path would end the line.
        let shown = HostPath::from(path.as_path()).to_string().replace('\n', "\\x0a");
        writeln!(log, "{act} {shown}")?;
        log.sync_data()?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "done")?;
    out.flush()?;
    std::io::stdin().lock().read_line(&mut String::new()).map(drop).map_err(Into::into)
}
