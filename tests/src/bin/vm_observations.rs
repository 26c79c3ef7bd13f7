//! Proves the rungs that stand on the kernel's security hooks, on a real kernel: tags a tree, performs every act, and
//! compares the whole list of observations. Takes the `lsm` rung where `bpf` is among the security modules, else `fentry`:
//! `cargo xtask vm [--lsm lockdown,capability] --with <this> -- /with/vm_observations [DIRECTORY]`.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one mapping, from beginning to end")]

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use monitor::model::{HostPath, Observation, Rung, Slot, WatchKind};
use monitor::sensor::hooks::{self, HookRung, HookSensor, Options};
use monitor::sensor::{Sensor as _, SensorEvent};
use rustix::fs::{CWD, Mode, OFlags};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A slot that marks the end of a phase.
const SENTINEL: u32 = 9999;
/// How often all is done again where the kernel skipped programs.
const ATTEMPTS: usize = 6;
/// Within this time the sensor has asked the kernel for what it skipped.
const ASKED: Duration = Duration::from_secs(5);

/// On the `fentry` rung a kernel that preempts itself skips a program another task is in, and counts that: what was expected did not
/// come, or may not have come, and the sensor says so.
#[derive(Debug, thiserror::Error)]
#[error("the kernel skipped {0} runs of programs")]
struct Skipped(u64);

fn main() -> ExitCode {
    // MESHSEAL_LOG=debug shows the verifier's log where a program is refused.
    let filter = tracing_subscriber::EnvFilter::try_from_env("MESHSEAL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match run() {
        Ok(()) => {
            println!("ok all observations");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAIL observations: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let base = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let base = tempfile::tempdir_in(base)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let guard = runtime.enter();
    let probe = hooks::probe();
    println!("{probe:?}");
    let rung = if probe.bpf_in_list { HookRung::Lsm } else { HookRung::Fentry };
    if rung == HookRung::Fentry {
        let (tx, _rx) = tokio::sync::mpsc::channel(1);
        let mut tasks = JoinSet::<()>::new();
        let refused =
            hooks::start(HookRung::Lsm, &Options::new(base.path()), tx, &mut tasks, CancellationToken::new());
        ensure!(refused.is_err(), "the lsm rung started without its security module");
    }
    for attempt in 1.. {
        let dir = base.path().join(attempt.to_string());
        std::fs::create_dir(&dir)?;
        let all = || -> Result<Vec<String>> {
            let mut said = observed(rung, &dir, &runtime)?;
            said.push(loss(rung, &dir, &runtime)?);
            Ok(said)
        };
        match all() {
            Ok(said) => {
                said.iter().for_each(|line| println!("{line}"));
                break;
            }
            Err(error) if rung == HookRung::Fentry && error.is::<Skipped>() && attempt < ATTEMPTS => {
                println!("note: all over again: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    drop(guard);
    Ok(())
}

/// All phases once, under a sensor of their own, in a directory of their own; the answer is what passed.
fn observed(rung: HookRung, base: &Path, runtime: &tokio::runtime::Runtime) -> Result<Vec<String>> {
    let (tx, rx) = tokio::sync::mpsc::channel(4096);
    let mut tasks = JoinSet::<()>::new();
    let stop = CancellationToken::new();
    let stopped_at_last = stop.clone().drop_guard();
    let begun = Instant::now();
    let sensor = hooks::start(rung, &Options::new(base), tx, &mut tasks, stop)?;
    ensure!(sensor.rung() == rung.rung(), "{:?}", sensor.rung());
    println!("started in {:?}", begun.elapsed());
    let health = sensor.health();
    for hook in &health.hooks {
        println!(
            "hook {} {:?} live={} canary={}",
            hook.name,
            hook.family,
            hook.live,
            hook.last_canary.is_some()
        );
    }
    ensure!(health.blind_to.is_empty(), "blind to {:?}", health.blind_to);
    let mut lab = Lab::new(base, sensor, rx)?;
    let outcome = phases(&mut lab);
    let said = std::mem::take(&mut lab.said);
    drop(lab);
    drop(stopped_at_last);
    runtime.block_on(async { while tasks.join_next().await.is_some() {} });
    outcome.map(|()| said)
}

/// A ring that is far too small, and nobody who reads: what is lost is said, with the slot and the whole count.
fn loss(rung: HookRung, base: &Path, runtime: &tokio::runtime::Runtime) -> Result<String> {
    const WRITES: u64 = 500;
    let (tx, mut rx) = tokio::sync::mpsc::channel(1);
    let mut tasks = JoinSet::<()>::new();
    let stop = CancellationToken::new();
    let stopped_at_last = stop.clone().drop_guard();
    let options = Options { ring_bytes: 16 << 10, ..Options::new(base) };
    let mut sensor = hooks::start(rung, &options, tx, &mut tasks, stop)?;
    let path = base.join("stormed");
    let file = File::create(&path)?;
    sensor.watch(held(&path)?.as_fd(), Slot(5), WatchKind::Object, &HostPath::from(path.as_path()))?;
    for round in 0..WRITES {
        // Not the same twice, so that nothing can be counted together.
        if round % 2 == 0 {
            file.write_at(b"x", round)?;
        } else {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
    }
    let (mut seen, mut dirty, mut lost) = (0, 0, 0);
    while seen + dirty < WRITES {
        match rx.blocking_recv().context("the sensor ended")? {
            SensorEvent::Observed(observation) if observation.slot == Slot(5) => seen += observation.count,
            SensorEvent::Dirty { slot: Slot(5), events } => dirty += events,
            SensorEvent::Lost { at: "ring", lost: more, slots, .. } => {
                ensure!(
                    slots.as_ref().is_some_and(|slots| slots.iter().all(|slot| *slot == Slot(5))),
                    "{slots:?}"
                );
                lost += more;
            }
            SensorEvent::Lost { at: "programs", lost, .. } => return Err(Skipped(lost).into()),
            SensorEvent::Lost { at, .. } => println!("note: lost at {at}"),
            _ => {}
        }
    }
    // Canaries may have been lost in the small ring too.
    ensure!(seen + dirty == WRITES && dirty > 0 && lost >= dirty, "seen {seen}, dirty {dirty}, lost {lost}");
    drop(rx);
    drop(sensor);
    drop(stopped_at_last);
    runtime.block_on(async { while tasks.join_next().await.is_some() {} });
    Ok(format!("ok loss: {seen} seen, {dirty} reported as lost"))
}

struct Lab {
    dir: PathBuf,
    sensor: HookSensor,
    rx: Receiver<SensorEvent>,
    sentinel: File,
    /// What passed so far.
    said: Vec<String>,
}

impl Lab {
    fn new(base: &Path, mut sensor: HookSensor, rx: Receiver<SensorEvent>) -> Result<Self> {
        let dir = base.join("lab");
        std::fs::create_dir(&dir)?;
        let path = base.join("sentinel");
        let sentinel = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        let fd = held(&path)?;
        sensor.watch(fd.as_fd(), Slot(SENTINEL), WatchKind::Object, &HostPath::from(path.as_path()))?;
        Ok(Self { dir, sensor, rx, sentinel, said: Vec::new() })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn watch(&mut self, path: &Path, slot: u32, kind: WatchKind) -> Result<()> {
        let fd = held(path)?;
        self.sensor
            .watch(fd.as_fd(), Slot(slot), kind, &HostPath::from(path))
            .with_context(|| format!("watch {}", path.display()))
    }

    /// What came since the last call: the sentinel is written, and comes after everything this thread did.
    fn events(&mut self) -> Result<Vec<Observation>> {
        self.sentinel.write_at(b"x", 0)?;
        let mut out = Vec::new();
        loop {
            match self.rx.blocking_recv().context("the sensor ended")? {
                SensorEvent::Observed(observation) if observation.slot.0 == SENTINEL => return Ok(out),
                SensorEvent::Observed(observation) => out.push(*observation),
                // What came of that, as inotify has it.
                SensorEvent::Dirty { events: 0, .. } | SensorEvent::Closed { .. } => {}
                SensorEvent::Lost { at: "programs", lost, .. } => return Err(Skipped(lost).into()),
                other => bail!("not expected: {other:?}"),
            }
        }
    }

    /// Waits until a writer is said to have closed what has that slot, of which nothing else is told any more.
    fn closes(&mut self, slot: u32) -> Result<()> {
        loop {
            match self.rx.blocking_recv().context("the sensor ended")? {
                SensorEvent::Closed { slot: Slot(closed) } if closed == slot => return Ok(()),
                SensorEvent::Dirty { events: 0, .. } | SensorEvent::Closed { .. } => {}
                SensorEvent::Lost { at: "programs", lost, .. } => return Err(Skipped(lost).into()),
                other => bail!("not expected: {other:?}"),
            }
        }
    }

    /// Whether programs were skipped: the sensor tells of that some time later. Waits for that.
    fn skipped(&mut self) -> Result<()> {
        let told = async {
            loop {
                match self.rx.recv().await {
                    Some(SensorEvent::Lost { at: "programs", lost, .. }) => return lost,
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        match tokio::runtime::Handle::current().block_on(async { tokio::time::timeout(ASKED, told).await }) {
            Ok(lost) => Err(Skipped(lost).into()),
            Err(_) => Ok(()),
        }
    }

    /// Compares the whole list.
    fn expect(&mut self, phase: &str, expected: &[&str]) -> Result<()> {
        let me = std::process::id();
        let mut got: Vec<String> = Vec::new();
        for observation in self.events()? {
            let actor = observation.actor.as_ref().map_err(|reason| anyhow::anyhow!("no actor: {reason}"))?;
            ensure!(actor.tgid == me && actor.comm == "vm_observations", "{phase}: actor {actor:?}");
            // How many writes come in one observation is a matter of when the ring is read: here each counts.
            got.extend(std::iter::repeat_n(self.line(&observation), usize::try_from(observation.count)?));
        }
        let same = got.len() == expected.len() && got.iter().zip(expected).all(|(got, want)| got == want);
        if !same {
            self.skipped()?;
            println!("{phase}: got:\n  {}\nexpected:\n  {}", got.join("\n  "), expected.join("\n  "));
            bail!("{phase}: {} observations, {} expected, or not the same", got.len(), expected.len());
        }
        self.said.push(format!("ok {phase}: {} observations", got.len()));
        Ok(())
    }

    fn line(&self, observation: &Observation) -> String {
        let text = |bytes: &[u8]| HostPath::new(bytes.to_vec()).to_string();
        let mut line = format!("{:?} {}", observation.operation, observation.slot.0).to_lowercase();
        if let Some(name) = &observation.name {
            line += &format!(" {}", text(name));
        }
        if let Some(child) = observation.child_slot {
            line += &format!(" child={}", child.0);
        }
        if let Some(to) = &observation.renamed_to {
            line += &format!(" to={}/{}", to.slot.0, text(&to.name));
        }
        if let Some(slot) = observation.replaced_slot {
            line += &format!(" replaced={}", slot.0);
        }
        line
    }
}

fn held(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

fn phases(lab: &mut Lab) -> Result<()> {
    content(lab)?;
    quiet(lab)?;
    names(lab)?;
    mappings(lab)?;
    hostile_names(lab)?;
    actors(lab)?;
    publish(lab)?;
    mounts(lab)?;
    slots(lab)?;
    reads(lab)
}

/// What is done to a file's bytes and attributes.
fn content(lab: &mut Lab) -> Result<()> {
    let path = lab.at("object");
    std::fs::write(&path, "sealed")?;
    std::os::unix::fs::symlink("object", lab.at("alias"))?;
    lab.watch(&path.clone(), 1, WatchKind::Object)?;
    lab.expect("setting up", &[])?;

    let mut file = OpenOptions::new().write(true).open(&path)?;
    lab.expect("open for write", &["open 1 object"])?;
    file.write_all(b"x")?;
    file.write_all(b"y")?;
    lab.expect("writes", &["write 1 object", "write 1 object"])?;
    drop(OpenOptions::new().write(true).truncate(true).open(lab.at("alias"))?);
    lab.expect("through a symlink, truncating", &["open 1 object", "truncate 1 object"])?;
    file.set_len(10)?;
    OpenOptions::new().write(true).open(&path)?.set_len(20)?;
    lab.expect("truncate", &["truncate 1 object", "open 1 object", "truncate 1 object"])?;
    file.set_permissions(std::fs::Permissions::from_mode(0o640))?;
    std::os::unix::fs::chown(&path, Some(0), Some(0))?;
    lab.expect("setattr", &["setattr 1 object", "setattr 1 object"])?;
    rustix::fs::fsetxattr(&file, "trusted.x", b"1", rustix::fs::XattrFlags::empty())?;
    rustix::fs::fremovexattr(&file, "trusted.x")?;
    lab.expect("xattr", &["setxattr 1 object", "removexattr 1 object"])?;
    drop(file);

    let path = lab.at("written");
    std::fs::write(&path, "sealed")?;
    lab.watch(&path, 2, WatchKind::Object)?;
    let mut file = OpenOptions::new().write(true).open(&path)?;
    file.write_all(b"x")?;
    lab.expect("written, and open", &["open 2 written", "write 2 written"])?;
    drop(file);
    lab.closes(2)
}

/// What must not be seen.
fn quiet(lab: &mut Lab) -> Result<()> {
    let path = lab.at("object");
    let mut text = Vec::new();
    File::open(&path)?.read_to_end(&mut text)?;
    let _ = std::fs::metadata(&path)?;
    ensure!(std::fs::read_link(lab.at("alias"))? == Path::new("object"));
    std::fs::write(lab.at("neighbour"), "n")?;
    std::fs::rename(lab.at("neighbour"), lab.at("neighbour2"))?;
    std::fs::remove_file(lab.at("neighbour2"))?;
    ensure!(Command::new("/proc/self/exe").arg("/nonexistent").output()?.status.code() == Some(1));
    lab.expect("reads, execs, neighbours", &[])
}

/// What is done to names, in a closed directory and by way of the child alone.
fn names(lab: &mut Lab) -> Result<()> {
    let closed = lab.at("closed");
    std::fs::create_dir(&closed)?;
    std::fs::write(closed.join("a"), "a")?;
    lab.watch(&closed.clone(), 10, WatchKind::ClosedDir)?;
    lab.watch(&closed.join("a"), 11, WatchKind::Object)?;
    lab.expect("setting up", &[])?;

    std::fs::write(closed.join("b"), "b")?;
    lab.expect("create", &["create 10 b", "open 10 b", "write 10 b"])?;
    std::os::unix::fs::symlink("a", closed.join("s"))?;
    std::fs::create_dir(closed.join("d"))?;
    rustix::fs::mknodat(CWD, closed.join("p"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)?;
    std::fs::hard_link(closed.join("a"), closed.join("l"))?;
    lab.expect(
        "symlink, mkdir, mknod, link",
        &["symlink 10 s", "mkdir 10 d", "mknod 10 p", "link 10 l child=11"],
    )?;
    std::fs::write(closed.join("d").join("deep"), "x")?;
    lab.expect("below a new directory", &["create 10 deep", "open 10 deep", "write 10 deep"])?;
    std::fs::rename(closed.join("b"), closed.join("a"))?;
    lab.expect("rename over", &["rename 10 b child=10 to=10/a replaced=11"])?;
    std::fs::write(lab.at("outside"), "o")?;
    std::fs::rename(lab.at("outside"), closed.join("in"))?;
    lab.expect("moved in", &["rename 0 outside child=10 to=10/in"])?;
    OpenOptions::new().append(true).open(closed.join("in"))?.write_all(b"z")?;
    lab.expect("written after it was moved in", &["open 10 in", "write 10 in"])?;
    moved_in(lab, &closed)?;
    rustix::fs::renameat_with(
        CWD,
        closed.join("in"),
        CWD,
        closed.join("s"),
        rustix::fs::RenameFlags::EXCHANGE,
    )?;
    // As an LSM hook it is called for each way, the way back first; told once on either rung.
    let exchanged = match lab.sensor.rung() {
        Rung::Lsm => "rename 10 s child=10 to=10/in replaced=10",
        _ => "rename 10 in child=10 to=10/s replaced=10",
    };
    lab.expect("exchanged", &[exchanged])?;
    std::fs::rename(closed.join("l"), lab.at("away"))?;
    lab.expect("moved out", &["rename 10 l child=11 to=0/away"])?;
    std::fs::remove_file(lab.at("away"))?;
    lab.expect("unlinked where nobody watches", &["unlink 11 away child=11"])?;
    std::fs::remove_file(closed.join("p"))?;
    std::fs::remove_file(closed.join("d").join("deep"))?;
    std::fs::remove_dir(closed.join("d"))?;
    lab.expect(
        "unlink and rmdir",
        &["unlink 10 p child=10", "unlink 10 deep child=10", "rmdir 10 d child=10"],
    )?;

    let parent = lab.at("parent");
    std::fs::create_dir(&parent)?;
    lab.watch(&parent.clone(), 12, WatchKind::Parent)?;
    std::fs::write(parent.join("x"), "x")?;
    std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o755))?;
    lab.expect("a parent sees names only", &["create 12 x"])
}

/// Of a directory that is moved below a tagged one the kernel's programs tag what is opened, until the agent has been there. With inode
/// storage and `f_path` in a union (7.2) only the agent tags it.
fn moved_in(lab: &mut Lab, closed: &Path) -> Result<()> {
    let (outside, inside) = (lab.at("brought"), closed.join("brought"));
    std::fs::create_dir(&outside)?;
    std::fs::write(outside.join("deep"), "d")?;
    std::fs::rename(&outside, &inside)?;
    lab.expect("a directory moved in", &["rename 0 brought child=10 to=10/brought"])?;
    OpenOptions::new().append(true).open(inside.join("deep"))?.write_all(b"z")?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let by_the_agent_only = lab.sensor.rung() == Rung::Lsm && release.starts_with("7.");
    let written: &[&str] = if by_the_agent_only { &[] } else { &["open 10 deep", "write 10 deep"] };
    lab.expect("written in a directory that was moved in", written)?;
    std::fs::remove_dir_all(&inside)?;
    let deep = if by_the_agent_only { "unlink 10 deep" } else { "unlink 10 deep child=10" };
    lab.expect("the directory that was moved in is removed", &[deep, "rmdir 10 brought child=10"])
}

/// Shared writable mappings are seen; the ones without a file, or private, or read-only are not, and do no harm.
fn mappings(lab: &mut Lab) -> Result<()> {
    const LEN: usize = 2 << 20;
    let path = lab.at("object");
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    file.set_len(4096)?;
    lab.expect("setting up", &["open 1 object", "truncate 1 object"])?;
    let map = |len: usize, prot: i32, flags: i32, fd: i32| {
        // SAFETY: a fresh mapping, not touched, and taken away at once.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0);
            if at == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
            libc::munmap(at, len);
        }
        Ok(())
    };
    let (rw, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    map(LEN, rw, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    map(LEN, rw, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
    // No huge pages may be free: then the hook ran all the same.
    drop(map(LEN, rw, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, -1));
    drop(map(LEN, rw, libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, -1));
    map(4096, rw, libc::MAP_PRIVATE, fd)?;
    map(4096, libc::PROT_READ, libc::MAP_SHARED, fd)?;
    // SAFETY: a segment of our own, attached, detached, and marked for removal.
    unsafe {
        let id = libc::shmget(libc::IPC_PRIVATE, LEN, libc::IPC_CREAT | 0o600);
        ensure!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
        let at = libc::shmat(id, std::ptr::null(), 0);
        ensure!(at as isize != -1, "shmat: {}", std::io::Error::last_os_error());
        libc::shmdt(at);
        libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut());
    }
    lab.expect("mappings without effect on a file", &[])?;
    map(4096, rw, libc::MAP_SHARED, fd)?;
    lab.expect("shared and writable", &["mmap 1 object"])?;
    // SAFETY: as above.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        ensure!(at != libc::MAP_FAILED);
        libc::mprotect(at, 4096, rw);
        libc::munmap(at, 4096);
    }
    lab.expect("made writable later", &["mmap 1 object"])
}

/// Names with newlines and bytes that are not UTF-8 keep their bytes; the path is whole.
fn hostile_names(lab: &mut Lab) -> Result<()> {
    let name = std::ffi::OsStr::from_bytes(b"\xff\n\\x41 ");
    let dir = lab.at("closed").join(name);
    std::fs::create_dir(&dir)?;
    File::create(dir.join(name))?;
    let events = lab.events()?;
    let last = events.last().context("no event")?;
    ensure!(last.name.as_deref() == Some(name.as_bytes()), "{last:?}");
    let path = last.path_in_fs.as_ref().context("no path")?;
    ensure!(path.as_bytes().ends_with(b"/lab/closed/\xff\n\\x41 /\xff\n\\x41 "), "{path}");
    lab.said.push("ok hostile names".to_owned());

    let long = "n".repeat(255);
    let mut deep = lab.at("closed");
    for _ in 0..4 {
        deep = deep.join(&long);
        std::fs::create_dir(&deep)?;
    }
    let events = lab.events()?;
    ensure!(events.len() == 4 && events.iter().all(|event| event.name.as_deref() == Some(long.as_bytes())));
    ensure!(
        events[0].path_in_fs.is_some() && events[3].path_in_fs.is_none(),
        "the end of the walk: {events:?}"
    );
    lab.said.push("ok long names".to_owned());
    Ok(())
}

/// A process that is gone when its event is read has a name all the same.
fn actors(lab: &mut Lab) -> Result<()> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.context("no busybox")?;
    let path = lab.at("object");
    let status = Command::new(busybox)
        .args(["dd", "if=/dev/zero", "bs=1", "count=1", "status=none", "conv=notrunc"])
        .arg(format!("of={}", path.display()))
        .status()?;
    ensure!(status.success());
    let events = lab.events()?;
    ensure!(!events.is_empty(), "no event of dd");
    for event in &events {
        let actor = event.actor.as_ref().map_err(|reason| anyhow::anyhow!("no actor: {reason}"))?;
        let parent = std::process::id();
        ensure!(actor.comm == "dd" || actor.comm == "busybox", "{actor:?}");
        ensure!(actor.ppid == parent && actor.uid == 0 && actor.tgid != parent, "{actor:?}");
        ensure!(actor.exe.as_ref().is_some_and(|exe| exe.as_bytes().ends_with(b"/busybox")), "{actor:?}");
        // dd cuts its arguments at `=` in place.
        ensure!(actor.cmdline.contains("/dev/zero") && actor.cmdline.contains("/object"), "{actor:?}");
        ensure!(actor.cgroup.as_ref().is_some_and(|path| path.starts_with('/')), "{actor:?}");
        ensure!(actor.mount_ns.is_some_and(|inum| format!("mnt:[{inum}]") == own_namespace()), "{actor:?}");
        let age = monitor::model::Time::now().0 - actor.start_time.context("no start time")?.0;
        ensure!((0..600_000_000_000).contains(&age), "started {age} ns ago");
    }
    lab.said.push(format!(
        "ok actor of a short life: {:?}",
        events[0].actor.as_ref().map(|actor| (&actor.exe, &actor.cmdline, &actor.cgroup))
    ));
    Ok(())
}

fn own_namespace() -> String {
    std::fs::read_link("/proc/self/ns/mnt").map(|link| link.display().to_string()).unwrap_or_default()
}

/// What a kubelet does: a new directory, many files, one rename. Nothing is missed.
fn publish(lab: &mut Lab) -> Result<()> {
    const FILES: usize = 50;
    let volume = lab.at("volume");
    std::fs::create_dir(&volume)?;
    lab.watch(&volume.clone(), 20, WatchKind::Tree)?;
    let data = volume.join("..2026_11_23");
    std::fs::create_dir(&data)?;
    for index in 0..FILES {
        std::fs::write(data.join(format!("f{index}")), "v")?;
    }
    std::os::unix::fs::symlink("..2026_11_23", volume.join("..data_tmp"))?;
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    let mut expected = vec!["mkdir 20 ..2026_11_23".to_owned()];
    for index in 0..FILES {
        expected.extend(["create", "open", "write"].map(|op| format!("{op} 20 f{index}")));
    }
    expected.push("symlink 20 ..data_tmp".to_owned());
    expected.push("rename 20 ..data_tmp child=20 to=20/..data".to_owned());
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    lab.expect("publish", &expected)
}

/// A new file system below a tree is part of it from its first file, however it is mounted.
fn mounts(lab: &mut Lab) -> Result<()> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    };
    let (tree, outside) = (lab.at("volume"), lab.at("elsewhere"));
    let (first, second) = (tree.join("m1"), tree.join("m2"));
    for dir in [&first, &second, &outside] {
        std::fs::create_dir(dir)?;
    }
    lab.expect("setting up", &["mkdir 20 m1", "mkdir 20 m2"])?;
    rustix::mount::mount("none", &first, "tmpfs", MountFlags::empty(), None)?;
    std::fs::write(first.join("t"), "1")?;
    lab.expect("mount", &["mount 20 m1", "create 20 t", "open 20 t", "write 20 t"])?;
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, &second, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    drop((mount, fs));
    std::fs::write(second.join("t"), "2")?;
    lab.expect("move_mount", &["mount 20 m2", "create 20 t", "open 20 t", "write 20 t"])?;
    rustix::mount::mount("none", &outside, "tmpfs", MountFlags::empty(), None)?;
    std::fs::write(outside.join("t"), "3")?;
    lab.expect("mounted elsewhere", &[])?;
    // A file system that lives elsewhere too does not become part of the tree.
    rustix::mount::mount_bind(&outside, &first)?;
    std::fs::write(first.join("u"), "4")?;
    rustix::mount::unmount(&first, UnmountFlags::empty())?;
    lab.expect("a bind mount", &["mount 20"])?;

    let object = lab.at("object");
    std::fs::write(lab.at("fake"), "fake")?;
    rustix::mount::mount_bind(lab.at("fake"), &object)?;
    rustix::mount::unmount(&object, UnmountFlags::empty())?;
    lab.expect("bind mount over an object", &["mount 1 object"])?;
    for dir in [&first, &second, &outside] {
        rustix::mount::unmount(dir, UnmountFlags::empty())?;
    }
    lab.expect("unmounting", &["umount 20", "umount 20"])
}

/// A slot that is given up is silent, whatever still carries its tag; a new owner of the number is seen.
fn slots(lab: &mut Lab) -> Result<()> {
    let path = lab.at("object");
    lab.sensor.unwatch(Slot(1));
    OpenOptions::new().append(true).open(&path)?.write_all(b"q")?;
    lab.expect("unwatched", &[])?;
    let other = lab.at("other");
    std::fs::write(&other, "o")?;
    lab.watch(&other.clone(), 1, WatchKind::Object)?;
    OpenOptions::new().append(true).open(&path)?.write_all(b"q")?;
    OpenOptions::new().append(true).open(&other)?.write_all(b"q")?;
    lab.expect("another inode under the number", &["open 1 other", "write 1 other"])?;
    lab.watch(&other.clone(), 2, WatchKind::Object)?;
    lab.sensor.unwatch(Slot(1));
    OpenOptions::new().append(true).open(&other)?.write_all(b"q")?;
    lab.expect("moved to another slot", &["open 2 other", "write 2 other"])?;

    // Symlinks by their own inode.
    let link = lab.at("alias");
    lab.watch(&link.clone(), 3, WatchKind::Object)?;
    std::fs::remove_file(&link)?;
    lab.expect("a symlink", &["unlink 3 alias child=3"])
}

/// Reads are counted where that is asked for, but not our own.
fn reads(lab: &mut Lab) -> Result<()> {
    let path = lab.at("other");
    ensure!(lab.sensor.count_reads(Slot(2), true) == Some(0));
    File::open(&path)?;
    ensure!(lab.sensor.count_reads(Slot(2), true) == Some(0), "our own read was counted");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    for _ in 0..3 {
        ensure!(
            Command::new(busybox.context("no busybox")?).arg("cat").arg(&path).output()?.status.success()
        );
    }
    ensure!(lab.sensor.count_reads(Slot(2), false) == Some(3));
    ensure!(Command::new(busybox.context("no busybox")?).arg("cat").arg(&path).output()?.status.success());
    ensure!(lab.sensor.count_reads(Slot(2), true) == Some(0));
    drop(OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path)?);
    lab.said.push("ok reads".to_owned());
    Ok(())
}
