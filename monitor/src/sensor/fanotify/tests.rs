//! The sensor on this kernel. Needs root; where the kernel or the rights refuse fanotify, each test says so and ends.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use super::{FanotifyOptions, FanotifySensor, probe};
use crate::model::{HostPath, Observation, Operation, Slot, WatchKind};
use crate::sensor::alone::alone;
use crate::sensor::{Sensor as _, SensorEvent};

const OBJECT: Slot = Slot(1);
const CLOSED: Slot = Slot(2);
const TREE: Slot = Slot(3);
const PARENT: Slot = Slot(4);
/// A directory in which the test makes another when it is through: what comes before has all been read.
const LAST: Slot = Slot(99);

struct Bench {
    sensor: FanotifySensor,
    rx: mpsc::Receiver<SensorEvent>,
    dir: tempfile::TempDir,
    root: PathBuf,
    round: u32,
}

impl Bench {
    /// `on` is a directory of the file system to test.
    fn new(on: &Path, limited_queue: bool) -> Option<Self> {
        let found = probe(on);
        if !found.usable() || rustix::process::geteuid().as_raw() != 0 {
            eprintln!("fanotify cannot run here: {found:?}");
            return None;
        }
        let dir = tempfile::tempdir_in(on).unwrap();
        let root = dir.path().to_owned();
        for name in ["closed", "tree", "out", "tree/sub", "last"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        for name in ["object", "closed/a", "out/n"] {
            fs::write(root.join(name), "sealed").unwrap();
        }
        let (tx, rx) = mpsc::channel(64);
        let options = FanotifyOptions { limited_queue, ..FanotifyOptions::default() };
        let sensor = FanotifySensor::start(tx, options).unwrap();
        let mut bench = Self { sensor, rx, dir, root, round: 0 };
        bench.watch("", PARENT, WatchKind::Parent);
        bench.watch("object", OBJECT, WatchKind::Object);
        bench.watch("closed", CLOSED, WatchKind::ClosedDir);
        bench.watch("closed/a", Slot(5), WatchKind::Object);
        bench.watch("tree", TREE, WatchKind::Tree);
        bench.watch("tree/sub", TREE, WatchKind::Tree);
        bench.watch("last", LAST, WatchKind::Parent);
        Some(bench)
    }

    fn watch(&mut self, name: &str, slot: Slot, kind: WatchKind) {
        let path = self.root.join(name);
        let fd = open_path(&path);
        self.sensor.watch(fd.as_fd(), slot, kind, &HostPath::from(path.as_path())).unwrap();
    }

    /// All events up to now.
    fn events(&mut self) -> Vec<SensorEvent> {
        self.round += 1;
        let name = self.round.to_string();
        fs::create_dir(self.root.join("last").join(&name)).unwrap();
        self.until(|event| {
            matches!(event, SensorEvent::Observed(seen)
                if seen.slot == LAST && seen.name.as_deref() == Some(name.as_bytes()))
        })
    }

    /// All events before the first that is `last`.
    fn until(&mut self, last: impl Fn(&SensorEvent) -> bool) -> Vec<SensorEvent> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let all = async {
            let mut events = Vec::new();
            loop {
                let event = self.rx.recv().await.unwrap();
                if last(&event) {
                    return events;
                }
                events.push(event);
            }
        };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), all).await.expect("in time") })
    }

    fn observations(&mut self) -> Vec<Observation> {
        let each = |event| match event {
            SensorEvent::Observed(seen) => *seen,
            other => panic!("unexpected {other:?}"),
        };
        self.events().into_iter().map(each).collect()
    }

    /// Operations with slot and name, repetitions folded (the window decides how many there are).
    fn told(&mut self) -> Vec<(Operation, u32, String)> {
        let name = |seen: &Observation| {
            seen.name.as_deref().map(|name| HostPath::new(name.to_vec()).to_string()).unwrap_or_default()
        };
        let mut told: Vec<_> =
            self.observations().iter().map(|seen| (seen.operation, seen.slot.0, name(seen))).collect();
        told.dedup();
        told
    }
}

fn open_path(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn told(operation: Operation, slot: Slot, name: &str) -> (Operation, u32, String) {
    (operation, slot.0, name.to_owned())
}

/// Runs on a disk file system and on tmpfs.
fn each_fs(test: impl Fn(&mut Bench)) {
    alone(|| {
        for on in ["/var/tmp", "/dev/shm"] {
            if let Some(mut bench) = Bench::new(Path::new(on), false) {
                test(&mut bench);
            }
        }
    });
}

#[test]
fn each_act_on_an_object_is_told() {
    use Operation as O;
    each_fs(|bench| {
        let (object, other) = (bench.root.join("object"), bench.root.join("out/alias"));
        fs::write(&object, "changed").unwrap();
        assert_eq!(bench.told(), [told(O::Write, OBJECT, "object")]);

        let script = format!(": >> '{}'", object.display());
        assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
        assert_eq!(bench.told(), [told(O::Open, OBJECT, "object")]);

        fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(bench.told(), [told(O::Setattr, OBJECT, "object")]);

        fs::hard_link(&object, &other).unwrap();
        let seen = bench.observations();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].operation, seen[0].slot, seen[0].child_slot), (O::Link, OBJECT, Some(OBJECT)));
        assert!(seen[0].path_in_fs.as_ref().is_some_and(|path| path.to_string().ends_with("/out/alias")));

        fs::write(&other, "through the alias").unwrap();
        let seen = bench.observations();
        assert!(seen.iter().all(|one| one.operation == O::Write && one.slot == OBJECT));
        assert!(seen[0].path_in_fs.as_ref().is_some_and(|path| path.to_string().ends_with("/out/alias")));

        fs::remove_file(&other).unwrap();
        assert_eq!(bench.told(), [told(O::Unlink, OBJECT, "alias")]);

        fs::write(bench.root.join("out/new"), "other").unwrap();
        assert_eq!(bench.told(), []);
        fs::rename(bench.root.join("out/new"), &object).unwrap();
        let seen = bench.observations();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].operation, seen[0].slot), (O::Rename, Slot(0)));
        let to = seen[0].renamed_to.as_ref().unwrap();
        assert_eq!((to.slot, to.name.as_slice()), (PARENT, &b"object"[..]));
        assert!(to.path_in_fs.as_ref().is_some_and(|path| path.to_string().ends_with("/object")), "{to:?}");
        assert_eq!(seen[0].replaced_slot, Some(OBJECT));
    });
}

#[test]
fn removal_is_one_act() {
    each_fs(|bench| {
        fs::remove_file(bench.root.join("closed/a")).unwrap();
        let seen = bench.observations();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        assert_eq!(
            (seen[0].operation, seen[0].slot, seen[0].child_slot),
            (Operation::Unlink, CLOSED, Some(Slot(5)))
        );
    });
}

#[test]
fn reads_execs_and_neighbours_are_not_told() {
    each_fs(|bench| {
        fs::read(bench.root.join("object")).unwrap();
        fs::write(bench.root.join("out/n"), "neighbour").unwrap();
        let script = bench.root.join("out/run");
        fs::copy("/bin/true", &script).unwrap();
        assert!(Command::new(&script).status().unwrap().success());
        fs::metadata(bench.root.join("closed")).unwrap();
        assert_eq!(fs::read_dir(bench.root.join("closed")).unwrap().count(), 1);
        assert_eq!(bench.told(), []);
    });
}

#[test]
fn names_in_a_closed_directory_are_told_by_kind() {
    use Operation as O;
    each_fs(|bench| {
        let closed = bench.root.join("closed");
        fs::write(closed.join("dropped"), "x").unwrap();
        assert_eq!(bench.told(), [told(O::Create, CLOSED, "dropped"), told(O::Write, CLOSED, "dropped")]);
        std::os::unix::fs::symlink("a", closed.join("link")).unwrap();
        assert_eq!(bench.told(), [told(O::Symlink, CLOSED, "link")]);
        rustix::fs::mknodat(rustix::fs::CWD, closed.join("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        assert_eq!(bench.told(), [told(O::Mknod, CLOSED, "pipe")]);
        fs::create_dir(closed.join("dir")).unwrap();
        assert_eq!(bench.told(), [told(O::Mkdir, CLOSED, "dir")]);
        fs::remove_dir(closed.join("dir")).unwrap();
        assert_eq!(bench.told(), [told(O::Rmdir, CLOSED, "dir")]);
        let hostile = std::ffi::OsStr::from_bytes(b"\xff\n..");
        fs::write(closed.join(hostile), "").unwrap();
        assert_eq!(bench.told(), [told(O::Create, CLOSED, "\\xff\n.."), told(O::Open, CLOSED, "\\xff\n..")]);
        fs::rename(closed.join(hostile), bench.root.join("out/z")).unwrap();
        let seen = bench.observations();
        assert_eq!(seen.len(), 1);
        let to = seen[0].renamed_to.as_ref().unwrap();
        assert_eq!((to.slot, to.name.as_slice()), (Slot(0), &b"z"[..]));
    });
}

#[test]
fn a_publish_in_a_tree_is_told_whole() {
    use Operation as O;
    each_fs(|bench| {
        let sub = bench.root.join("tree/sub");
        fs::create_dir(sub.join("..2026")).unwrap();
        for number in 0..50 {
            fs::write(sub.join(format!("..2026/{number:02}")), "x").unwrap();
        }
        std::os::unix::fs::symlink("..2026", sub.join("..data_tmp")).unwrap();
        fs::rename(sub.join("..data_tmp"), sub.join("..data")).unwrap();
        let mut expected = vec![told(O::Mkdir, TREE, "..2026")];
        for number in 0..50 {
            expected.push(told(O::Create, TREE, &format!("{number:02}")));
            expected.push(told(O::Write, TREE, &format!("{number:02}")));
        }
        expected.push(told(O::Symlink, TREE, "..data_tmp"));
        expected.push(told(O::Rename, TREE, "..data_tmp"));
        let seen = bench.observations();
        let mut all: Vec<_> = seen
            .iter()
            .map(|one| {
                told(one.operation, one.slot, std::str::from_utf8(one.name.as_ref().unwrap()).unwrap())
            })
            .collect();
        all.dedup();
        assert_eq!(all, expected);
        let file = seen.iter().find(|one| one.name.as_deref() == Some(b"07")).unwrap();
        assert!(file.path_in_fs.as_ref().unwrap().to_string().ends_with("/tree/sub/..2026/07"));
        let to = seen.last().unwrap().renamed_to.as_ref().unwrap();
        assert_eq!((to.slot, to.name.as_slice()), (TREE, &b"..data"[..]));
    });
}

#[test]
fn a_tree_that_is_moved_in_is_watched_inside() {
    each_fs(|bench| {
        fs::create_dir_all(bench.root.join("out/deep/er")).unwrap();
        fs::write(bench.root.join("out/deep/er/f"), "x").unwrap();
        assert_eq!(bench.told(), []);
        fs::rename(bench.root.join("out/deep"), bench.root.join("tree/deep")).unwrap();
        assert_eq!(bench.told(), [told(Operation::Rename, Slot(0), "deep")]);
        fs::write(bench.root.join("tree/deep/er/f"), "y").unwrap();
        let seen = bench.observations();
        assert!(seen.iter().all(|one| (one.operation, one.slot) == (Operation::Write, TREE)));
        assert!(seen[0].path_in_fs.as_ref().unwrap().to_string().ends_with("/tree/deep/er/f"));
        fs::remove_dir_all(bench.root.join("tree/deep")).unwrap();
        let names: Vec<_> = bench.told().into_iter().map(|(operation, _, name)| (operation, name)).collect();
        let expected = [(Operation::Unlink, "f"), (Operation::Rmdir, "er"), (Operation::Rmdir, "deep")];
        assert_eq!(names, expected.map(|(operation, name)| (operation, name.to_owned())));
    });
}

#[test]
fn a_burst_is_told_and_actors_are_right_or_unknown() {
    each_fs(|bench| {
        let object = bench.root.join("object");
        for number in 0..2001 {
            fs::write(&object, number.to_string()).unwrap();
        }
        let seen = bench.observations();
        assert!(seen.iter().all(|one| (one.operation, one.slot) == (Operation::Write, OBJECT)));
        assert!(seen.iter().all(|one| one.actor.as_ref().unwrap().tgid == std::process::id()));

        for _ in 0..20 {
            let script = format!("echo x >> '{}'", object.display());
            let mut child = Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
            let pid = child.id();
            assert!(child.wait().unwrap().success());
            for one in bench.observations() {
                match one.actor {
                    Ok(actor) => assert_eq!(actor.tgid, pid),
                    Err(reason) => {
                        assert_eq!(reason, format!("it exited before it could be read (pid {pid})"));
                    }
                }
            }
        }
    });
}

#[test]
fn who_ran_for_a_while_is_named_though_it_has_exited() {
    each_fs(|bench| {
        let object = bench.root.join("object");
        let script = format!("read line; echo x >> '{}'", object.display());
        let mut child = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let known = loop {
            match bench.sensor.living.lookup(pid, u64::MAX) {
                Some(actor) if actor.comm == "sh" => break actor,
                _ => std::thread::yield_now(),
            }
        };
        let shared = std::sync::Arc::clone(&bench.sensor.shared);
        let held = shared.lock().unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        drop(held);
        let seen = bench.observations();
        assert!(seen.iter().all(|one| one.operation == Operation::Write && one.slot == OBJECT));
        assert!(!seen.is_empty() && seen.iter().all(|one| one.actor.as_deref() == Ok(&known)));

        // What came once its end was known is another's, if it has that number.
        let ended = |known: &super::living::Living| known.lookup(pid, u64::MAX).is_none();
        while !ended(&bench.sensor.living) {
            std::thread::yield_now();
        }
        assert_eq!(bench.sensor.living.lookup(pid, 0), Some(known));
    });
}

#[test]
fn an_overflow_is_reported() {
    alone(|| {
        // Not draining and a small receiver: the kernel's own limit of 16,384 events is soon reached.
        let Some(mut bench) = Bench::new(Path::new("/dev/shm"), true) else { return };
        for number in 0..30_000 {
            fs::write(bench.root.join(format!("tree/{number}")), "").unwrap();
        }
        let before =
            bench.until(|event| matches!(event, SensorEvent::Lost { at: "fanotify", slots: None, .. }));
        assert!(before.iter().all(|event| matches!(event, SensorEvent::Observed(_))));
        // What comes after is seen again.
        fs::write(bench.root.join("object"), "x").unwrap();
        bench.until(|event| matches!(event, SensorEvent::Observed(seen) if seen.slot == OBJECT));
    });
}

#[test]
fn reads_are_counted_on_demand() {
    each_fs(|bench| {
        assert_eq!(bench.sensor.count_reads(OBJECT, true), Some(0));
        assert!(Command::new("/bin/cat").arg(bench.root.join("object")).output().unwrap().status.success());
        assert_eq!(bench.told(), []);
        assert_eq!(bench.sensor.count_reads(OBJECT, true), Some(1));
        assert_eq!(bench.sensor.count_reads(OBJECT, false), Some(0));
        assert_eq!(bench.sensor.count_reads(OBJECT, false), None);
    });
}

#[test]
fn nothing_is_told_after_unwatch_and_nothing_is_kept_busy() {
    each_fs(|bench| {
        bench.sensor.unwatch(OBJECT);
        bench.sensor.unwatch(PARENT);
        fs::write(bench.root.join("object"), "x").unwrap();
        assert_eq!(bench.told(), []);
        assert!(bench.dir.path().exists());
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let inside =
            open.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|path| path.starts_with(&bench.root));
        assert_eq!(inside.count(), 0);
    });
}
