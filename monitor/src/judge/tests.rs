//! The judge on real files, with a sensor that sees exactly what the test says it saw.

mod acknowledge;
mod awaited;
mod away;
mod beside;
mod chains;
mod code;
mod hashes;
mod late;
mod leftovers;
mod members;
mod names;
mod parts;
mod restless;
mod storm;
mod superseded;
mod unsealed;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{AgentFacts, Command, Inputs, Judge, MeshFiles, Options, World};
use crate::baseline::{
    AcceptedBaseline, Content, Context, Form, FoundKind, Hashed, Names, PodWriter, Publish, Root, Rule, Seal,
    SealedObject, VolumeEntry, Writer, observe,
};
use crate::inventory::code::Foreign;
use crate::inventory::writers::Lawful;
use crate::model::{
    Actor, Class, Draft, HostPath, Observation, Operation, RecordBody, RenamedTo, Rung, Severity, Slot,
    Target, Time, ViolationKind, WatchKind,
};
use crate::sensor::{Health, Proven, Sensor, SensorEvent, WatchError};
use crate::status::{AgentStatus, JournalStatus, ViolationStory};

type Watched = Arc<Mutex<HashMap<HostPath, (Slot, WatchKind)>>>;

#[derive(Debug)]
struct FakeSensor(Watched);

impl Sensor for FakeSensor {
    fn rung(&self) -> Rung {
        Rung::Lsm
    }
    fn watch(
        &mut self,
        _: BorrowedFd<'_>,
        slot: Slot,
        kind: WatchKind,
        path: &HostPath,
    ) -> Result<(), WatchError> {
        self.0.lock().unwrap().insert(path.clone(), (slot, kind));
        Ok(())
    }
    fn unwatch(&mut self, slot: Slot) {
        self.0.lock().unwrap().retain(|_, (watched, _)| *watched != slot);
    }
    fn watched(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn count_reads(&mut self, _: Slot, _: bool) -> Option<u64> {
        Some(0)
    }
    fn prove(&mut self) {}
    fn proven(&mut self, _: bool) -> Option<Proven> {
        None
    }
    fn health(&self) -> Health {
        Health { rung: Rung::Lsm, hooks: Vec::new(), blind_to: Vec::new() }
    }
}

/// A mount namespace in which a process lives.
const ALIVE: u64 = 4_026_532_000;

/// A node on which the process called `kubelet` is the kubelet.
#[derive(Debug, Default)]
struct FakeWorld {
    mesh_files: Mutex<Arc<MeshFiles>>,
    /// How often the judge asked for the facts: each time it works out the posture.
    asked: AtomicU64,
}

impl World for FakeWorld {
    fn enrich(&self, _: &mut Actor) {}
    fn lawful(&self, actor: &Actor, writer: &Writer, _: &HostPath) -> Lawful {
        // One of a certain version may be called by that.
        let version = match writer {
            Writer::InPod(writer) => format!("{}-{}", writer.name, writer.sha256[0]),
            _ => String::new(),
        };
        if actor.comm == writer.name() || actor.comm == version {
            Lawful::Yes
        } else {
            Lawful::No("another process".to_owned())
        }
    }
    fn foreign_code(&self, observation: &Observation) -> Option<Foreign> {
        let path = observation.path_in_fs.clone().unwrap();
        (path.below(&HostPath::from("/lib")).is_none()).then(|| Foreign {
            sha256: (path.name() != b"tool").then(|| "5a".to_owned()),
            path,
            why: "is a test",
        })
    }
    fn declare(&self, _: &[Writer]) {}
    fn kubelet_root(&self) -> HostPath {
        HostPath::from("/")
    }
    fn target(&self, path: &HostPath) -> Option<Target> {
        path.to_string().contains("/pods/").then(Target::default)
    }
    fn weigh(
        &self,
        _: ViolationKind,
        _: Class,
        _: &HostPath,
        _: Option<&Actor>,
        _: Option<&Target>,
    ) -> (Severity, Vec<String>) {
        (Severity::High, Vec::new())
    }
    fn mesh_files(&self) -> Arc<MeshFiles> {
        Arc::clone(&self.mesh_files.lock().unwrap())
    }
    fn has_mount_namespace(&self, namespace: u64) -> bool {
        namespace == ALIVE
    }
    fn facts(&self) -> AgentFacts {
        self.asked.fetch_add(1, Ordering::SeqCst);
        AgentFacts {
            node: "n".to_owned(),
            mode: "observe".to_owned(),
            agent: AgentStatus {
                version: String::new(),
                started: Time(0),
                ready: true,
                host_root: HostPath::from_text("/"),
            },
            export: Vec::new(),
            journal: JournalStatus::default(),
            kubernetes: crate::status::KubernetesStatus::default(),
            journal_failing: false,
        }
    }
    fn coverage(&self, _: &Health) {}
    fn seq_of(&self, _: &str) -> u64 {
        0
    }
    fn complete(&self, _: &mut ViolationStory) {}
}

/// Seals what stands at a path; a volume is the kubelet's to publish.
fn sealed(root: &Root, path: &HostPath) -> SealedObject {
    let context = Context { forms: vec![Form::Cni], ..Context::default() };
    let found = observe(root, path, &context).unwrap();
    let mut writers = Vec::new();
    if path.below(&HostPath::from("/installed")).is_some() {
        writers.push("installer".to_owned());
    }
    let seal = match found.kind {
        FoundKind::File { content, .. } if path.name().ends_with(b".conflist") => {
            let (_, meaning) = content.meanings.into_iter().next().unwrap();
            Seal::File(Content::Meaning(Arc::new(meaning.unwrap())))
        }
        FoundKind::File { size, content } => {
            Seal::File(Content::Sha256(Hashed::new(content.sha256, size).unwrap()))
        }
        FoundKind::Symlink { target } => Seal::Symlink { target },
        FoundKind::Directory { names } => Seal::Directory { names: Some(Names::of(&names)) },
        FoundKind::Volume { entries, .. } => {
            writers.push(Writer::KUBELET.to_owned());
            let entries = entries.into_iter().map(|(path, entry)| VolumeEntry {
                path,
                class: Class::Sealed,
                file: match entry.kind {
                    FoundKind::File { size, content } => {
                        Some(Content::Sha256(Hashed::new(content.sha256, size).unwrap()))
                    }
                    _ => None,
                },
                source: None,
                attributes: entry.attributes,
            });
            Seal::Volume { entries: entries.collect() }
        }
        FoundKind::Special(kind) => panic!("cannot seal a {}", kind.as_str()),
    };
    let rule = Rule {
        anchor: crate::baseline::Anchor::Host,
        mounts: Vec::new(),
        class: Class::Sealed,
        publish: Publish::InPlace,
        attributes: found.attributes,
        writers,
    };
    SealedObject { path: path.clone(), rule: Arc::new(rule), seal }
}

/// A sealed tree below a temporary directory, and a judge that watches it.
struct Bench {
    dir: tempfile::TempDir,
    watched: Watched,
    events: mpsc::Sender<SensorEvent>,
    commands: mpsc::Sender<Command>,
    drafts: mpsc::Receiver<Vec<Draft>>,
    stop: CancellationToken,
    judge: tokio::task::JoinSet<()>,
    queries: mpsc::Sender<crate::status::Query>,
    world: Arc<FakeWorld>,
}

impl Bench {
    /// `make` makes the tree; `seal` names what is sealed in it.
    async fn new(make: impl FnOnce(&Path), seal: &[&str]) -> Self {
        Self::with_patience(make, seal, Duration::ZERO).await
    }

    async fn with_patience(make: impl FnOnce(&Path), seal: &[&str], await_approval: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let watched = Watched::default();
        let (events, events_rx) = mpsc::channel(1 << 14);
        let (commands, commands_rx) = mpsc::channel(4);
        let (queries, queries_rx) = mpsc::channel(4);
        let (drafts_tx, drafts) = mpsc::channel(64);
        let (live, is_live) = oneshot::channel();
        let options = Options {
            root: Root::open(dir.path()).unwrap(),
            context: Context::default(),
            workers: 2,
            slots: 1000,
            scrub: Duration::from_secs(86_400),
            io_budget: u64::MAX,
            canary: Duration::from_secs(60),
            await_approval,
            await_installer: Duration::from_secs(2),
        };
        let sensor = Box::new(FakeSensor(Arc::clone(&watched)));
        let world = Arc::new(FakeWorld::default());
        let judge = Judge::new(options, Arc::clone(&world) as _, sensor, drafts_tx, live);
        let stop = CancellationToken::new();
        let inputs = Inputs { events: events_rx, commands: commands_rx, queries: queries_rx };
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(judge.run(inputs, stop.clone()));
        let bench = Self { dir, watched, events, commands, drafts, stop, judge: tasks, queries, world };
        bench.accept(seal, 1).await;
        is_live.await.unwrap();
        bench
    }

    /// Accepts a baseline of what stands there now.
    async fn accept(&self, seal: &[&str], revision: u64) {
        self.accept_after(seal, revision, || {}).await;
    }

    /// As [`Bench::accept`]; something is done before the judge hears of it.
    async fn accept_after(&self, seal: &[&str], revision: u64, first: impl FnOnce()) {
        let root = Root::open(self.dir.path()).unwrap();
        let paths: Vec<HostPath> = seal.iter().map(|path| HostPath::from(*path)).collect();
        let mut objects: Vec<SealedObject> = paths.iter().map(|path| sealed(&root, path)).collect();
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        first();
        self.offer(objects, revision, None).await;
    }

    /// What is sealed from now on, and what was before.
    async fn offer(&self, objects: Vec<SealedObject>, revision: u64, before: Option<Vec<SealedObject>>) {
        let baseline = |objects: Vec<SealedObject>, revision, before| AcceptedBaseline {
            name: "test".to_owned(),
            revision,
            sha256: String::new(),
            signers: Vec::new(),
            not_before: None,
            not_after: None,
            transition: Duration::from_secs(1800),
            source_commit: None,
            accepted_at: Time::now(),
            objects: objects.into(),
            writers: Arc::new([Writer::Kubelet, installer(revision)]),
            before,
        };
        let before = before.map(|objects| Arc::new(baseline(objects, revision - 1, None)));
        let baseline = baseline(objects, revision, before);
        self.commands.send(Command::Baselines(vec![Arc::new(baseline)], Vec::new())).await.unwrap();
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    fn slot(&self, path: &str) -> Slot {
        self.watched.lock().unwrap().get(&HostPath::from(path)).map_or(Slot(0), |(slot, _)| *slot)
    }

    /// That `comm` did something; `on` is the watched path whose slot saw it.
    fn observed(&self, comm: &str, operation: Operation, on: &str) -> Observation {
        Observation {
            time: Time::now(),
            sensor: Rung::Lsm,
            operation,
            slot: self.slot(on),
            child_slot: None,
            inode: None,
            name: None,
            path_in_fs: None,
            renamed_to: None,
            replaced_slot: None,
            actor: Ok(Box::new(actor(comm))),
            count: 1,
            denied: false,
            failed: false,
            unlinked: false,
            moved: None,
        }
    }

    /// Says that `comm` did something.
    async fn see(&self, comm: &str, operation: Operation, on: &str, more: impl FnOnce(&mut Observation)) {
        let mut observation = self.observed(comm, operation, on);
        more(&mut observation);
        self.events.send(SensorEvent::Observed(Box::new(observation))).await.unwrap();
    }

    /// Stops the judge and tells its records in short: kind, violation, path, operation, actor.
    async fn verdicts(mut self) -> Vec<String> {
        self.stop.cancel();
        while self.judge.join_next().await.is_some() {}
        let mut told = Vec::new();
        while let Ok(batch) = self.drafts.try_recv() {
            told.extend(batch.iter().filter_map(|draft| short(&draft.body)));
        }
        told
    }
}

/// A process of the host's own pods, known by its name here, and by its version.
fn installer(version: u64) -> Writer {
    Writer::InPod(Arc::new(PodWriter {
        name: "installer".to_owned(),
        exe: HostPath::from("/installer"),
        sha256: [u8::try_from(version).unwrap(); 32],
        containers: Vec::new(),
        namespace: Some("mesh".to_owned()),
    }))
}

fn actor(comm: &str) -> Actor {
    Actor {
        pid: 7,
        tgid: 7,
        ppid: 1,
        uid: 0,
        comm: comm.to_owned(),
        exe: None,
        exe_sha256: None,
        is_io_worker: false,
        exe_inode: None,
        cmdline: String::new(),
        start_time: Some(Time(1_700_000_000_000_000_000)),
        start_boottime: 1,
        cgroup: None,
        cgroup_id: 0,
        mount_ns: None,
        container: None,
        pod: None,
    }
}

fn short(body: &RecordBody) -> Option<String> {
    let who = |actor: &Option<Actor>| actor.as_ref().map_or("?".to_owned(), |actor| actor.comm.clone());
    Some(match body {
        RecordBody::ViolationOpened(v) => {
            format!("opened {:?} {} {:?} {}", v.violation, v.object.path, v.operation, who(&v.actor))
        }
        RecordBody::ViolationUpdated(v) => {
            format!(
                "updated {:?} {} {:?} {}",
                v.now.violation,
                v.now.object.path,
                v.now.operation,
                who(&v.now.actor)
            )
        }
        RecordBody::ViolationResolved(v) => format!("{:?} {:?} {}", v.resolution, v.violation, v.object.path),
        RecordBody::Attempt(v) => format!("attempt {} {:?} {}", v.object.path, v.operation, who(&v.actor)),
        RecordBody::ChangeAccepted(v) => {
            format!("accepted {} {:?} {}", v.object.path, v.operation, who(&v.actor))
        }
        RecordBody::Gap(v) => format!("gap {} reconciled={}", v.at, v.reconciled),
        _ => return None,
    })
}

/// `/d` with the file `a` in it, both sealed; `/x/lone`, sealed in an open directory.
async fn bench() -> Bench {
    let make = |root: &Path| {
        std::fs::create_dir(root.join("d")).unwrap();
        std::fs::write(root.join("d/a"), "one").unwrap();
        std::fs::create_dir(root.join("x")).unwrap();
        std::fs::write(root.join("x/lone"), "one").unwrap();
    };
    Bench::new(make, &["/d", "/d/a", "/x/lone"]).await
}

#[tokio::test]
async fn a_write_is_content_and_names_the_writer() {
    let bench = bench().await;
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    bench.see("sed", Operation::Open, "/d/a", |_| {}).await;
    bench.see("sed", Operation::Truncate, "/d/a", |_| {}).await;
    bench.see("sed", Operation::Write, "/d/a", |_| {}).await;
    assert_eq!(bench.verdicts().await, ["opened Content /d/a Write sed"]);
}

#[tokio::test]
async fn an_open_that_writes_nothing_is_an_attempt() {
    let bench = bench().await;
    bench.see("vi", Operation::Open, "/x/lone", |_| {}).await;
    assert_eq!(bench.verdicts().await, ["attempt /x/lone Open vi"]);
}

#[tokio::test]
async fn bytes_put_back_are_reverted() {
    let bench = bench().await;
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    std::fs::write(bench.path("/d/a"), "one").unwrap();
    bench.see("sh", Operation::Write, "/d/a", |o| o.count = 2).await;
    assert_eq!(bench.verdicts().await, ["opened Reverted /d/a Write sh"]);
}

#[tokio::test]
async fn two_actors_two_aspects_two_violations() {
    let bench = bench().await;
    let before = Time::now();
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    std::fs::set_permissions(bench.path("/d/a"), std::fs::Permissions::from_mode(0o600)).unwrap();
    bench.see("sed", Operation::Write, "/d/a", |seen| seen.time = before).await;
    bench.see("chmod", Operation::Setattr, "/d/a", |seen| seen.time = before).await;
    let expected = ["opened Content /d/a Write sed", "opened Attributes /d/a Setattr chmod"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn a_rename_over_is_replaced_and_its_source_is_not_told_twice() {
    let bench = bench().await;
    std::fs::write(bench.path("/d/tmp"), "two").unwrap();
    std::fs::rename(bench.path("/d/tmp"), bench.path("/d/a")).unwrap();
    let own = bench.slot("/d/a");
    bench.see("sed", Operation::Create, "/d", |o| o.name = Some(b"tmp".to_vec())).await;
    bench
        .see("sed", Operation::Write, "/d", |o| {
            o.name = Some(b"tmp".to_vec());
            o.inode = Some(crate::model::InodeKey { dev: 0, ino: 1 });
        })
        .await;
    let dir = bench.slot("/d");
    bench
        .see("sed", Operation::Rename, "/d", |o| {
            o.name = Some(b"tmp".to_vec());
            o.renamed_to = Some(RenamedTo::new(dir, b"a".to_vec()));
            o.replaced_slot = Some(own);
        })
        .await;
    assert_eq!(bench.verdicts().await, ["opened Replaced /d/a Rename sed"]);
}

#[tokio::test]
async fn what_is_unmounted_elsewhere_explains_no_rename() {
    let bench = bench().await;
    std::fs::write(bench.path("/new"), "two").unwrap();
    std::fs::rename(bench.path("/new"), bench.path("/x/lone")).unwrap();
    let own = bench.slot("/x/lone");
    bench.see("runc", Operation::Umount, "/x/lone", |_| {}).await;
    bench
        .see("mv", Operation::Rename, "/x", |o| {
            o.renamed_to = Some(RenamedTo::new(o.slot, b"lone".to_vec()));
            o.replaced_slot = Some(own);
        })
        .await;
    assert_eq!(bench.verdicts().await, ["opened Replaced /x/lone Rename mv"]);
}

#[tokio::test]
async fn a_sealed_file_moved_within_its_directory_is_renamed_once() {
    let bench = bench().await;
    std::fs::rename(bench.path("/d/a"), bench.path("/d/b")).unwrap();
    let (dir, own) = (bench.slot("/d"), bench.slot("/d/a"));
    bench
        .see("mv", Operation::Rename, "/d", |o| {
            o.name = Some(b"a".to_vec());
            o.child_slot = Some(own);
            o.renamed_to = Some(RenamedTo::new(dir, b"b".to_vec()));
        })
        .await;
    assert_eq!(bench.verdicts().await, ["opened Renamed /d/a Rename mv"]);
}

#[tokio::test]
async fn what_was_told_is_not_told_again_with_lesser_words() {
    let mut bench = bench().await;
    std::fs::write(bench.path("/new"), "two").unwrap();
    std::fs::set_permissions(bench.path("/new"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    std::fs::rename(bench.path("/new"), bench.path("/x/lone")).unwrap();
    let own = bench.slot("/x/lone");
    bench
        .see("mv", Operation::Rename, "/x", |o| {
            o.renamed_to = Some(RenamedTo::new(o.slot, b"lone".to_vec()));
            o.replaced_slot = Some(own);
        })
        .await;
    std::fs::hard_link(bench.path("/d/a"), bench.path("/alias")).unwrap();
    bench.see("ln", Operation::Link, "/d/a", |o| o.path_in_fs = Some(HostPath::from("/alias"))).await;
    let mut told = Vec::new();
    let finding = |body: &RecordBody| short(body).filter(|line| line.starts_with("opened"));
    while told.len() < 2 {
        told.extend(bench.drafts.recv().await.unwrap().iter().filter_map(|draft| finding(&draft.body)));
    }
    told.sort();
    assert_eq!(told, ["opened Linked /d/a Link ln", "opened Replaced /x/lone Rename mv"]);
    let (at, reason) = ("ring", "full".to_owned());
    let lost = SensorEvent::Lost { at, lost: 3, reason, slots: None, time: Time::now() };
    bench.events.send(lost).await.unwrap();
    assert_eq!(bench.verdicts().await, ["gap ring reconciled=false", "gap ring reconciled=true"]);
}

#[tokio::test]
async fn a_dropped_file_is_unexpected_even_if_it_is_gone_again() {
    let bench = bench().await;
    std::fs::write(bench.path("/d/00-evil"), "x").unwrap();
    bench.see("cp", Operation::Create, "/d", |o| o.name = Some(b"00-evil".to_vec())).await;
    bench.see("cp", Operation::Create, "/d", |o| o.name = Some(b"passing".to_vec())).await;
    bench.see("rm", Operation::Unlink, "/d", |o| o.name = Some(b"passing".to_vec())).await;
    let expected = ["opened Unexpected /d/00-evil Create cp", "opened Unexpected /d/passing Create cp"];
    assert_eq!(bench.verdicts().await, expected);
}

#[tokio::test]
async fn an_unlinked_lone_file_is_removed_and_neighbours_are_not_ours() {
    let bench = bench().await;
    std::fs::remove_file(bench.path("/x/lone")).unwrap();
    std::fs::write(bench.path("/x/neighbour"), "n").unwrap();
    bench.see("touch", Operation::Create, "/x", |o| o.name = Some(b"neighbour".to_vec())).await;
    let own = bench.slot("/x/lone");
    bench
        .see("rm", Operation::Unlink, "/x", |o| {
            o.name = Some(b"lone".to_vec());
            o.child_slot = Some(own);
        })
        .await;
    assert_eq!(bench.verdicts().await, ["opened Removed /x/lone Unlink rm"]);
}

#[tokio::test]
async fn a_hard_link_is_linked() {
    let bench = bench().await;
    std::fs::hard_link(bench.path("/x/lone"), bench.path("/alias")).unwrap();
    bench.see("ln", Operation::Link, "/x/lone", |o| o.path_in_fs = Some(HostPath::from("/alias"))).await;
    assert_eq!(bench.verdicts().await, ["opened Linked /x/lone Link ln"]);
}

#[tokio::test]
async fn lost_events_are_looked_for_and_then_reconciled() {
    let bench = bench().await;
    std::fs::write(bench.path("/d/a"), "two").unwrap();
    let slots = Some(vec![bench.slot("/d/a")]);
    let lost = SensorEvent::Lost { at: "ring", lost: 3, reason: "full".to_owned(), slots, time: Time::now() };
    bench.events.send(lost).await.unwrap();
    let expected = ["gap ring reconciled=false", "opened Content /d/a Scrub ?", "gap ring reconciled=true"];
    let told = bench.verdicts().await;
    assert_eq!(told, expected);
}

/// A volume as the kubelet lays it out, at `/pods/v`.
fn volume(root: &Path) {
    let volume = root.join("pods/v");
    std::fs::create_dir_all(volume.join("..2026_01")).unwrap();
    std::fs::write(volume.join("..2026_01/root.pem"), "one").unwrap();
    std::os::unix::fs::symlink("..2026_01", volume.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/root.pem", volume.join("root.pem")).unwrap();
}

/// What a publisher does, and what a sensor sees of it.
async fn publish(bench: &Bench, comm: &str, stamp: &str, content: &str) {
    publish_seen(bench, comm, stamp, content, |_| ()).await;
}

/// As [`publish`]; the sensor tells it with these changes.
async fn publish_seen(bench: &Bench, comm: &str, stamp: &str, content: &str, seen: fn(&mut Observation)) {
    let at = bench.path("/pods/v");
    std::fs::create_dir(at.join(stamp)).unwrap();
    std::fs::write(at.join(stamp).join("root.pem"), content).unwrap();
    std::os::unix::fs::symlink(stamp, at.join("..data_tmp")).unwrap();
    let old = std::fs::read_link(at.join("..data")).unwrap();
    std::fs::rename(at.join("..data_tmp"), at.join("..data")).unwrap();
    std::fs::remove_dir_all(at.join(old)).unwrap();
    let inherited = |name: &str| {
        let name = name.as_bytes().to_vec();
        move |o: &mut Observation| {
            o.name = Some(name);
            o.inode = Some(crate::model::InodeKey { dev: 0, ino: 1 });
            seen(o);
        }
    };
    bench.see(comm, Operation::Mkdir, "/pods/v", inherited(stamp)).await;
    bench.see(comm, Operation::Create, "/pods/v", inherited("root.pem")).await;
    bench.see(comm, Operation::Write, "/pods/v", inherited("root.pem")).await;
    bench.see(comm, Operation::Symlink, "/pods/v", inherited("..data_tmp")).await;
    let slot = bench.slot("/pods/v");
    bench
        .see(comm, Operation::Rename, "/pods/v", |o| {
            o.name = Some(b"..data_tmp".to_vec());
            o.renamed_to = Some(RenamedTo::new(slot, b"..data".to_vec()));
            seen(o);
        })
        .await;
}

#[tokio::test]
async fn a_lawful_publish_of_the_same_bytes_is_silent() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    publish(&bench, "kubelet", "..2026_02", "one").await;
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn bytes_nobody_approved_are_content_even_from_the_kubelet() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    publish(&bench, "kubelet", "..2026_02", "evil").await;
    assert_eq!(bench.verdicts().await, ["opened Content /pods/v/root.pem Rename kubelet"]);
}

#[tokio::test]
async fn a_publish_by_anyone_else_is_structure_even_with_the_right_bytes() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    publish(&bench, "evil", "..2026_02", "one").await;
    assert_eq!(bench.verdicts().await, ["opened Structure /pods/v/..data Rename evil"]);
}

fn nameless(observation: &mut Observation) {
    observation.sensor = Rung::Inotify;
    observation.actor = Err("inotify does not tell who acted".to_owned());
}

#[tokio::test]
async fn where_nobody_is_named_a_publish_of_what_is_sealed_passes_for_the_kubelets() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    publish_seen(&bench, "?", "..2026_02", "one", nameless).await;
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
    let bench = Bench::new(volume, &["/pods/v"]).await;
    publish_seen(&bench, "?", "..2026_02", "evil", nameless).await;
    assert_eq!(bench.verdicts().await, ["opened Content /pods/v/root.pem Rename ?"]);
}

#[tokio::test]
async fn where_nobody_is_named_another_rename_in_a_volume_is_structure() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    let slot = bench.slot("/pods/v");
    let volume = bench.path("/pods/v");
    for (from, to) in [("root.pem", "elsewhere"), ("elsewhere", "root.pem")] {
        std::fs::rename(volume.join(from), volume.join(to)).unwrap();
        let moved = |o: &mut Observation| {
            nameless(o);
            o.name = Some(from.into());
            o.renamed_to = Some(RenamedTo::new(slot, to.into()));
        };
        bench.see("?", Operation::Rename, "/pods/v", moved).await;
    }
    assert_eq!(bench.verdicts().await, ["opened Structure /pods/v/elsewhere Rename ?"]);
}

#[tokio::test]
async fn a_volume_file_written_in_place_is_content_by_its_visible_path() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    std::fs::write(bench.path("/pods/v/..2026_01/root.pem"), "evil").unwrap();
    let named = |o: &mut Observation| o.name = Some(b"root.pem".to_vec());
    bench
        .see("dd", Operation::Write, "/pods/v/..2026_01/root.pem", |o| {
            named(o);
            o.inode = Some(crate::model::InodeKey { dev: 0, ino: 1 });
        })
        .await;
    assert_eq!(bench.verdicts().await, ["opened Content /pods/v/root.pem Write dd"]);
}

#[tokio::test]
async fn a_volume_the_kubelet_takes_away_is_no_violation() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    std::fs::remove_dir_all(bench.path("/pods/v")).unwrap();
    bench.see("kubelet", Operation::Rmdir, "/pods", |o| o.name = Some(b"v".to_vec())).await;
    assert_eq!(bench.verdicts().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_new_revision_before_its_publish_is_a_transition_and_then_a_lawful_change() {
    let bench = Bench::new(volume, &["/pods/v"]).await;
    let file = bench.path("/pods/v/..2026_01/root.pem");
    // The baseline of what will be published, made elsewhere.
    std::fs::write(&file, "two").unwrap();
    bench.accept(&["/pods/v"], 2).await;
    std::fs::write(&file, "one").unwrap();
    publish(&bench, "kubelet", "..2026_02", "two").await;
    assert_eq!(bench.verdicts().await, ["accepted /pods/v Rename kubelet"]);
}

/// `/a/b/f`, sealed alone.
async fn below() -> Bench {
    let make = |root: &Path| {
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/f"), "one").unwrap();
    };
    Bench::new(make, &["/a/b/f"]).await
}

#[tokio::test]
async fn a_directory_above_that_is_moved_takes_its_objects_with_it() {
    let bench = below().await;
    std::fs::rename(bench.path("/a"), bench.path("/z")).unwrap();
    let above = bench.slot("/a");
    bench.see("mv", Operation::Rename, "/a", |o| o.child_slot = Some(above)).await;
    assert_eq!(bench.verdicts().await, ["opened Renamed /a/b/f Rename mv"]);
}

#[tokio::test]
async fn what_is_mounted_over_a_directory_above_lies_over_its_objects() {
    let bench = below().await;
    bench.see("mount", Operation::Mount, "/a", |_| {}).await;
    assert_eq!(bench.verdicts().await, ["opened MountedOver /a/b/f Mount mount"]);
}

#[tokio::test]
async fn a_mount_that_fails_is_an_attempt() {
    let bench = below().await;
    bench.see("mount", Operation::Mount, "/a/b/f", |o| o.failed = true).await;
    assert_eq!(bench.verdicts().await, ["attempt /a/b/f Mount mount"]);
}

#[tokio::test]
async fn options_of_a_mount_are_told_of_the_mount() {
    let bench = below().await;
    bench.see("mount", Operation::Remount, "/a", |_| {}).await;
    assert_eq!(bench.verdicts().await, ["attempt /a Remount mount"]);
}

#[tokio::test]
async fn an_ioctl_that_moved_the_inode_is_attributes() {
    let bench = bench().await;
    std::fs::set_permissions(bench.path("/d/a"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(bench.path("/d/a"), std::fs::Permissions::from_mode(0o644)).unwrap();
    bench.see("chattr", Operation::Ioctl, "/d/a", |_| {}).await;
    assert_eq!(bench.verdicts().await, ["opened Attributes /d/a Ioctl chattr"]);
}
