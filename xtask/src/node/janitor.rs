//! A second process that outlives this run when it is killed: `kill -9` leaves nobody else to take the node's control groups, names of
//! network namespaces and directories away. (Processes and mounts end with the namespaces, by the kernel.)

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::down;
use super::places::WORK;
use crate::cache::Cache;
use crate::interrupt;

/// How long what the kernel is still ending is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The janitor of this run. It learns of the run's end by the pipe between them, which the kernel closes.
#[derive(Debug)]
pub(super) struct Janitor(Child);

impl Janitor {
    pub(super) fn start() -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let child = Command::new(program)
            .args(["node", "janitor"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Neither Ctrl-C nor what ends the whole group of this run is for it.
            .process_group(0)
            .spawn()
            .context("cannot start the janitor")?;
        Ok(Self(child))
    }

    /// There is nothing left for it to do.
    pub(super) fn dismiss(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _gone = pipe.write_all(b"done");
        }
        let _ended = self.0.wait();
    }
}

/// The janitor's own part.
pub(super) fn run() -> Result<()> {
    let mut word = Vec::new();
    std::io::stdin().read_to_end(&mut word).context("cannot read from the run that started this")?;
    if word == b"done" {
        return Ok(());
    }
    // Held by the run until its end; a later run that has it first cleans up itself.
    let _one_at_a_time = Cache::open()?.lock("node-run")?;
    let start = Instant::now();
    loop {
        match down::clean(Path::new(WORK)) {
            Err(_) if start.elapsed() < PATIENCE => interrupt::pause(250),
            outcome => return outcome,
        }
    }
}
