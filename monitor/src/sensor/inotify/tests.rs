//! The sensor on this kernel, on a disk file system and on tmpfs.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use tokio::sync::mpsc;

use super::{InotifySensor, NO_ACTOR};
use crate::baseline::Root;
use crate::model::{HostPath, Observation, Slot, WatchKind};
use crate::sensor::alone::alone;
use crate::sensor::{Sensor as _, SensorEvent};

/// A directory in which the test makes another when it is through: what comes before has all been read.
const LAST: Slot = Slot(99);

struct Bench {
    sensor: InotifySensor,
    rx: mpsc::Receiver<SensorEvent>,
    root: PathBuf,
    _dir: tempfile::TempDir,
    round: u32,
}

impl Bench {
    fn new(on: &Path) -> Self {
        let dir = tempfile::tempdir_in(on).unwrap();
        let root = dir.path().to_owned();
        for name in ["closed", "out", "last"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        for name in ["object", "closed/a", "closed/b"] {
            fs::write(root.join(name), "sealed").unwrap();
        }
        let (tx, rx) = mpsc::channel(64);
        let sensor = InotifySensor::start(tx, Root::open(Path::new("/")).unwrap(), None).unwrap();
        let mut bench = Self { sensor, rx, root, _dir: dir, round: 0 };
        bench.watch("", 4, WatchKind::Parent);
        bench.watch("object", 1, WatchKind::Object);
        bench.watch("closed", 2, WatchKind::ClosedDir);
        bench.watch("closed/a", 5, WatchKind::Object);
        bench.watch("closed/b", 6, WatchKind::Object);
        bench.watch("last", LAST.0, WatchKind::Parent);
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn watch(&mut self, name: &str, slot: u32, kind: WatchKind) {
        let path = self.at(name);
        let fd = held(&path);
        self.sensor.watch(fd.as_fd(), Slot(slot), kind, &HostPath::from(path.as_path())).unwrap();
    }

    /// What was told up to now, one line each; a loss is none of it.
    fn told(&mut self) -> Vec<String> {
        self.round += 1;
        let name = self.round.to_string();
        fs::create_dir(self.at("last").join(&name)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let all = async {
            let mut lines = Vec::new();
            loop {
                match self.rx.recv().await.unwrap() {
                    SensorEvent::Observed(seen) if seen.slot == LAST => {
                        if seen.name.as_deref() == Some(name.as_bytes()) {
                            return lines;
                        }
                    }
                    SensorEvent::Observed(seen) => lines.push(line(&seen)),
                    SensorEvent::Dirty { slot, .. } => lines.push(format!("dirty {}", slot.0)),
                    other => panic!("unexpected {other:?}"),
                }
            }
        };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), all).await.expect("in time") })
    }
}

impl Bench {
    /// What was told until that line: half a rename waits a moment for the other half.
    fn told_until(&mut self, last: &str) -> Vec<String> {
        let begun = std::time::Instant::now();
        let mut told = self.told();
        while !told.iter().any(|line| line == last) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{told:?}");
            told.extend(self.told());
        }
        told
    }
}

fn line(seen: &Observation) -> String {
    assert_eq!(seen.actor.as_ref().unwrap_err(), NO_ACTOR);
    let text = |bytes: &[u8]| HostPath::new(bytes.to_vec()).to_string();
    let mut line = format!("{:?} {}", seen.operation, seen.slot.0).to_lowercase();
    if let Some(name) = &seen.name {
        line += &format!(" {}", text(name));
    }
    if let Some(child) = seen.child_slot {
        line += &format!(" child={}", child.0);
    }
    if let Some(to) = &seen.renamed_to {
        line += &format!(" to={}/{}", to.slot.0, text(&to.name));
    }
    if let Some(slot) = seen.replaced_slot {
        line += &format!(" replaced={}", slot.0);
    }
    line
}

fn held(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn each_fs(test: impl Fn(&mut Bench)) {
    alone(|| {
        for on in ["/var/tmp", "/dev/shm"] {
            test(&mut Bench::new(Path::new(on)));
        }
    });
}

#[test]
fn content_and_attributes() {
    each_fs(|bench| {
        drop(fs::OpenOptions::new().write(true).open(bench.at("object")).unwrap());
        assert_eq!(bench.told(), ["open 1 object"]);
        fs::OpenOptions::new().append(true).open(bench.at("object")).unwrap().write_all(b"x").unwrap();
        assert_eq!(bench.told(), ["write 1 object"]);
        fs::set_permissions(bench.at("object"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(bench.at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(bench.told(), ["setattr 1 object", "setattr 2 closed"]);
        // A name elsewhere shows by the link count.
        fs::hard_link(bench.at("object"), bench.at("out/alias")).unwrap();
        assert_eq!(bench.told(), ["link 1 object"]);
        fs::read(bench.at("object")).unwrap();
        fs::write(bench.at("out/n"), "n").unwrap();
        assert_eq!(bench.told(), Vec::<String>::new());
    });
}

#[test]
fn names_in_a_closed_directory() {
    each_fs(|bench| {
        fs::write(bench.at("closed/new\n"), "n").unwrap();
        assert_eq!(bench.told(), ["create 2 new\n", "write 2 new\n", "open 2 new\n"]);
        fs::create_dir(bench.at("closed/d")).unwrap();
        std::os::unix::fs::symlink("a", bench.at("closed/s")).unwrap();
        rustix::fs::mknodat(CWD, bench.at("closed/p"), rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::hard_link(bench.at("closed/a"), bench.at("closed/l")).unwrap();
        assert_eq!(bench.told(), ["mkdir 2 d", "symlink 2 s", "mknod 2 p", "link 5 a", "link 2 l child=5"]);
        fs::rename(bench.at("closed/a"), bench.at("closed/z")).unwrap();
        assert_eq!(bench.told(), ["rename 2 a child=5 to=2/z", "dirty 5"]);
        fs::rename(bench.at("closed/z"), bench.at("out/z")).unwrap();
        assert_eq!(bench.told_until("rename 2 z child=5"), ["dirty 5", "rename 2 z child=5"]);
        fs::rename(bench.at("out/z"), bench.at("closed/b")).unwrap();
        let told = bench.told();
        assert_eq!(told[0], "rename 0 child=5 to=2/b replaced=6", "{told:?}");
        fs::remove_file(bench.at("closed/b")).unwrap();
        let told = bench.told();
        assert!(told.contains(&"unlink 2 b child=5".to_owned()), "{told:?}");
        fs::remove_dir(bench.at("closed/d")).unwrap();
        assert_eq!(bench.told(), ["rmdir 2 d"]);
    });
}

#[test]
fn an_exchange_is_two_renames() {
    each_fs(|bench| {
        let (a, b) = (bench.at("closed/a"), bench.at("closed/b"));
        rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
        let told = bench.told();
        let renames: Vec<_> = told.iter().filter(|line| line.starts_with("rename")).collect();
        assert_eq!(renames.len(), 2, "{told:?}");
    });
}

#[test]
fn an_overflow_is_a_loss_of_everything() {
    let mut bench = Bench::new(Path::new("/dev/shm"));
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    // The receiver is full, so that the rest stays in the kernel's queue.
    for number in 0..limit + 2000 {
        fs::write(bench.at("closed").join(number.to_string()), "").unwrap();
    }
    let lost = loop {
        match bench.rx.blocking_recv().unwrap() {
            SensorEvent::Lost { at, slots, .. } => break (at, slots),
            SensorEvent::Observed(_) | SensorEvent::Dirty { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(lost, ("inotify", None));
}

#[test]
fn nothing_is_told_after_unwatch_and_nothing_is_kept_busy() {
    each_fs(|bench| {
        bench.sensor.unwatch(Slot(1));
        bench.sensor.unwatch(Slot(4));
        fs::write(bench.at("object"), "x").unwrap();
        assert_eq!(bench.told(), Vec::<String>::new());
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let inside =
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|path| path.starts_with(&bench.root));
        assert_eq!(inside.count(), 0);
    });
}

#[test]
fn a_canary_proves_what_it_did_and_one_that_cannot_be_made_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let yards = dir.path().join("yards");
    fs::create_dir(&yards).unwrap();
    let (tx, _rx) = mpsc::channel(64);
    let mut sensor = InotifySensor::start(tx, Root::open(Path::new("/")).unwrap(), Some(&yards)).unwrap();
    let live = |sensor: &mut InotifySensor, last: bool| {
        let health = sensor.proven(last)?.health;
        Some(health.hooks.iter().filter(|hook| hook.live).count())
    };
    let hooks = sensor.health().hooks.len();
    sensor.prove();
    let until = std::time::Instant::now() + Duration::from_secs(30);
    let shown = loop {
        if let Some(shown) = live(&mut sensor, false) {
            break shown;
        }
        assert!(std::time::Instant::now() < until, "not all was heard of");
        std::thread::yield_now();
    };
    assert_eq!(shown, hooks);

    fs::remove_dir(&yards).unwrap();
    sensor.prove();
    assert_eq!(live(&mut sensor, true), Some(0));
    assert_eq!(sensor.health().blind_to.iter().filter(|one| one.contains("canary not seen")).count(), hooks);
}
