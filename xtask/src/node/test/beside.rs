//! The nodes in guests, in a process of their own while this one has the node natively: that one mostly waits, a guest mostly computes.

use std::fs::File;
use std::io::{self, Seek as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use rustix::process::{Pid, Signal, kill_process};

use super::{Args, Where};
use crate::interrupt;

/// What runs, and what it said: that is told when this node is through.
pub(super) struct Beside {
    child: Child,
    said: File,
}

impl Beside {
    pub(super) fn start(args: &Args, guests: &[Where]) -> Result<Self> {
        let said = tempfile::tempfile().context("cannot create a temporary file")?;
        let own = std::env::current_exe().context("this program has no name")?;
        let mut command = Command::new(own);
        command.args(["node", "test"]);
        for place in guests.iter().filter_map(Where::to_possible_value) {
            command.args(["--only", place.get_name()]);
        }
        for (set, flag) in [(args.plain, "--plain"), (args.whole, "--whole"), (args.release, "--release")] {
            if set {
                command.arg(flag);
            }
        }
        let out = || said.try_clone().context("cannot use a temporary file");
        command.stdin(Stdio::null()).stdout(out()?).stderr(out()?);
        let child = command.spawn().context("cannot start another one of this program")?;
        Ok(Self { child, said })
    }

    /// Waits for its end, which a signal to this process brings about. The answer is its exit status.
    pub(super) fn finish(mut self) -> Result<u8> {
        let mut told = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the nodes in guests")? {
                break status;
            }
            if interrupt::signal().is_some() && !told {
                told = true;
                kill_process(Pid::from_child(&self.child), Signal::TERM)
                    .context("the nodes in guests cannot be ended")?;
            }
            interrupt::pause(250);
        };
        self.said
            .rewind()
            .and_then(|()| io::copy(&mut self.said, &mut io::stdout()))
            .context("cannot read a temporary file")?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}
