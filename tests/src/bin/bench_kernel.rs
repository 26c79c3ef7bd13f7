//! What `cargo xtask bench kernel` runs in a guest whose time counts instructions: what an act on a file that nobody watches costs
//! with the programs attached, and beside what else watches files.
//!
//! `bench_kernel DIRECTORY OBJECTS` prints nanoseconds of guest time for each act, as JSON.

#![expect(clippy::multiple_unsafe_ops_per_block, reason = "one system call with its arguments")]

use std::fs::{File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use meshseal_tests::audit::Audit;
use meshseal_tests::empty::Empty;
use monitor::model::{HostPath, Slot, WatchKind};
use monitor::sensor::Sensor as _;
use monitor::sensor::hooks::{self, HookRung, HookSensor, Options, Pinned};
use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Acts of one round.
const ACTS: u32 = 2_000;
/// Rounds that count, after one that does not: the median is told.
const ROUNDS: usize = 5;
/// Objects in one directory.
const IN_ONE: u32 = 1_000;
/// A guest that has just booted does things of its own, as one does in which programs were just loaded. It is taken to have settled
/// once the rounds of this long differ by less than a hundredth.
const CALM: Duration = Duration::from_millis(1_500);
/// When it is taken never to settle.
const RESTLESS: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    const USAGE: &str = "bench_kernel DIRECTORY OBJECTS";
    let mut arguments = std::env::args_os().skip(1);
    let dir = arguments.next().map(PathBuf::from).context(USAGE)?;
    let many: u32 = arguments.next().and_then(|many| many.to_str()?.parse().ok()).context(USAGE)?;
    // The agent takes half of what is there, which says nothing of what an object costs.
    std::fs::write("/proc/sys/fs/inotify/max_user_watches", (4 * u64::from(many) + 8192).to_string())?;
    let dir = tempfile::tempdir_in(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _guard = runtime.enter();
    let lab = Lab::new(dir.path())?;

    // What the agent holds for itself lies on another file system: what is held on this one costs by itself.
    let elsewhere = tempfile::tempdir_in("/tmp")?;
    lab.settle()?;
    // Not once more afterwards: for a while the kernel is busy with taking down what was detached.
    let off = lab.acts()?;
    let rung = if hooks::probe().bpf_in_list { HookRung::Lsm } else { HookRung::Fentry };
    let empty = Empty::attach(rung)?;
    lab.settle()?;
    let empty_acts = lab.acts()?;
    drop(empty);
    lab.settle()?;
    let on = Watching::start(rung, elsewhere.path(), many)?;
    lab.settle()?;
    let on_acts = lab.acts()?;
    on.stop(&runtime)?;
    lab.settle()?;
    let off_tagged = lab.round(&|| lab.write_tagged())?;
    let mut on = Watching::start(rung, elsewhere.path(), many)?;
    on.tag(&lab.tagged, 0)?;
    lab.settle()?;
    let held = lab.acts()?;
    let on_tagged = lab.round(&|| lab.write_tagged())?;
    for object in 1..many {
        on.tag(&lab.another(object)?, object)?;
    }
    lab.settle()?;
    let (crowd, crowd_tagged) = (lab.acts()?, lab.round(&|| lab.write_tagged())?);
    on.stop(&runtime)?;
    lab.settle()?;
    let inotify_elsewhere = beside(&inotify(&lab.tagged)?, &lab, read_inotify)?;
    let inotify = beside(&inotify(dir.path())?, &lab, read_inotify)?;
    let fanotify = beside(&fanotify(dir.path())?, &lab, read_plain)?;
    // Last, since it stays on.
    let audit = beside(Audit::watch(&lab.tagged)?.socket(), &lab, read_plain)?;
    println!(
        "{}",
        json!({
            "rung": rung.rung(), "off": off, "empty": empty_acts, "on": on_acts, "held": held,
            "inotify_elsewhere": inotify_elsewhere, "inotify": inotify, "fanotify": fanotify, "audit": audit,
            "tagged": { "off": off_tagged, "on": on_tagged },
            "many": { "objects": many, "acts": crowd, "tagged": crowd_tagged },
        })
    );
    Ok(())
}

/// What is acted upon: a file that nobody watches, in a directory that nobody watches, and one that is tagged.
struct Lab {
    file: PathBuf,
    name: PathBuf,
    tagged: PathBuf,
    open: File,
}

impl Lab {
    fn new(dir: &Path) -> Result<Self> {
        let (file, tagged) = (dir.join("file"), dir.join("tagged"));
        std::fs::write(&file, [0; 64])?;
        std::fs::write(&tagged, [0; 64])?;
        let open = OpenOptions::new().write(true).open(&tagged)?;
        // On ext4 the close of the last writer costs more once a file's blocks have been written out: not some time between two rounds.
        for name in [&file, &tagged] {
            File::open(name)?.sync_all()?;
        }
        Ok(Self { name: dir.join("new"), file, tagged, open })
    }

    /// One more file to be tagged.
    fn another(&self, object: u32) -> Result<PathBuf> {
        let dir = self.tagged.with_file_name(format!("many-{}", object / IN_ONE));
        std::fs::create_dir_all(&dir)?;
        let file = dir.join(object.to_string());
        drop(File::create(&file)?);
        Ok(file)
    }

    fn acts(&self) -> Result<Value> {
        Ok(json!({
            "open_write_close": self.round(&|| self.open_write_close())?,
            "create_unlink": self.round(&|| self.create_unlink())?,
        }))
    }

    fn open_write_close(&self) -> Result<()> {
        Ok(OpenOptions::new().write(true).open(&self.file)?.write_all_at(&[1; 64], 0)?)
    }

    fn create_unlink(&self) -> Result<()> {
        drop(File::create_new(&self.name)?);
        Ok(std::fs::remove_file(&self.name)?)
    }

    fn write_tagged(&self) -> Result<()> {
        Ok(self.open.write_all_at(&[1; 64], 0)?)
    }

    /// Waits until the guest does nothing else.
    fn settle(&self) -> Result<()> {
        let (begun, mut calm, mut first) = (Instant::now(), Instant::now(), f64::MAX);
        while begun.elapsed() < RESTLESS {
            let now = once(&|| self.open_write_close())?;
            if (now - first).abs() >= first / 100.0 {
                (calm, first) = (Instant::now(), now);
            } else if calm.elapsed() >= CALM {
                return Ok(());
            }
        }
        bail!("the guest does not settle: {first} ns an act at last")
    }

    /// Nanoseconds of one act.
    fn round(&self, act: &dyn Fn() -> Result<()>) -> Result<f64> {
        let mut times = Vec::new();
        for round in 0..=ROUNDS {
            let took = once(act)?;
            if round > 0 {
                times.push(took);
            }
        }
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().context("no round")
    }
}

/// One round: nanoseconds of one act.
fn once(act: &dyn Fn() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..ACTS {
        act()?;
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(ACTS))
}

/// The programs, all attached, and somebody who takes what they tell.
struct Watching {
    sensor: HookSensor,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    drain: JoinHandle<()>,
}

impl Watching {
    fn start(rung: HookRung, base: &Path, objects: u32) -> Result<Self> {
        let (tx, mut rx) = tokio::sync::mpsc::channel(4096);
        let drain = std::thread::spawn(move || while rx.blocking_recv().is_some() {});
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let options = Options { slots: objects + 64, ..Options::new(base) };
        let sensor = hooks::start(rung, &options, tx, &mut tasks, stop.clone())?;
        let blind = sensor.health().blind_to;
        if !blind.is_empty() {
            // The runtime waits for whoever reads.
            stop.cancel();
            bail!("blind to {blind:?}");
        }
        Ok(Self { sensor, tasks, stop, drain })
    }

    fn tag(&mut self, path: &Path, object: u32) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(self.sensor.watch(fd.as_fd(), Slot(1 + object), WatchKind::Object, &HostPath::from(path))?)
    }

    fn stop(mut self, runtime: &tokio::runtime::Runtime) -> Result<()> {
        drop(self.sensor);
        self.stop.cancel();
        runtime.block_on(async { while self.tasks.join_next().await.is_some() {} });
        // What is pinned would stay attached.
        let pins = Pinned::all().map_err(|(dir, why)| anyhow::anyhow!("{}: {why}", dir.display()))?.remove();
        ensure!(pins.generations > 0 && pins.left.is_empty(), "unpinned: {pins:?}");
        self.drain.join().map_err(|_| anyhow::anyhow!("whoever takes the events panicked"))
    }
}

/// The acts while a thread reads what another way of watching tells.
fn beside(fd: &OwnedFd, lab: &Lab, read: fn(&OwnedFd)) -> Result<Value> {
    let reader = fd.try_clone()?;
    // It ends with the process.
    let _reader = std::thread::spawn(move || {
        loop {
            read(&reader);
        }
    });
    // A task that was there before audit was on passes none.
    let acts = std::thread::scope(|scope| scope.spawn(|| lab.acts()).join());
    acts.map_err(|_| anyhow::anyhow!("the acts panicked"))?
}

fn inotify(dir: &Path) -> Result<OwnedFd> {
    let fd = rustix::fs::inotify::init(CreateFlags::CLOEXEC)?;
    let all = WatchFlags::OPEN
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::CREATE
        | WatchFlags::DELETE;
    rustix::fs::inotify::add_watch(&fd, dir, all)?;
    Ok(fd)
}

fn read_inotify(fd: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut reader = Reader::new(fd, &mut buffer);
    // What it says is of no concern here, only that it is read.
    let _event = reader.next();
    while !reader.is_buffer_empty() {
        let _event = reader.next();
    }
}

/// A mark on the file system, with names and file handles, as tools that watch whole nodes set it.
fn fanotify(dir: &Path) -> Result<OwnedFd> {
    const MASK: u64 =
        libc::FAN_OPEN | libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE | libc::FAN_CREATE | libc::FAN_DELETE;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    let flags =
        libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_REPORT_DFID_NAME | libc::FAN_UNLIMITED_QUEUE;
    // SAFETY: a descriptor of our own, and a string that ends with NUL.
    unsafe {
        let fd = libc::fanotify_init(flags, 0);
        ensure!(fd >= 0, "fanotify_init: {}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let marked = libc::fanotify_mark(
            std::os::fd::AsRawFd::as_raw_fd(&fd),
            add,
            MASK,
            libc::AT_FDCWD,
            path.as_ptr(),
        );
        ensure!(marked == 0, "fanotify_mark: {}", std::io::Error::last_os_error());
        Ok(fd)
    }
}

fn read_plain(fd: &OwnedFd) {
    let mut buffer = [0; 16 << 10];
    let _length = rustix::io::read(fd, &mut buffer[..]);
}
