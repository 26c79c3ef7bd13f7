//! Programs that outlive the agent: links and maps are pinned, so that a kill leaves sensing on, and the next agent reads
//! what was seen meanwhile.
//!
//! A generation is one agent's programs and maps, in a directory of its own below [`ROOT`]. Its note in the state
//! directory (root's alone) says which links and maps they are, by the numbers that the kernel gives out once per boot. A
//! generation is adopted only if it is what the note says. Any other is unpinned and named, unless an agent that runs has it
//! (it holds a lock on the directory). The next agent attaches its own programs first, watches everything, and only then
//! lets the old generation go: there is no moment at which neither stands.
//!
//! Tags are not adopted: the old maps know the old agent's slots. What each old slot stood for is in a list beside the note.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use aya::maps::MapData;
use aya::programs::links::{FdLink, PinnedLink};
use monitor_ebpf::record::{Event, RenameEvent};
use serde::{Deserialize, Serialize};

use super::chain;
use super::decode::{call_end, decode};
use super::ends::Ends;
use super::pinned::{self, ROOT, Refused, lock, remove};
use super::prog_info;
use super::ring::{Extent, Ring};
use crate::baseline::{NoFile, open_regular, remove_left_over};
use crate::model::{Clock, HostPath, Observation, Rung, Slot, Time, WatchKind};
use crate::sensor::SensorEvent;

const NOTE: &str = "kept.json";
const PLACES: &str = "kept-slots.jsonl";
/// Bytes of a note, and of a list of slots, that are read.
const NOTE_MAX: u64 = 1 << 20;
const PLACES_MAX: u64 = 256 << 20;
/// The ring, as pinned.
const EVENTS: &str = "EVENTS";
/// Events taken from an old ring in one go.
const BATCH: usize = 4096;

/// What was pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    boot_id: String,
    generation: String,
    rung: Rung,
    /// Sizes of the records in the ring: another version's cannot be read.
    records: [usize; 2],
    /// By name: number of the link, number of its program.
    links: BTreeMap<String, (u32, u32)>,
    /// By name: number of the map.
    maps: BTreeMap<String, u32>,
}

/// What a slot stood for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    slot: u32,
    /// Names in it are its own.
    directory: bool,
    path: HostPath,
}

/// Where this agent keeps its own.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    root: PathBuf,
    state_dir: PathBuf,
    boot_id: String,
}

/// A generation that an agent before this one left.
pub(super) struct Before {
    rung: Rung,
    /// `None` where another version wrote it.
    ring: Option<Ring>,
    places: HashMap<u32, Place>,
    /// Calls whose end is still in its ring.
    ends: Ends,
    /// Keep its programs attached.
    links: Vec<FdLink>,
    dir: PathBuf,
}

/// What this agent's threads tell each other while a generation before it is still there.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    /// Everything is watched: the old one may go.
    pub(super) over: AtomicBool,
    /// Since when each path is watched: what the old programs saw later was seen by the new ones too.
    since: Mutex<HashMap<HostPath, Time>>,
}

impl Takeover {
    /// From now on a path is watched.
    pub(super) fn watched(&self, path: &HostPath) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.entry(path.clone()).or_insert_with(Time::now);
    }

    /// Whether something done to `path` at that time is told by the new programs.
    fn is_told(&self, path: &HostPath, time: Time) -> bool {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        [Some(path.clone()), path.parent()]
            .into_iter()
            .flatten()
            .any(|at| since.get(&at).is_some_and(|since| *since <= time))
    }
}

/// One link of this agent's.
#[derive(Debug)]
struct Held {
    /// Keeps the program attached.
    _link: FdLink,
    /// The kernel's number of it, where it tells that.
    number: Option<u32>,
}

impl Held {
    fn new(link: FdLink) -> Self {
        let number = link.info().ok().map(|info| info.id());
        Self { _link: link, number }
    }
}

/// The generation of this agent. Dropping it leaves the pins.
#[derive(Debug)]
pub(super) struct Kept {
    /// Keep the programs attached, pinned or not.
    held: HashMap<String, Held>,
    /// Where they are pinned, if they are, and what is noted of them.
    pinned: Option<(PathBuf, Note)>,
    keeper: Keeper,
    /// Says that this agent runs.
    _lock: Option<File>,
    places: Option<File>,
    /// Why nothing is pinned, if so.
    pub(super) failure: Option<String>,
}

impl Keeper {
    /// Pins below the BPF file system, with notes in `state_dir`.
    pub(super) fn new(state_dir: &Path) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            root: PathBuf::from(ROOT),
            state_dir: state_dir.to_path_buf(),
            boot_id: boot_id.trim().to_owned(),
        }
    }

    /// The generation before, if there is one and it is what its note says; and what else lies there.
    pub(super) fn adopt(&self) -> (Option<Before>, Vec<String>) {
        let mut problems = Vec::new();
        let note = match self.note() {
            Ok(note) => note,
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        let mut before = note.as_ref().and_then(|note| match self.verified(note) {
            Ok(before) => Some(before),
            Err(problem) => {
                problems.push(format!("pins of {}: not adopted: {problem}", note.generation));
                None
            }
        });
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let dir = entry.path();
            if before.as_ref().is_some_and(|before| before.dir == dir) {
                continue;
            }
            let what = match lock(&dir) {
                Err(Refused::InUse) => "an agent that runs has pinned it".to_owned(),
                Err(Refused::NotAGeneration) => "no agent's, left alone".to_owned(),
                Err(Refused::Io(error)) => format!("left over, not unpinned: {error}"),
                // It would go on running for nobody, and the kernel takes only so many programs on one hook.
                Ok(_lock) => match remove(&dir) {
                    Ok(()) => "left over, not this agent's, unpinned".to_owned(),
                    Err(left) => {
                        format!("left over, not this agent's, not unpinned: {}", pinned::told(&left))
                    }
                },
            };
            problems.push(format!("{}: {what}", dir.display()));
        }
        if let Some(before) = &mut before {
            match self.places() {
                Ok(places) => before.places = places,
                Err(problem) => problems.push(format!("{problem}: what was seen before is not understood")),
            }
        }
        (before, problems)
    }

    fn note(&self) -> Result<Option<Note>, String> {
        let path = self.state_dir.join(NOTE);
        let file = match open_regular(&path, File::options().read(true), false) {
            Ok(file) => file,
            Err(NoFile::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(none) => return Err(format!("{}: {none}", path.display())),
        };
        let mut text = Vec::new();
        let read = file.take(NOTE_MAX).read_to_end(&mut text);
        let note = read
            .map_err(|error| error.to_string())
            .and_then(|_| parse_note(&text))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        // Pins do not outlive the kernel they are in.
        Ok((note.boot_id == self.boot_id).then_some(note))
    }

    fn verified(&self, note: &Note) -> Result<Before, String> {
        let dir = self.root.join(&note.generation);
        let mut links = Vec::new();
        for (name, wanted) in &note.links {
            let link =
                PinnedLink::from_pin(dir.join(name)).map_err(|error| format!("{name}: {}", chain(&error)))?;
            let link = FdLink::from(link);
            let info = link.info().map_err(|error| format!("{name}: {}", chain(&error)))?;
            if (info.id(), info.program_id()) != *wanted {
                return Err(format!(
                    "{name}: link {} of program {}: expected link {} of program {}",
                    info.id(),
                    info.program_id(),
                    wanted.0,
                    wanted.1
                ));
            }
            links.push(link);
        }
        let mut ring = None;
        for (name, wanted) in &note.maps {
            let map =
                MapData::from_pin(dir.join(name)).map_err(|error| format!("{name}: {}", chain(&error)))?;
            let id = map.info().map_err(|error| format!("{name}: {}", chain(&error)))?.id();
            if id != *wanted {
                return Err(format!("{name}: map {id}: expected map {wanted}"));
            }
            if name == EVENTS && note.records == records() {
                let map = aya::maps::Map::RingBuf(map);
                ring = Some(Ring::new(map).map_err(|error| format!("{name}: {}", chain(&error)))?);
            }
        }
        lock(&dir).map_err(|refused| refused.to_string())?;
        let places = HashMap::new();
        Ok(Before { rung: note.rung, ring, places, ends: Ends::new(true), links, dir })
    }

    fn places(&self) -> Result<HashMap<u32, Place>, String> {
        let path = self.state_dir.join(PLACES);
        let file = open_regular(&path, File::options().read(true), false)
            .map_err(|none| format!("{}: {none}", path.display()))?;
        let places = BufReader::new(file.take(PLACES_MAX))
            .lines()
            .map_while(Result::ok)
            // The last line may have been cut by a kill.
            .filter_map(|line| serde_json::from_str::<Place>(&line).ok())
            .map(|place| (place.slot, place))
            .collect();
        Ok(places)
    }

    /// Pins this agent's programs and its ring, beside what lies there. What cannot be pinned still runs, as long as this
    /// process does, and so do those that are `not_pinned`.
    pub(super) fn keep(
        &self,
        rung: Rung,
        links: Vec<(String, FdLink)>,
        not_pinned: Vec<(String, FdLink)>,
        ring: &MapData,
    ) -> Kept {
        let generation = ulid::Ulid::generate().to_string();
        let dir = self.root.join(&generation);
        let mut note = Note {
            boot_id: self.boot_id.clone(),
            generation,
            rung,
            records: records(),
            links: BTreeMap::new(),
            maps: BTreeMap::new(),
        };
        let mut held: HashMap<String, Held> =
            not_pinned.into_iter().map(|(name, link)| (name, Held::new(link))).collect();
        let mut failure = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .err()
            .map(|error| format!("{}: {error}", dir.display()));
        for (name, link) in links {
            if failure.is_some() {
                held.insert(name, Held::new(link));
                continue;
            }
            match pin(link, &dir, &name, &mut note) {
                Ok(link) => drop(held.insert(name, Held::new(link))),
                Err(error) => failure = Some(format!("{}: {error}", dir.join(&name).display())),
            }
        }
        if failure.is_none() {
            failure = ring
                .pin(dir.join(EVENTS))
                .map_err(|error| chain(&error))
                .and_then(|()| ring.info().map_err(|error| chain(&error)))
                .and_then(|info| {
                    note.maps.insert(EVENTS.to_owned(), info.id());
                    self.write(&note)
                })
                .err();
        }
        let places = match &failure {
            None => self.fresh_places().map_err(|error| tracing::warn!(%error, "slots are not noted")).ok(),
            Some(reason) => {
                tracing::warn!(reason, "nothing is pinned: a kill of this agent ends sensing");
                pinned::warn_of(remove(&dir));
                None
            }
        };
        let lock = if failure.is_none() { lock(&dir).ok() } else { None };
        let pinned = failure.is_none().then_some((dir, note));
        Kept { held, pinned, keeper: self.clone(), _lock: lock, places, failure }
    }

    /// Whole or not at all, so that a kill in between leaves a note that can be read.
    fn write(&self, note: &Note) -> Result<(), String> {
        let path = self.state_dir.join(NOTE);
        let next = self.state_dir.join(format!("{NOTE}.next"));
        let write = || -> std::io::Result<()> {
            remove_left_over(&next)?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&next)?;
            file.write_all(&serde_json::to_vec(note)?)?;
            file.sync_all()?;
            fs::rename(&next, &path)
        };
        write().map_err(|error| format!("{}: {error}", path.display()))
    }

    fn fresh_places(&self) -> std::io::Result<File> {
        let path = self.state_dir.join(PLACES);
        // The old list was read; a new file, because the old one may be open still.
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        File::options().append(true).create_new(true).mode(0o600).open(path)
    }
}

/// A note whose names can be joined to a path.
fn parse_note(text: &[u8]) -> Result<Note, String> {
    let note: Note = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let plain = note.generation.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && note.links.keys().chain(note.maps.keys()).all(|name| is_plain(name));
    if !plain || note.generation.is_empty() {
        return Err("a name in it is none".to_owned());
    }
    Ok(note)
}

impl Kept {
    /// Whether the kernel still has the link that keeps a program attached; true where it does not tell.
    pub(super) fn is_linked(&self, name: &str) -> bool {
        self.held.get(name).is_some_and(|held| held.number.is_none_or(prog_info::is_link))
    }

    /// A program that was detached is attached anew: its link takes the place of the one that went, among the pins too.
    ///
    /// # Errors
    /// It could not be pinned, and is not attached: the next time it will be held without a pin.
    pub(super) fn replace(&mut self, name: &str, link: FdLink) -> Result<(), String> {
        drop(self.held.remove(name));
        let mut link = Some(link);
        if let Some((dir, note)) = &mut self.pinned
            && note.links.remove(name).is_some()
        {
            let stale = fs::remove_file(dir.join(name));
            let pinned = match stale {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
                _ => link.take().map(|link| pin(link, dir, name, note)).transpose(),
            };
            let noted = self.keeper.write(note);
            link = pinned.map_err(|error| format!("{}: {error}", dir.join(name).display()))?.or(link);
            if let Err(error) = noted {
                tracing::warn!(error, "a next agent will not adopt what is pinned");
            }
        }
        self.held.extend(link.map(|link| (name.to_owned(), Held::new(link))));
        Ok(())
    }

    /// Notes what a slot stands for, so that a later agent understands what was seen on it.
    pub(super) fn note(&mut self, slot: Slot, kind: WatchKind, path: &HostPath) {
        let Some(file) = &mut self.places else { return };
        let place = Place { slot: slot.0, directory: kind != WatchKind::Object, path: path.clone() };
        let written = serde_json::to_vec(&place).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            file.write_all(&line)
        });
        if let Err(error) = written {
            tracing::warn!(%error, "slots are noted no more: a later agent will not understand all of this one's events");
            self.places = None;
        }
    }
}

impl Before {
    /// All that its ring may hold.
    pub(super) fn now(&self) -> Extent {
        self.ring.as_ref().map(Ring::now).unwrap_or_default()
    }

    /// Reads what is in the ring: events that the new programs do not tell of, and records that were not understood.
    pub(super) fn drain(&mut self, takeover: &Takeover, extent: &mut Extent) -> (Vec<SensorEvent>, u64) {
        let (mut events, mut malformed) = (Vec::new(), 0);
        let Some(mut ring) = self.ring.take() else { return (events, malformed) };
        let clock = Clock::now();
        while events.len() < BATCH
            && let Some(record) = ring.next(extent)
        {
            let observation = if let Some((pid, outcome)) = call_end(&record) {
                self.ends.ended(pid, outcome)
            } else if let Ok(decoded) = decode(&record, clock, self.rung) {
                self.ends.begins(decoded)
            } else {
                malformed += 1;
                None
            };
            drop(record);
            events.extend(observation.and_then(|observation| self.earlier(observation, takeover)));
        }
        // Of a call that has not ended when the old programs go, nobody else tells.
        let over = takeover.over.load(Ordering::Acquire);
        let left: Vec<_> = if over { self.ends.rest().collect() } else { self.ends.overdue().collect() };
        events.extend(left.into_iter().filter_map(|observation| self.earlier(observation, takeover)));
        self.ring = Some(ring);
        (events, malformed)
    }

    /// What an observation of the old agent's programs tells this one, if it concerns anything.
    fn earlier(&self, mut observation: Box<Observation>, takeover: &Takeover) -> Option<SensorEvent> {
        let name = observation.name.as_deref();
        let own = |slot: Option<Slot>| slot.and_then(|slot| self.path(slot, None));
        let (renamed, replaced) = (observation.renamed_to.as_ref(), own(observation.replaced_slot));
        let to = renamed.and_then(|to| self.path(to.slot, Some(&to.name))).or(replaced);
        let path = self.path(observation.slot, name).or_else(|| own(observation.child_slot));
        // The canary's slots stand for nothing.
        let path = path.or_else(|| to.as_ref().and(observation.path_in_fs.clone()))?;
        let told = |path: &HostPath| takeover.is_told(path, observation.time);
        if told(&path) || to.as_ref().is_some_and(told) {
            return None;
        }
        // The numbers are the old agent's.
        observation.slot = Slot(0);
        (observation.child_slot, observation.replaced_slot) = (None, None);
        Some(SensorEvent::Earlier { observation, path, to })
    }

    /// The host path of what an old slot and a name in it stood for.
    pub(super) fn path(&self, slot: Slot, name: Option<&[u8]>) -> Option<HostPath> {
        let place = self.places.get(&slot.0)?;
        match name {
            Some(name) if place.directory && place.path.name() != name => Some(place.path.join(name)),
            _ => Some(place.path.clone()),
        }
    }

    /// Lets the generation go: its pins first, then its programs.
    pub(super) fn retire(self) {
        pinned::warn_of(remove(&self.dir));
        drop(self.links);
    }
}

/// Pins a link, and notes its numbers.
fn pin(link: FdLink, dir: &Path, name: &str, note: &mut Note) -> Result<FdLink, String> {
    let info = link.info().map_err(|error| chain(&error))?;
    let numbers = (info.id(), info.program_id());
    let pinned = link.pin(dir.join(name)).map_err(|error| chain(&error))?;
    note.links.insert(name.to_owned(), numbers);
    Ok(pinned.into())
}

fn records() -> [usize; 2] {
    [size_of::<Event>(), size_of::<RenameEvent>()]
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// What the fuzzers give to the readers of notes and lists of slots.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    crate::fuzz::used(parse_note(bytes));
    for line in bytes.lines().map_while(Result::ok) {
        crate::fuzz::used(serde_json::from_str::<Place>(&line).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn fifo(path: &Path) {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    fn keeper(dir: &Path) -> Keeper {
        fs::create_dir_all(dir.join("pins")).unwrap();
        Keeper { root: dir.join("pins"), state_dir: dir.to_path_buf(), boot_id: "boot".to_owned() }
    }

    fn empty() -> Note {
        Note {
            boot_id: "boot".to_owned(),
            generation: "G".to_owned(),
            rung: Rung::Lsm,
            records: records(),
            links: BTreeMap::new(),
            maps: BTreeMap::new(),
        }
    }

    #[test]
    fn a_fifo_is_no_note_and_does_not_hold_up_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let keeper = keeper(dir.path());
        fifo(&at(NOTE));
        let (before, problems) = keeper.adopt();
        assert!(before.is_none());
        assert_eq!(problems, [format!("{}: a FIFO, expected a regular file", at(NOTE).display())]);
        // The next note takes its place, and that of what stands where it is written.
        fifo(&at("kept.json.next"));
        keeper.write(&empty()).unwrap();
        fs::create_dir(at("pins/G")).unwrap();
        fifo(&at(PLACES));
        let (before, problems) = keeper.adopt();
        assert!(before.unwrap().places.is_empty());
        let path = at(PLACES);
        assert_eq!(
            problems,
            [format!(
                "{}: a FIFO, expected a regular file: what was seen before is not understood",
                path.display()
            )]
        );
        keeper.fresh_places().unwrap();
        assert_eq!(keeper.adopt().1, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_unpinned_is_not_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        let at = |name: &str| dir.path().join("pins").join(name);
        fs::create_dir_all(at("A/file_open/mine")).unwrap();
        fs::write(at("A/inode_rename"), "").unwrap();
        fs::create_dir(at("B")).unwrap();
        fs::write(at("mine"), "").unwrap();
        let mut problems = keeper.adopt().1;
        problems.sort();
        let expected = [
            ("A", "left over, not this agent's, not unpinned: file_open: Directory not empty (os error 39)"),
            ("B", "left over, not this agent's, unpinned"),
            ("mine", "no agent's, left alone"),
        ];
        assert_eq!(problems, expected.map(|(name, what)| format!("{}: {what}", at(name).display())));
        assert!(at("A/file_open/mine").exists() && !at("A/inode_rename").exists());
        assert!(!at("B").exists() && at("mine").exists());
    }
}
