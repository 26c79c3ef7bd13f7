//! Processes that act: this program again, under another name.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::acts::{self, Site};

/// The first argument of a process that acts.
pub(super) const ROLE: &str = "--role";

/// A process that acts.
#[derive(Debug)]
pub(super) struct Actor {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// As the kernel will show it.
    pub(super) comm: String,
}

impl Actor {
    /// Starts `exe` as `argv0`, in a role.
    pub(super) fn start(exe: &Path, argv0: &str, first: &[&str], comm: &str, role: &[&str]) -> Result<Self> {
        let mut command = Command::new(exe);
        command.arg0(argv0).args(first).args([ROLE, comm]).args(role);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, input, output, comm: comm.to_owned() })
    }

    /// One of [`acts::all`].
    pub(super) fn act(site: &Site, comm: &str) -> Result<Self> {
        let root = site.root.to_str().context("not UTF-8")?;
        Self::start(&std::env::current_exe()?, comm, &[], comm, &["act", site.name, root])
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for this word.
    pub(super) fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim_end() == word, "{} said {line:?} instead of {word}", self.comm);
        Ok(())
    }

    /// Says this.
    pub(super) fn say(&mut self, words: &str) -> Result<()> {
        Ok(writeln!(self.input.as_mut().context("stdin is closed")?, "{words}")?)
    }

    /// Ends it whatever it does, and waits for that.
    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Lets it end, and waits for that.
    pub(super) fn end(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.comm);
        Ok(())
    }
}

/// What this process does if it was started for a role: `None` if it was not.
pub(super) fn played() -> Option<Result<()>> {
    let arguments: Vec<String> = std::env::args_os().map(|one| one.to_string_lossy().into_owned()).collect();
    let at = arguments.iter().position(|one| one == ROLE)?;
    Some(play(&arguments[at + 1..]))
}

fn play(arguments: &[String]) -> Result<()> {
    let [comm, role, rest @ ..] = arguments else { bail!("no role") };
    rustix::thread::set_name(&std::ffi::CString::new(comm.as_str())?)?;
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
        ("publisher", []) => super::volume::serve()?,
        ("writer", [dir, first, count, each]) => {
            super::load::write(Path::new(dir), first.parse()?, count.parse()?, each.parse()?)?;
            say("done")?;
        }
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

pub(super) fn say(word: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

/// The next line, if there is one.
pub(super) fn heard() -> Result<Option<String>> {
    let mut line = String::new();
    let some = std::io::stdin().lock().read_line(&mut line)? > 0;
    Ok(some.then(|| line.trim_end().to_owned()))
}
