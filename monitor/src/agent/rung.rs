//! Which sensor runs: the best that this kernel allows, and the config.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::baseline::Root;
use crate::config::{self, RungChoice};
use crate::sensor::exec_cache::ExecCache;
use crate::sensor::fanotify::{FanotifyOptions, FanotifySensor};
use crate::sensor::hooks::{self, HookRung, Options};
use crate::sensor::inotify::InotifySensor;
use crate::sensor::none::Nothing;
use crate::sensor::{Sensor, SensorEvent};

/// The sensor that runs.
pub(super) struct Started {
    pub(super) sensor: Box<dyn Sensor>,
    /// Why no higher rung does, for each; and what else is worth saying.
    pub(super) why: Vec<String>,
    /// The programs of an agent before this one went on after it, and what they saw is read.
    pub(super) resumes: bool,
}

/// Starts the sensor: rung by rung, each tried by loading it. Never fails: where nothing runs, the sensor is
/// [`Nothing`], and says why.
pub(super) fn start(
    config: &config::Sensor,
    (state_dir, host_root): (&Path, &Path),
    events: &mpsc::Sender<SensorEvent>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Started {
    let mut options = Options::new(state_dir);
    options.slots = config.max_slots;
    options.ring_bytes = config.ring_bytes;
    let (mut why, mut notes, mut resumes) = (Vec::new(), Vec::new(), false);
    let mut on_hooks = |rung| {
        let sensor = hooks::start(rung, &options, events.clone(), tasks, stop.clone())
            .map_err(|error| error.to_string())?;
        notes.extend_from_slice(sensor.notes());
        resumes = sensor.resumes();
        Ok(boxed(sensor))
    };
    for (choice, name) in RungChoice::LADDER {
        let started = if choice > config.rung {
            Err(format!("the config's sensor.rung allows {} at most", config.rung.name()))
        } else {
            match choice {
                RungChoice::Lsm => on_hooks(HookRung::Lsm),
                RungChoice::Fentry => on_hooks(HookRung::Fentry),
                RungChoice::Fanotify => fanotify(events, state_dir),
                RungChoice::Inotify => inotify(events, host_root, state_dir),
                RungChoice::None | RungChoice::Auto => continue,
            }
        };
        match started {
            Ok(sensor) => {
                why.extend(notes);
                return Started { sensor, why, resumes };
            }
            Err(reason) => why.push(format!("{name}: {reason}")),
        }
    }
    for reason in &why {
        tracing::error!(reason, "a sensor cannot run");
    }
    Started { sensor: Box::new(Nothing { why: why.clone() }), why, resumes: false }
}

fn boxed<T: Sensor + 'static>(sensor: T) -> Box<dyn Sensor> {
    Box::new(sensor)
}

fn fanotify(events: &mpsc::Sender<SensorEvent>, state_dir: &Path) -> Result<Box<dyn Sensor>, String> {
    let canary_dir = Some(state_dir.to_path_buf());
    let mut options = FanotifyOptions { canary_dir, ..FanotifyOptions::default() };
    match ExecCache::start() {
        Ok(cache) => options.actor_source = Some(Arc::new(cache)),
        // Who is gone when the event is read stays unnamed, and the record says so.
        Err(error) => tracing::warn!(%error, "processes that are gone cannot be named"),
    }
    FanotifySensor::start(events.clone(), options).map(boxed).map_err(|error| error.to_string())
}

fn inotify(
    events: &mpsc::Sender<SensorEvent>,
    host_root: &Path,
    state_dir: &Path,
) -> Result<Box<dyn Sensor>, String> {
    let root = Root::open(host_root).map_err(|error| error.to_string())?;
    InotifySensor::start(events.clone(), root, Some(state_dir)).map(boxed).map_err(|error| error.to_string())
}
