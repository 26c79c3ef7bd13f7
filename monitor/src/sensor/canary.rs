//! Canaries of the rungs without programs: acts on a directory of the agent's own, under a slot that is nobody else's.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use super::tempdir::TempDir;
use super::{Health, Hook, Proven, Sensor};
use crate::model::{Family, HostPath, Observation, Operation, Rung, Slot, Time, WatchKind};

/// The slot; the judge's are counted from 1 and never reach it.
pub(super) const SLOT: Slot = Slot(u32::MAX);

/// What each hook of such a rung is proven by.
const PROOFS: [(Operation, Family); 6] = [
    (Operation::Write, Family::Write),
    (Operation::Open, Family::Open),
    (Operation::Setattr, Family::Attributes),
    (Operation::Create, Family::Names),
    (Operation::Unlink, Family::Names),
    (Operation::Rename, Family::Names),
];

/// When each operation was last seen on the canary; shared with the reader.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<Mutex<[Option<Time>; PROOFS.len()]>>);

impl Heard {
    /// Takes an observation if it is the canary's.
    pub(super) fn take(&self, observation: &Observation) -> bool {
        if observation.slot != SLOT {
            return false;
        }
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, (operation, _)) in heard.iter_mut().zip(PROOFS) {
            if operation == observation.operation {
                *at = Some(observation.time);
            }
        }
        true
    }

    fn now(&self) -> [Option<Time>; PROOFS.len()] {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The canary of one sensor.
#[derive(Debug)]
pub(super) struct Canary {
    /// Without one nothing is proven.
    parent: Option<PathBuf>,
    pub(super) heard: Heard,
    yard: Option<TempDir>,
    /// Begun and not ended; without a yard, it could not be made.
    under_way: bool,
    /// What the last proof showed; `None` before the first.
    shown: Option<[Option<Time>; PROOFS.len()]>,
}

impl Canary {
    /// Acts below `parent`; without one nothing is proven.
    pub(super) fn new(parent: Option<&Path>) -> Self {
        Self {
            parent: parent.map(Path::to_path_buf),
            heard: Heard::default(),
            yard: None,
            under_way: false,
            shown: None,
        }
    }

    /// Makes the directory to watch under [`SLOT`] before [`Self::act`].
    fn begin(&mut self, parent: &Path) -> std::io::Result<(OwnedFd, PathBuf)> {
        *self.heard.0.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        let yard = TempDir::new(parent)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(yard.path(), flags, Mode::empty())?;
        let path = yard.path().to_path_buf();
        self.yard = Some(yard);
        Ok((fd, path))
    }

    /// Does once what each hook stands for.
    fn act(&self) -> std::io::Result<()> {
        let Some(yard) = &self.yard else { return Ok(()) };
        let (file, renamed) = (yard.path().join("file"), yard.path().join("renamed"));
        File::create_new(&file)?.write_all(b"canary")?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        fs::rename(&file, &renamed)?;
        // Another file: an open that is closed right after a write is told as part of it.
        let other = yard.path().join("other");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &other, rustix::fs::FileType::RegularFile, mode, 0)?;
        drop(OpenOptions::new().write(true).open(&other)?);
        fs::remove_file(&renamed)
    }

    /// Whether all that was done was heard of.
    fn is_whole(&self) -> bool {
        self.heard.now().iter().all(Option::is_some)
    }

    /// Ends the proof: what was heard counts until the next.
    fn end(&mut self) {
        self.shown = Some(self.heard.now());
        self.yard = None;
        self.under_way = false;
    }

    /// The hooks by their kernel names, in the order write, close after opening for writing, attributes, create, delete,
    /// rename. Until the first proof they are taken for live if `alive`.
    fn hooks(&self, names: [&str; PROOFS.len()], alive: bool) -> Vec<Hook> {
        let shown = |at: usize| self.shown.map(|shown| shown[at]);
        let hook = |(at, (name, (_, family))): (usize, (&str, (Operation, Family)))| Hook {
            name: name.to_owned(),
            family,
            live: alive && shown(at).is_none_or(|time| time.is_some()),
            last_canary: shown(at).flatten(),
            lapse: None,
        };
        names.into_iter().zip(PROOFS).enumerate().map(hook).collect()
    }

    /// The health of a sensor with hooks of these names (see [`Self::hooks`]), that does not see `blind_to` anyhow.
    pub(super) fn health(
        &self,
        rung: Rung,
        names: [&str; PROOFS.len()],
        alive: bool,
        mut blind_to: Vec<String>,
    ) -> Health {
        blind_to.extend(self.silent(names));
        Health { rung, hooks: self.hooks(names, alive), blind_to }
    }

    /// What is dead, for `blind_to`.
    fn silent(&self, names: [&str; PROOFS.len()]) -> Vec<String> {
        let dead = |hook: Hook| {
            (!hook.live).then(|| format!("{}: {}: canary not seen", hook.family.as_str(), hook.name))
        };
        self.hooks(names, true).into_iter().filter_map(dead).collect()
    }
}

/// A sensor with such a canary.
pub(super) trait WithCanary: Sensor {
    /// It.
    fn canary(&mut self) -> &mut Canary;
}

/// [`Sensor::prove`] of a sensor with a canary.
pub(super) fn prove(sensor: &mut impl WithCanary) {
    let canary = sensor.canary();
    let Some(parent) = canary.parent.clone().filter(|_| !canary.under_way) else { return };
    // One that cannot be made proves nothing, and what the last one showed is no proof of now.
    canary.under_way = true;
    let proved = canary
        .begin(&parent)
        .map_err(|error| error.to_string())
        .and_then(|(fd, path)| {
            let path = HostPath::from(path.as_path());
            sensor.watch(fd.as_fd(), SLOT, WatchKind::Tree, &path).map_err(|error| error.to_string())
        })
        .and_then(|()| sensor.canary().act().map_err(|error| error.to_string()));
    if let Err(error) = proved {
        tracing::warn!(%error, "canary not complete");
    }
}

/// [`Sensor::proven`] of a sensor with a canary.
pub(super) fn proven(sensor: &mut impl WithCanary, last: bool) -> Option<Proven> {
    let canary = sensor.canary();
    if !canary.under_way || !(last || canary.is_whole()) {
        return None;
    }
    canary.end();
    sensor.unwatch(SLOT);
    Some(Proven::of(sensor.health()))
}
