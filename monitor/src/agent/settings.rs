//! The settings of the run before: a restart that relaxes them is told as a violation of the agent itself.

use std::path::{Path, PathBuf};

use crate::baseline::{read_bounded, write_atomic};
use crate::config::settings::{Relaxation, Settings};
use crate::model::{Draft, GapBody, RecordBody, Severity};

/// Below the state directory.
const FILE: &str = "settings.json";
/// Longest file that is read.
const MAX: u64 = 1 << 20;

/// What the next run is held to.
#[derive(Debug)]
pub(super) struct Held {
    file: PathBuf,
    settings: Settings,
    /// The file says so.
    written: bool,
}

/// What a start has to tell of its settings.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) relaxations: Vec<Relaxation>,
    pub(super) gap: Option<Draft>,
}

impl Held {
    /// Compares with the run before. `first`: there was none. What the next run is held to is not written yet: what is told of must be on
    /// disk before.
    pub(super) fn open(state_dir: &Path, now: Settings, first: bool) -> (Self, Told) {
        let file = state_dir.join(FILE);
        let before = match std::fs::exists(&file) {
            Ok(false) if first => Ok(None),
            Ok(false) => Err(format!("{}: it is gone", file.display())),
            _ => read(&file).map(Some),
        };
        let (before, gap) = match before {
            Ok(before) => (before, None),
            Err(why) => {
                let reason = format!("which settings the run before had is not known: {why}");
                let body = GapBody { at: "settings".to_owned(), reason, ..GapBody::default() };
                (None, Some(Draft::now(Severity::High, RecordBody::Gap(body))))
            }
        };
        let relaxations = before.as_ref().map(|before| before.relaxed_by(&now)).unwrap_or_default();
        let settings = now.after(before.as_ref());
        let written = before.as_ref() == Some(&settings);
        (Self { file, settings, written }, Told { relaxations, gap })
    }

    /// The next run is held to these, if they are others than before.
    pub(super) fn take_up(&mut self, now: Settings) {
        let settings = now.after(Some(&self.settings));
        if settings != self.settings {
            self.settings = settings;
            // Before the first verification is done, what was told of may not be on disk.
            if std::mem::take(&mut self.written) {
                self.write();
            }
        }
    }

    /// Writes what the next run is held to; once more with the next call if that fails.
    pub(super) fn write(&mut self) {
        if self.written {
            return;
        }
        let written = serde_json::to_vec(&self.settings)
            .map_err(|e| e.to_string())
            .and_then(|bytes| write_atomic(&self.file, &bytes, 0o600).map_err(|e| e.to_string()));
        match written {
            Ok(()) => self.written = true,
            Err(error) => tracing::warn!(error, "the next start does not know this one's settings"),
        }
    }
}

fn read(file: &Path) -> Result<Settings, String> {
    let bytes = read_bounded(file, MAX).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", file.display()))
}
