//! The parts that processes of the corpus play.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::acts::{self, Site};
use crate::process::{Process, be_called, heard, say};

/// Starts `exe` as `argv0`, in a part, under that name.
pub(super) fn start(exe: &Path, argv0: &str, first: &[&str], comm: &str, part: &[&str]) -> Result<Process> {
    Process::play(exe, argv0, first, &[&[comm], part].concat(), comm)
}

/// This program under that name, in a part.
pub(super) fn begin(comm: &str, part: &[&str]) -> Result<Process> {
    start(&std::env::current_exe()?, comm, &[], comm, part)
}

/// One of [`acts::all`].
pub(super) fn act(site: &Site, comm: &str) -> Result<Process> {
    begin(comm, &["act", site.name, site.root.to_str().context("not UTF-8")?])
}

pub(super) fn play(arguments: &[String]) -> Result<()> {
    let [comm, role, rest @ ..] = arguments else { bail!("no role") };
    be_called(comm)?;
    match (role.as_str(), rest) {
        ("act", [name, root]) => {
            let act = acts::all().find(|act| act.name == name).context("no such act")?;
            (act.act)(&Site { root: root.into(), name: act.name }, gate)?;
            say("done")?;
        }
        ("code", [name, root]) => {
            super::code::as_the_program(name, Path::new(root))?;
            say("done")?;
        }
        ("tool", []) => say("done")?,
        ("container", [root]) => super::overlay::live_in(Path::new(root))?,
        ("inside", [pid, act, path]) => {
            super::overlay::act_inside(pid, act, Path::new(path))?;
            say("done")?;
        }
        ("program", [root, program @ ..]) => super::overlay::become_in(Path::new(root), program)?,
        ("within", [pid, program @ ..]) => super::overlay::become_within(pid, program)?,
        ("loader", [how, file]) => {
            super::contained::load(how, Path::new(file))?;
            say("done")?;
        }
        ("idle", []) => loop {
            std::thread::park();
        },
        ("publisher", []) => super::volume::serve()?,
        ("writer", [dir, first, count, each]) => {
            super::load::write(Path::new(dir), first.parse()?, count.parse()?, each.parse()?)?;
            say("done")?;
        }
        ("late", [path]) => super::waiting::write(Path::new(path))?,
        ("holder", [path]) => super::load::hold(Path::new(path))?,
        _ => bail!("no such role: {role}"),
    }
    // Until whoever started it is content: some sensors ask who it was after the act.
    heard().map(drop)
}

/// Says that all is held, and waits for the word to go on.
fn gate() -> Result<()> {
    say("held")?;
    heard().map(drop)
}
