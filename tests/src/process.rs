//! Processes that play a part: this program again, under whatever name, executable and first words the part has.
//!
//! They talk with whoever started them by lines: what they are told comes in, what they did goes out.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// The word before what a process is to play.
pub(crate) const ROLE: &str = "--role";

/// A process that plays a part.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// What it is called here, and for one that takes its name from that, by the kernel.
    pub(crate) name: String,
}

impl Process {
    /// Starts `command`, which is this program and says its part itself.
    pub(crate) fn start(command: &mut Command, name: &str) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, input, output, name: name.to_owned() })
    }

    /// This program as `exe` and `argv0`, with these first words, in a part.
    pub(crate) fn play(exe: &Path, argv0: &str, first: &[&str], part: &[&str], name: &str) -> Result<Self> {
        Self::start(Command::new(exe).arg0(argv0).args(first).arg(ROLE).args(part), name)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for this word.
    pub(crate) fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("{} ended with {} instead of saying {word}", self.name, self.child.wait()?);
        }
        ensure!(line.trim_end() == word, "{} said {line:?} instead of {word}", self.name);
        Ok(())
    }

    /// Says this.
    pub(crate) fn say(&mut self, words: &str) -> Result<()> {
        Ok(writeln!(self.input.as_mut().context("stdin is closed")?, "{words}")?)
    }

    /// Tells it to do something, and waits until it is done.
    pub(crate) fn tell(&mut self, words: &str) -> Result<()> {
        self.say(words)?;
        self.hear("done").with_context(|| words.to_owned())
    }

    /// Ends it whatever it does, and waits for that.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Lets it end, and waits for that.
    pub(crate) fn end(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.name);
        Ok(())
    }
}

/// What this process's `main` returns if it was started for a part; `None` if it was not.
pub(crate) fn played(play: fn(&[String]) -> Result<()>) -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args_os().map(|one| one.to_string_lossy().into_owned()).collect();
    let at = arguments.iter().position(|one| one == ROLE)?;
    Some(match play(&arguments[at + 1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Takes a name, as the kernel shows it: at most 15 bytes of it.
pub(crate) fn be_called(name: &str) -> Result<()> {
    Ok(rustix::thread::set_name(&std::ffi::CString::new(name)?)?)
}

pub(crate) fn say(word: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

/// The next line, if there is one.
pub(crate) fn heard() -> Result<Option<String>> {
    let mut line = String::new();
    let some = std::io::stdin().lock().read_line(&mut line)? > 0;
    Ok(some.then(|| line.trim_end_matches('\n').to_owned()))
}

/// Does what each line says until there is no more, and says so, or why not.
pub(crate) fn obey(act: impl Fn(&[&str]) -> Result<()>) -> Result<()> {
    while let Some(line) = heard()? {
        match act(&line.split(' ').collect::<Vec<_>>()) {
            Ok(()) => say("done")?,
            Err(error) => say(&format!("failed: {error:#}").replace('\n', " "))?,
        }
    }
    Ok(())
}
