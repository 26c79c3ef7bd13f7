//! The rungs whose programs stand on the kernel's security hooks: `lsm` and `fentry`. What differs between them is in
//! [`rung`] and in where the tags are kept.
//!
//! Inode storage exists only where `bpf` stands in the kernel's list of security modules; [`start`] looks before it
//! creates any map of the `lsm` rung, because elsewhere such a map corrupts other modules' data.

mod canary;
mod cmdline;
pub(crate) mod decode;
mod ends;
pub(crate) mod kept;
mod load;
pub(crate) mod objects;
mod pinned;
mod probe;
mod prog_info;
mod program;
mod reader;
mod revive;
mod ring;
mod rung;
mod shared;
mod specs;
mod tags;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::Map;
use monitor_ebpf::limits;
use monitor_ebpf::record::{
    HookId, SLOT_COUNT_READS, TAG_ANCESTOR, TAG_CLOSED_DIR, TAG_OBJECT, TAG_PARENT, TAG_TREE, Tag,
};
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::canary::{Canaries, Yard};
use self::kept::{Keeper, Kept, Takeover};
pub(super) use self::load::{chain, raise_memlock};
pub use self::pinned::Pinned;
pub use self::probe::{LSM_LIST, Probe, empty_program, probe};
use self::revive::{Revivals, Standing};
use self::ring::Ring;
pub use self::rung::HookRung;
use self::shared::Shared;
use self::tags::Tags;
use super::btf::{Btf, BtfError};
use super::pins::Pins;
use super::{Health, Hook, Proven, Sensor, SensorEvent, Stands, WatchError};
use crate::inventory::inodes;
use crate::inventory::procs::Proc;
use crate::model::{Family, HostPath, InodeKey, Rung, Slot, Time, WatchKind};

/// How long the events of the canaries at the start may take. The acts are done by then; only the reader has to come by.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same once it is known that some were lost.
const PATIENCE_WITH_LOSS: Duration = Duration::from_millis(500);
/// How often it is looked whether they came.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Proofs in a row that may end without a judgement, because the ring lost records meanwhile.
const INCONCLUSIVE: u32 = 3;
/// Set in a slot's generation while it is not watched: no tag has it.
const RETIRED: u32 = 1 << 16;

/// How the rung is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Slots, slot 0 and the canary's among them.
    pub slots: u32,
    /// Size of the ring in bytes: a power of two, at least a page.
    pub ring_bytes: u32,
    /// A directory of the agent's own, on a file system with attributes; canaries act below it.
    pub canary_dir: PathBuf,
}

impl Options {
    /// The defaults, with canaries below that directory.
    #[must_use]
    pub fn new(canary_dir: &Path) -> Self {
        Self {
            slots: u32::try_from(limits::SLOTS).unwrap_or(u32::MAX),
            ring_bytes: u32::try_from(limits::RING).unwrap_or(u32::MAX),
            canary_dir: canary_dir.to_path_buf(),
        }
    }
}

/// Why the rung cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The objects are not part of this binary.
    #[error("built without eBPF objects; build with `cargo xtask build`")]
    NotBuilt,
    /// `bpf` is not in use as a security module (or the list could not be read: then it is taken for absent).
    #[error("{LSM_LIST}: {0}: expected `bpf` among the security modules")]
    NoBpfLsm(String),
    /// No type information.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The type information lacks what every record needs.
    #[error("BTF: {0}: expected in the kernel's type information")]
    Layout(String),
    /// Maps could not be created.
    #[error("loading the programs: {0}")]
    Load(String),
    /// A map could not be opened.
    #[error("map {name}: {reason}")]
    Map {
        /// Which map.
        name: &'static str,
        /// Why.
        reason: String,
    },
    /// A program that keeps the tags could not be attached.
    #[error("{hook}: {reason}")]
    Keeper {
        /// On what it was to stand.
        hook: String,
        /// Why not.
        reason: String,
    },
    /// Not one program could be attached.
    #[error("no program could be attached: {0}")]
    NothingAttached(String),
    /// The programs ran, and tags did not come to stand.
    #[error("tagging {path}: {reason}")]
    Tagging {
        /// What was to be tagged.
        path: String,
        /// What happened.
        reason: String,
    },
    /// Inotify refused.
    #[error("inotify: {0}")]
    Pins(std::io::Error),
}

/// One hook's state.
#[derive(Debug)]
struct State {
    id: HookId,
    /// Why it is not live, if it is not.
    failure: Option<String>,
    last_canary: Option<Time>,
}

/// Canaries whose events are awaited.
#[derive(Debug)]
struct Proof {
    /// The directory that was acted in, if there is one.
    yard: Option<Yard>,
    /// Hooks whose acts were refused, which proves nothing.
    unproven: Vec<HookId>,
    /// Tags that had gone with their inodes, when it began.
    released: u64,
    /// Records that had found the ring full, when it began.
    lost: u64,
}

/// The live rung. Dropping it detaches the programs.
pub struct HookSensor {
    /// Keeps the programs and maps.
    ebpf: Ebpf,
    /// What was attached at the start.
    standing: Vec<Standing>,
    revivals: Revivals,
    /// Keeps the links, here and in the kernel.
    kept: Kept,
    /// As long as a generation before this one is there.
    takeover: Option<Arc<Takeover>>,
    notes: Vec<String>,
    rung: HookRung,
    tags: Tags,
    shared: Arc<Shared>,
    pins: Arc<Mutex<Pins>>,
    canaries: Arc<Canaries>,
    canary_dir: PathBuf,
    hooks: Vec<State>,
    blind: Vec<String>,
    /// Canaries under way.
    proof: Option<Proof>,
    /// Proofs in a row that showed nothing.
    inconclusive: u32,
    /// The sentinel has its tag.
    sentinel_set: bool,
    /// The inodes of the last canary went, and their tags stayed.
    unreleased: bool,
    counting_reads: HashMap<Slot, ()>,
    /// How many directories had come under a tag when the last proof began, and were not looked below before.
    catching_up: u32,
}

impl std::fmt::Debug for HookSensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookSensor")
            .field("hooks", &self.hooks)
            .field("blind", &self.blind)
            .finish_non_exhaustive()
    }
}

/// Loads and attaches all programs, starts the thread that reads the ring (owned by `tasks`, ends with `stop`), and
/// proves each hook by a canary. Takes up to some seconds, and must be called within a tokio runtime.
///
/// # Errors
/// The rung cannot be used here; nothing is left behind.
pub fn start<T: Send + Default + 'static>(
    rung: HookRung,
    options: &Options,
    tx: Sender<SensorEvent>,
    tasks: &mut JoinSet<T>,
    stop: CancellationToken,
) -> Result<HookSensor, HookError> {
    let object = rung.object().ok_or(HookError::NotBuilt)?;
    rung.allowed()?;
    let kernel = Btf::of_kernel()?;
    let layout = kernel.layout(rung.prefix());
    let lacking = specs::missing(&layout, specs::COMMON);
    if !lacking.is_empty() {
        return Err(HookError::Layout(lacking.join(", ")));
    }

    raise_memlock();
    let keeper = Keeper::new(&options.canary_dir);
    let (before, mut notes) = keeper.adopt();
    let mut ebpf = load::load(object, &kernel, &layout, options)?;
    let mut attached = load::attach(&mut ebpf, rung, &kernel, &layout)?;
    let ends = ends::attach(&mut ebpf, |function| kernel.function_id(function).is_some());
    let told_at_end = ends.blind.is_empty();
    attached.hooks.extend(ends.states);
    attached.programs.extend(ends.programs);
    attached.standing.extend(ends.standing);
    let mut blind = ends.blind;
    let lacking = specs::missing(&layout, specs::ACTOR);
    if !lacking.is_empty() {
        blind.push(format!("{}: {} not in this kernel's BTF", Family::Actor.as_str(), lacking.join(", ")));
    }

    let slots = load::array(&mut ebpf, "SLOTS")?;
    let control = load::array(&mut ebpf, "CONTROL")?;
    let shared = Shared::new(slots, options.slots, control)
        .map_err(|error| HookError::Map { name: "SLOTS", reason: error.to_string() })?;
    let shared = Arc::new(shared);
    let tags = Tags::new(&mut ebpf, rung)?;
    let ring = load::take(&mut ebpf, "EVENTS")?;
    let kept = match &ring {
        Map::RingBuf(data) => keeper.keep(rung.rung(), attached.links, ends.links, data),
        _ => return Err(HookError::Map { name: "EVENTS", reason: "not a ring".to_owned() }),
    };
    notes.extend(kept.failure.as_ref().map(|reason| format!("nothing is pinned: {reason}")));
    let resumed = before.is_some();
    let ring = Ring::new(ring).map_err(|error| load::map_error("EVENTS", &error))?;
    let logs = match aya_log::EbpfLogger::init(&mut ebpf) {
        Ok(mut logger) => Some(Box::new(move || logger.flush()) as Box<dyn FnMut() + Send>),
        Err(error) => {
            tracing::warn!(%error, "the eBPF programs' own messages cannot be read");
            None
        }
    };
    let pins = Pins::new().map_err(HookError::Pins)?;
    let witness = pins.fd().map_err(HookError::Pins)?;
    let pins = Arc::new(Mutex::new(pins));
    let canaries = Arc::new(Canaries::new(options.slots));

    let takeover = Arc::new(Takeover::default());
    let reader = reader::Reader {
        before,
        takeover: Arc::clone(&takeover),
        rung: rung.rung(),
        ring,
        logs,
        shared: Arc::clone(&shared),
        pins: Arc::clone(&pins),
        witness,
        canaries: Arc::clone(&canaries),
        programs: attached.programs,
        ends: ends::Ends::new(told_at_end),
        host_ns: Proc::default().mount_ns(1),
        tx,
        stop,
    };
    tasks.spawn_blocking(move || {
        reader.run();
        T::default()
    });
    let mut sensor = HookSensor {
        ebpf,
        standing: attached.standing,
        revivals: Revivals::default(),
        kept,
        takeover: resumed.then_some(takeover),
        notes,
        rung,
        tags,
        shared,
        pins,
        canaries,
        canary_dir: options.canary_dir.clone(),
        hooks: attached.hooks,
        blind,
        proof: None,
        inconclusive: 0,
        sentinel_set: false,
        unreleased: false,
        counting_reads: HashMap::new(),
        catching_up: 0,
    };
    sensor.try_tagging()?;
    sensor.set_sentinel();
    sensor.first_proof();
    Ok(sensor)
}

impl HookSensor {
    /// What is worth saying about what was found pinned, and what was not pinned.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the programs of an agent before this one went on after it, and are read.
    #[must_use]
    pub const fn resumes(&self) -> bool {
        self.takeover.is_some()
    }

    /// Tags a directory of the agent's own, for a moment. Where that does not work nothing would be seen.
    fn try_tagging(&mut self) -> Result<(), HookError> {
        let slot = self.canaries.slot();
        let tagged = rustix::fs::open(&self.canary_dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| error.to_string())
            .and_then(|dir| match self.pin_and_tag(dir.as_fd(), slot, WatchKind::Parent) {
                // No watches left is told where there is something to watch.
                Err(error @ WatchError::Kernel { .. }) => Err(error.to_string()),
                Ok(()) | Err(_) => Ok(()),
            });
        self.release(slot);
        tagged.map_err(|reason| HookError::Tagging { path: self.canary_dir.display().to_string(), reason })
    }

    /// Tags the sentinel, by which it is known later that tags still stand.
    fn set_sentinel(&mut self) {
        let slot = self.canaries.sentinel();
        let set = canary::sentinel(&self.canary_dir).map_err(|error| error.to_string()).and_then(|fd| {
            self.pin_and_tag(fd.as_fd(), slot, WatchKind::Object).map_err(|error| error.to_string())
        });
        self.sentinel_set = set.is_ok();
        if let Err(error) = set {
            tracing::warn!(%error, "the sentinel cannot be tagged");
        }
    }

    /// Proves each hook before anything is watched. Where the ring is too small for all canaries at once, more than once.
    fn first_proof(&mut self) {
        for _ in 0..=INCONCLUSIVE {
            let begun = Instant::now();
            self.begin_proof();
            let over = |sensor: &Self| {
                let lossy = sensor.proof.as_ref().is_some_and(|proof| sensor.lost_since(proof));
                Instant::now() > begun + if lossy { PATIENCE_WITH_LOSS } else { PATIENCE }
            };
            while self.judge_proof(over(self)).is_none() {
                std::thread::park_timeout(LOOK_AGAIN);
            }
            if self.inconclusive == 0 {
                return;
            }
        }
    }

    /// Acts once below the canary directory for each hook; [`Self::judge_proof`] looks what came back.
    fn begin_proof(&mut self) {
        self.canaries.reset();
        let mut proof = Proof {
            yard: None,
            unproven: Vec::new(),
            released: self.shared.released(),
            lost: self.shared.losses().0,
        };
        let problem = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(what, %error, "canary not complete");
        };
        if let Err(error) = canary::touch_sentinel(&self.canary_dir) {
            problem("opening the sentinel", &error);
        }
        match Yard::new(&self.canary_dir) {
            Err(error) => problem("making a directory", &error),
            Ok(yard) => {
                match self.pin_and_tag(yard.fd.as_fd(), self.canaries.slot(), WatchKind::Tree) {
                    Err(error) => problem("tagging", &error),
                    Ok(()) => {
                        if let Err(error) = yard.act() {
                            problem("acting", &error);
                        }
                        if let Err(error) = yard.mount() {
                            problem("mounting", &error);
                            proof.unproven = vec![
                                HookId::SbMount,
                                HookId::SbKernMount,
                                HookId::MoveMount,
                                HookId::SbUmount,
                                HookId::SbPivotroot,
                                HookId::SbRemount,
                                HookId::MountSetattr,
                            ];
                        }
                        if let Err(error) = yard.run_and_reach_into_it() {
                            problem("running a program and reaching into it", &error);
                            proof.unproven.extend([
                                HookId::PtraceAccessCheck,
                                HookId::MmapCode,
                                HookId::MprotectCode,
                                HookId::BprmCheckSecurity,
                            ]);
                        }
                        match yard.act_in_32_bits() {
                            Ok(true) => {}
                            // Nothing can come by there.
                            Ok(false) => self.hooks.retain(|hook| hook.id != HookId::FileIoctlCompat),
                            Err(error) => problem("acting in 32 bits", &error),
                        }
                    }
                }
                proof.yard = Some(yard);
            }
        }
        self.proof = Some(proof);
    }

    /// Whether records found the ring full since a proof began.
    fn lost_since(&self, proof: &Proof) -> bool {
        self.shared.losses().0 > proof.lost
    }

    /// Takes note of what a proof showed; `None` while it may still show more and `last` is not set.
    fn judge_proof(&mut self, last: bool) -> Option<Proven> {
        let proof = self.proof.as_ref()?;
        let proven = proof.yard.as_ref().map(|yard| self.canaries.proven(yard.dev)).unwrap_or_default();
        let all = self
            .hooks
            .iter()
            .filter(|hook| hook.failure.is_none() && !proof.unproven.contains(&hook.id))
            .all(|hook| proven.iter().any(|(seen, _)| *seen == hook.id));
        let stands = self.canaries.sentinel_stands();
        if !(last || all && stands) {
            return None;
        }
        let proof = self.proof.take()?;
        self.unreleased = self.rung == HookRung::Fentry && self.shared.released() == proof.released;
        // Canaries may be among what found the ring full: that is told as a loss, and the next proof shows more.
        let lossy = !(all && stands) && self.lost_since(&proof);
        self.release(self.canaries.slot());
        drop(proof.yard);
        self.inconclusive = if lossy { self.inconclusive + 1 } else { 0 };
        let inconclusive = lossy && self.inconclusive <= INCONCLUSIVE;
        let last: Vec<_> = self.hooks.iter().map(|hook| (hook.id, hook.last_canary)).collect();
        for hook in &mut self.hooks {
            hook.last_canary = proven
                .iter()
                .find(|(id, _)| *id == hook.id)
                .map(|(_, time)| *time)
                .or(hook.last_canary.filter(|_| inconclusive || proof.unproven.contains(&hook.id)));
        }
        if inconclusive {
            return Some(Proven::of(self.health()));
        }
        // Where opening itself is not seen, the silence of one file tells nothing about its tag.
        let opens = proven.iter().any(|(id, _)| *id == HookId::FileOpen);
        let tags_lost = opens && !stands && self.sentinel_set;
        if tags_lost || !self.sentinel_set {
            self.set_sentinel();
        }
        let revived = self.revivals.proven(&self.standing, &self.kept, &proven);
        let last = |id| last.iter().find(|(known, _)| *known == id).and_then(|(_, time)| *time);
        let outcome = self.revivals.attach(&self.standing, &mut self.kept, &mut self.ebpf, self.rung, last);
        // One that went after its canary was seen has to be proven like any other.
        for hook in self.hooks.iter_mut().filter(|hook| outcome.unproven.contains(&hook.id)) {
            hook.last_canary = None;
        }
        Some(Proven { health: self.health(), tags_lost, revived, again: outcome.again })
    }

    /// Pins the inode and tags it, under a fresh generation if the slot was not in use.
    fn pin_and_tag(&mut self, fd: BorrowedFd<'_>, slot: Slot, kind: WatchKind) -> Result<(), WatchError> {
        let exhausted = || WatchError::Exhausted {
            what: "slots",
            limit: format!("slot {} of {}", slot.0, self.shared.len()),
        };
        let view = self.shared.slot(slot.0).filter(|_| slot.0 != 0).ok_or_else(exhausted)?;
        let old = view.generation.load(Ordering::Acquire);
        let generation = if old == 0 || old & RETIRED != 0 { (old & 0xffff) % 0xffff + 1 } else { old };
        view.generation.store(generation, Ordering::Release);
        let tag_kind = match kind {
            WatchKind::Object => TAG_OBJECT,
            WatchKind::ClosedDir => TAG_CLOSED_DIR,
            WatchKind::Parent => TAG_PARENT,
            WatchKind::Ancestor => TAG_ANCESTOR,
            WatchKind::Tree => TAG_TREE,
        };
        let generation = u16::try_from(generation).unwrap_or(u16::MAX);
        let tag = Tag { slot: slot.0, generation, kind: tag_kind, flags: 0 };
        // Pinned first: the storage of an inode that is not pinned may go at once.
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        self.tags.ask(tag);
        let pinned = pins.add(fd, slot, kind != WatchKind::Object);
        let tagged = self.tags.set(fd, tag);
        pinned?;
        if tagged.is_err() {
            pins.remove(slot);
        }
        tagged
    }

    /// Nothing stands under the slot any more: all its tags are left-overs.
    fn release(&mut self, slot: Slot) {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).remove(slot);
        if let Some(view) = self.shared.slot(slot.0) {
            let _ = view.generation.fetch_or(RETIRED, Ordering::AcqRel);
            view.flags.store(0, Ordering::Release);
        }
        self.tags.forget(slot, &self.shared);
    }
}

impl Sensor for HookSensor {
    fn rung(&self) -> Rung {
        self.rung.rung()
    }

    fn watch(
        &mut self,
        fd: BorrowedFd<'_>,
        slot: Slot,
        kind: WatchKind,
        path: &HostPath,
    ) -> Result<(), WatchError> {
        if self.canaries.owns(slot.0) {
            return Err(WatchError::Exhausted {
                what: "slots",
                limit: format!("slot {} is the canary's", slot.0),
            });
        }
        self.pin_and_tag(fd, slot, kind)?;
        if matches!(kind, WatchKind::ClosedDir | WatchKind::Tree) {
            self.shared.catch_up();
        }
        self.kept.note(slot, kind, path);
        if let Some(takeover) = &self.takeover {
            takeover.watched(path);
        }
        tracing::trace!(slot = slot.0, ?kind, %path, "watched");
        Ok(())
    }

    fn knows_as(&self, fd: BorrowedFd<'_>, stat: InodeKey) -> InodeKey {
        // It is only told apart from what lies below it by that.
        inodes::of(&fd).unwrap_or(stat)
    }

    fn stands(&self, fd: BorrowedFd<'_>, slot: Slot) -> Stands {
        self.tags.stands(fd, slot, &self.shared)
    }

    fn unwatch(&mut self, slot: Slot) {
        if self.canaries.owns(slot.0) {
            return;
        }
        self.release(slot);
        if self.counting_reads.remove(&slot).is_some() {
            self.shared.set_count_reads(u32::try_from(self.counting_reads.len()).unwrap_or(u32::MAX));
        }
    }

    fn watched(&self) -> u64 {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn count_reads(&mut self, slot: Slot, on: bool) -> Option<u64> {
        let open = self.hooks.iter().any(|hook| hook.id == HookId::FileOpen && hook.failure.is_none());
        let view = self.shared.slot(slot.0).filter(|_| open)?;
        let before = view.reads.load(Ordering::Acquire);
        if on {
            if self.counting_reads.insert(slot, ()).is_none() {
                view.reads.store(0, Ordering::Release);
            }
            let _ = view.flags.fetch_or(SLOT_COUNT_READS, Ordering::AcqRel);
        } else {
            let _ = self.counting_reads.remove(&slot);
            let _ = view.flags.fetch_and(!SLOT_COUNT_READS, Ordering::AcqRel);
        }
        let count = if on { view.reads.swap(0, Ordering::AcqRel) } else { before };
        self.shared.set_count_reads(u32::try_from(self.counting_reads.len()).unwrap_or(u32::MAX));
        Some(count)
    }

    fn relieve(&mut self) {
        if let Some(takeover) = self.takeover.take() {
            takeover.over.store(true, Ordering::Release);
        }
    }

    fn prove(&mut self) {
        // A proof's time ago there were as many: their records have been read since, and the agent looked below them.
        self.shared.caught_up(self.catching_up);
        self.catching_up = self.shared.catching_up();
        if self.proof.is_none() {
            self.begin_proof();
        }
    }

    fn proven(&mut self, last: bool) -> Option<Proven> {
        self.judge_proof(last)
    }

    fn health(&self) -> Health {
        let mut blind_to = self.blind.clone();
        if self.unreleased {
            let name = self.rung.named("inode_free");
            blind_to.push(format!("{}: {name}: canary not seen", Family::Inherit.as_str()));
        }
        let (beside, blind) = self.revivals.beside_canaries(&self.standing);
        blind_to.extend(blind);
        let mut hooks = Vec::new();
        for state in &self.hooks {
            let Some(spec) = specs::spec_of(state.id) else { continue };
            let live = state.failure.is_none() && state.last_canary.is_some();
            let name = spec.named(self.rung);
            for family in spec.families {
                hooks.push(Hook {
                    name: name.clone(),
                    family: *family,
                    live,
                    last_canary: state.last_canary,
                    lapse: self.revivals.lapse(spec.program),
                });
                if !live {
                    let failed = || state.failure.clone().or_else(|| self.revivals.reason(spec.program));
                    let reason = failed().unwrap_or_else(|| "canary not seen".to_owned());
                    blind_to.push(format!("{}: {name}: {reason}", family.as_str()));
                }
            }
        }
        hooks.extend(beside);
        Health { rung: self.rung.rung(), hooks, blind_to }
    }
}
