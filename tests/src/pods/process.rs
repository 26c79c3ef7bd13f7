//! Processes in containers: this program again, as its runtime and its clients would start it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;

/// The first argument of a process that plays a part.
const ROLE: &str = "--role";
/// In place of a cgroup: that of whoever starts it.
pub(super) const NO_CGROUP: &str = "-";

/// A process that does what it is told.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// The first process of a container: in this cgroup, with this root and a mount namespace of its own, running `exe`.
    pub(super) fn first(root: &Path, cgroup: &Path, exe: &str) -> Result<Self> {
        Self::start(
            Command::new(std::env::current_exe()?).arg(ROLE).arg("enter").arg(root).arg(cgroup).arg(exe),
        )
    }

    /// Another process in the mount namespace of `first`.
    pub(super) fn join(first: &Self, cgroup: &str, exe: &str) -> Result<Self> {
        let pid = first.pid().to_string();
        Self::start(Command::new(std::env::current_exe()?).args([ROLE, "join", &pid, cgroup, exe]))
    }

    /// On the host, under the name of an agent.
    pub(super) fn called(name: &str) -> Result<Self> {
        Self::start(Command::new(std::env::current_exe()?).arg0(name).args([ROLE, "serve", name]))
    }

    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        let mut process = Self { child, input, output };
        process.hear("ready")?;
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to do something, and waits for that.
    pub(super) fn tell(&mut self, words: &str) -> Result<()> {
        writeln!(self.input.as_mut().context("stdin is closed")?, "{words}")?;
        self.hear("done").with_context(|| words.to_owned())
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim_end() == word, "it said {line:?} instead of {word}");
        Ok(())
    }

    /// Lets it end, and waits for that.
    pub(super) fn end(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// What this process does if it was started for a part: `None` if it was not.
pub(super) fn played() -> Option<Result<()>> {
    let arguments: Vec<String> = std::env::args_os().map(|one| one.to_string_lossy().into_owned()).collect();
    let at = arguments.iter().position(|one| one == ROLE)?;
    Some(play(&arguments[at + 1..]))
}

fn play(arguments: &[String]) -> Result<()> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["enter", root, cgroup, exe] => {
            take_cgroup(cgroup)?;
            unshare_mounts()?;
            pivot(Path::new(root))?;
            Err(Command::new(exe).args([ROLE, "serve"]).exec()).context("exec")
        }
        ["join", pid, cgroup, exe] => {
            take_cgroup(cgroup)?;
            let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Mount),
            )?;
            Err(Command::new(exe).args([ROLE, "serve"]).exec()).context("exec")
        }
        ["serve"] => serve(),
        ["serve", name] => {
            rustix::thread::set_name(&std::ffi::CString::new(*name)?)?;
            serve()
        }
        other => bail!("no such role: {other:?}"),
    }
}

fn take_cgroup(cgroup: &str) -> Result<()> {
    if cgroup == NO_CGROUP {
        return Ok(());
    }
    Ok(fs::write(Path::new(cgroup).join("cgroup.procs"), "0")?)
}

fn unshare_mounts() -> Result<()> {
    // SAFETY: no pointers; the process has one thread.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    ensure!(done == 0, "unshare: {}", std::io::Error::last_os_error());
    Ok(())
}

/// As a container runtime does it: the new root becomes that of the mount namespace, the old one goes.
fn pivot(root: &Path) -> Result<()> {
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private)?;
    std::env::set_current_dir(root)?;
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(std::env::set_current_dir("/")?)
}

fn serve() -> Result<()> {
    say("ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["write", file, text] => fs::write(file, text)?,
            ["swap", file, text] => {
                let new = PathBuf::from(format!("{file}.tmp.1"));
                fs::write(&new, text)?;
                fs::rename(&new, file)?;
            }
            _ => bail!("cannot {line}"),
        }
        say("done")?;
    }
    Ok(())
}

fn say(word: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

/// An overlay of `lower`, with `volume` in it, as a runtime mounts a container's root.
pub(super) fn mount_root(work: &Path, lower: &Path, root: &Path, volume: (&Path, &str)) -> Result<()> {
    let (upper, scratch) = (work.join("upper"), work.join("work"));
    for dir in [&upper, &scratch, &root.to_owned()] {
        fs::create_dir_all(dir)?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), scratch.display());
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", root, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .context("overlay")?;
    rustix::mount::mount_bind(volume.0, root.join(volume.1.trim_start_matches('/'))).context("bind")?;
    Ok(())
}

pub(super) fn unmount_root(root: &Path, volume: &str) -> Result<()> {
    rustix::mount::unmount(root.join(volume.trim_start_matches('/')), UnmountFlags::DETACH)?;
    Ok(rustix::mount::unmount(root, UnmountFlags::DETACH)?)
}
