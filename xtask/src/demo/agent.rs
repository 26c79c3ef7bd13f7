//! The agent and the lawful writers as the story's processes, and the agent's answers.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cmd;

/// `meshseal` and the socket of the running agent.
#[derive(Debug)]
pub(super) struct Meshseal {
    pub(super) program: PathBuf,
    pub(super) socket: PathBuf,
}

impl Meshseal {
    /// Runs a command that must succeed.
    pub(super) fn run(&self, words: &[&str]) -> Result<String> {
        cmd::output(Command::new(&self.program).args(words))
    }

    /// Asks the agent; the exit status tells the posture, so it is not looked at.
    pub(super) fn ask(&self, words: &[&str]) -> Result<String> {
        let out = Command::new(&self.program)
            .args(words)
            .arg("--socket")
            .arg(&self.socket)
            .stdin(Stdio::null())
            .output()
            .context("cannot start meshseal")?;
        if out.status.code() == Some(2) {
            bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The records from `since` on, as `meshseal events --format json` prints them.
    pub(super) fn events(&self, since: u64) -> Result<Vec<Value>> {
        let text = self.ask(&["events", "--format", "json", "--since", &since.to_string()])?;
        text.lines().map(|line| serde_json::from_str(line).context("a record is not JSON")).collect()
    }

    pub(super) fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.ask(&["status", "--format", "json"])?).context("the status is not JSON")
    }
}

/// A process of the story; asked to end when dropped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    pub(super) keep: bool,
}

impl Running {
    pub(super) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = fs::File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start `{}`", cmd::shown(command)))?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, orders, answers, keep: false })
    }

    /// The next line it says.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("cannot read what it says")?;
        Ok(line.trim_end().to_owned())
    }

    /// Gives a lawful writer an order and waits until it is done.
    pub(super) fn order(&mut self, dir: &Path, staging: &Path) -> Result<()> {
        let orders = self.orders.as_mut().context("no orders")?;
        writeln!(orders, "{}\t{}", dir.display(), staging.display()).context("the writer is gone")?;
        if self.line()? != "done" {
            bail!("the writer of {} failed", dir.display());
        }
        Ok(())
    }

    /// Asks it to end, and waits.
    pub(super) fn stop(&mut self) {
        self.orders = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = self.child.id().to_string();
            let _gone = Command::new("kill").arg(pid).status();
            let _status = self.child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.keep {
            self.stop();
        }
    }
}
