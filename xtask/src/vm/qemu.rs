//! QEMU: the machine, its channels to this process, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};

use super::stream::{self, Ended};
use super::{End, Output, VmOutcome, VmSpec, emulator, terminal};
use crate::cmd::{self, Killed};
use crate::interrupt;

/// What the machine is made of.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) initramfs: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) with: Option<PathBuf>,
}

/// What the channels report.
enum Event {
    Ready,
    Exit(u8),
    Stream(Ended),
    ControlClosed,
    StreamFailed(std::io::Error),
}

/// How often a wait is broken off to see whether this run is to end.
const GLANCE: Duration = Duration::from_millis(250);
/// How long a guest may take until it runs what it is to run: seconds on an idle machine, a minute on a busy one.
pub(crate) const TO_BOOT: Duration = Duration::from_secs(240);
/// Kept of the console, from its end.
const CONSOLE_LINES: usize = 60;

/// Runs the machine until its command ended, or it is gone, or the time is up.
pub(crate) fn run(spec: &VmSpec, files: &Files, token: &str) -> Result<VmOutcome> {
    let mut command = command(spec, files)?;
    let mut channels = Channels::default();
    let console = channels.add(&mut command, "console", "-serial", "chardev:console")?;
    let control = channels.add(
        &mut command,
        "control",
        "-device",
        "virtserialport,chardev=control,name=control,nr=3",
    )?;
    let out = channels.add(&mut command, "out", "-device", "virtserialport,chardev=out,name=out,nr=1")?;
    let err = channels.add(&mut command, "err", "-device", "virtserialport,chardev=err,name=err,nr=2")?;
    let screen = match spec.output {
        Output::Terminal => {
            Some(channels.add(&mut command, "screen", "-device", "virtconsole,chardev=screen,nr=0")?)
        }
        Output::Inherit | Output::Capture => None,
    };

    let started = Instant::now();
    let mut machine = Killed(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start QEMU: the package qemu-system-x86 provides it")?,
    );
    drop(channels); // QEMU's ends: ours must see when QEMU closes them

    let console = console_reader(console, spec.console);
    let (sender, events) = channel();
    control_reader(control, sender.clone());
    let capture = spec.output == Output::Capture;
    let out = stream_reader(out, token, capture, false, sender.clone());
    let err = stream_reader(err, token, capture, true, sender);
    let raw = screen.map(Screen::start).transpose()?;

    let seen = wait(&events, started, spec.timeout, raw.is_some());
    let mut own_words = String::new();
    drop(machine.0.kill());
    if let Some(mut stderr) = machine.0.stderr.take() {
        drop(stderr.read_to_string(&mut own_words));
    }
    drop(machine);
    if let Some(screen) = raw {
        screen.finish();
    }
    let seen = seen?;
    let (stdout, stderr) = (joined(out), joined(err));
    let console = joined(console);
    let end = match seen.end {
        Some(end) => end,
        None => {
            let own_words =
                own_words.lines().filter(|line| !line.contains("warning:")).collect::<Vec<_>>().join("\n");
            let text = String::from_utf8_lossy(&console).replace('\r', "");
            End::Crashed(
                cmd::tail(&format!("{}\n{}", own_words.trim(), text.trim()), CONSOLE_LINES).trim().to_owned(),
            )
        }
    };
    Ok(VmOutcome { end, booted: seen.booted, took: started.elapsed(), stdout, stderr })
}

fn joined(reader: JoinHandle<Vec<u8>>) -> Vec<u8> {
    reader.join().unwrap_or_default()
}

struct Seen {
    booted: Option<Duration>,
    /// `None`: the machine went away.
    end: Option<End>,
}

fn wait(
    events: &Receiver<Event>,
    started: Instant,
    timeout: Option<Duration>,
    terminal: bool,
) -> Result<Seen> {
    let mut seen = Seen { booted: None, end: None };
    let mut streams = if terminal { 0 } else { 2 };
    let mut status = None;
    loop {
        if let Some(status) = status
            && streams == 0
        {
            seen.end = Some(End::Exited(status));
            return Ok(seen);
        }
        let left = timeout.map_or(GLANCE, |limit| limit.saturating_sub(started.elapsed()));
        match events.recv_timeout(left.min(GLANCE)) {
            Ok(Event::Ready) => seen.booted = Some(started.elapsed()),
            Ok(Event::Exit(code)) => status = Some(code),
            Ok(Event::Stream(Ended::Whole)) => streams -= 1,
            Ok(Event::Stream(Ended::Cut) | Event::ControlClosed) => {
                if !terminal || status.is_none() {
                    return Ok(seen);
                }
            }
            Ok(Event::StreamFailed(error)) => bail!("the command's output cannot be passed on: {error}"),
            Err(RecvTimeoutError::Timeout) if seen.booted.is_none() && started.elapsed() > TO_BOOT => {
                return Ok(seen);
            }
            Err(RecvTimeoutError::Timeout) if left > GLANCE || timeout.is_none() => interrupt::check()?,
            Err(RecvTimeoutError::Timeout) => {
                seen.end = Some(End::TimedOut);
                return Ok(seen);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(seen),
        }
    }
}

fn command(spec: &VmSpec, files: &Files) -> Result<Command> {
    let qemu = emulator::emulator(&spec.kernel.image)?;
    // QEMU must not outlive this process, however it ends.
    let mut command = match cmd::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(&qemu.program);
            command
        }
        None => Command::new(&qemu.program),
    };
    // no_timer_check: on a busy machine an emulated timer can be too late for the kernel's test of it, which then panics.
    let mut append =
        format!("console=ttyS0 quiet panic=-1 oops=panic no_timer_check rdinit=/init lsm={}", spec.lsm);
    for word in &spec.kernel_args {
        append.push(' ');
        append.push_str(word);
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"]);
    command.args(["-machine", "pc"]).args(qemu.arguments(spec.counts_instructions));
    if spec.counts_instructions {
        // One nanosecond of guest time is one instruction.
        command.args(["-icount", "shift=0,sleep=off"]);
    }
    command.args([
        "-rtc",
        "base=utc",
        "-smp",
        &spec.processors.to_string(),
        "-m",
        &spec.memory_mib.to_string(),
    ]);
    command
        .arg("-kernel")
        .arg(&spec.kernel.image)
        .arg("-initrd")
        .arg(&files.initramfs)
        .args(["-append", &append]);
    for (name, image) in [("data", Some(&files.data)), ("with", files.with.as_ref())] {
        if let Some(image) = image {
            let mut drive =
                std::ffi::OsString::from(format!("if=none,id={name},format=raw,cache=unsafe,file="));
            // A comma in an option of QEMU is written twice.
            drive.push(image.to_string_lossy().replace(',', ",,"));
            command.arg("-drive").arg(drive);
            command.args(["-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
        }
    }
    command.args(["-device", "virtio-serial-pci"]);
    command.args(&spec.qemu_args);
    Ok(command)
}

/// QEMU's ends of the socket pairs, open until it has started.
#[derive(Default)]
struct Channels(Vec<UnixStream>);

impl Channels {
    /// Adds a character device of that name and the device that speaks through it; the answer is this process's end.
    fn add(&mut self, command: &mut Command, name: &str, option: &str, device: &str) -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair().context("cannot create a socket pair")?;
        fcntl_setfd(&theirs, FdFlags::empty()).context("cannot pass a socket on")?;
        command
            .args(["-chardev", &format!("socket,id={name},fd={}", theirs.as_raw_fd())])
            .args([option, device]);
        self.0.push(theirs);
        Ok(ours)
    }
}

fn console_reader(mut console: UnixStream, show: bool) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0_u8; 4096];
        while let Ok(count) = console.read(&mut buffer) {
            let Some(new) = buffer.get(..count).filter(|new| !new.is_empty()) else { break };
            if show {
                drop(std::io::stderr().write_all(new));
            }
            kept.extend_from_slice(new);
            if kept.len() > 1 << 20 {
                kept.drain(..1 << 19);
            }
        }
        kept
    })
}

fn control_reader(control: UnixStream, events: Sender<Event>) {
    std::thread::spawn(move || {
        for line in BufReader::new(control).lines() {
            let Ok(line) = line else { break };
            let event = match line.split_once(' ') {
                Some(("exit", code)) => code.trim().parse().map(Event::Exit).ok(),
                _ if line == "ready" => Some(Event::Ready),
                _ => None,
            };
            if event.is_some_and(|event| events.send(event).is_err()) {
                return;
            }
        }
        drop(events.send(Event::ControlClosed));
    });
}

fn stream_reader(
    mut from: UnixStream,
    token: &str,
    capture: bool,
    is_stderr: bool,
    events: Sender<Event>,
) -> JoinHandle<Vec<u8>> {
    let token = token.as_bytes().to_vec();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let ended = match (capture, is_stderr) {
            (true, _) => stream::copy(&mut from, &mut kept, &token),
            (false, true) => stream::copy(&mut from, &mut std::io::stderr(), &token),
            (false, false) => stream::copy(&mut from, &mut unbuffered_stdout(), &token),
        };
        drop(events.send(match ended {
            Ok(ended) => Event::Stream(ended),
            Err(error) => Event::StreamFailed(error),
        }));
        kept
    })
}

/// Stdout as it is: the standard library's would hold back what follows the last newline.
fn unbuffered_stdout() -> Box<dyn Write> {
    use std::os::fd::AsFd as _;
    match std::io::stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => Box::new(std::fs::File::from(fd)),
        Err(_) => Box::new(std::io::stdout()),
    }
}

/// The person's terminal, joined to the guest's console.
struct Screen {
    _raw: terminal::Raw,
    reader: JoinHandle<()>,
}

impl Screen {
    fn start(socket: UnixStream) -> Result<Self> {
        let mut keys = socket.try_clone().context("cannot use the guest's console")?;
        let mut screen = socket;
        let raw = terminal::Raw::enter()?;
        // Ends with this process: a read of the terminal cannot be broken off.
        std::thread::spawn(move || std::io::copy(&mut std::io::stdin(), &mut keys).is_ok());
        let reader = std::thread::spawn(move || {
            drop(std::io::copy(&mut screen, &mut unbuffered_stdout()));
        });
        Ok(Self { _raw: raw, reader })
    }

    /// Waits for the guest's last words on the screen.
    fn finish(self) {
        drop(self.reader.join());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(said: Vec<Event>) -> Seen {
        let (sender, events) = channel();
        for event in said {
            sender.send(event).unwrap();
        }
        let long_ago = Instant::now().checked_sub(TO_BOOT + GLANCE).unwrap();
        wait(&events, long_ago, None, false).unwrap()
    }

    #[test]
    fn a_guest_that_does_not_boot_is_given_up_and_one_that_did_may_take_its_time() {
        let hung = seen(Vec::new());
        assert!(hung.end.is_none() && hung.booted.is_none());
        let whole = || Event::Stream(Ended::Whole);
        let slow = seen(vec![Event::Ready, whole(), whole(), Event::Exit(3)]);
        assert!(slow.end == Some(End::Exited(3)) && slow.booted.is_some());
    }
}
