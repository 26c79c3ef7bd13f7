//! Installers as they were while they ran. One that is stopped takes away what it installed and ends; by the time its acts are judged its process is
//! gone, and so is what its container lived by.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::attribution::ExeHashes;
use crate::baseline::{PodWriter, Root};
use crate::inventory::containers::{self, NodeContainer};
use crate::inventory::inodes;
use crate::inventory::procs::Proc;
use crate::model::InodeKey;

/// How long one that is gone is remembered: longer than its last acts may wait to be judged.
const KEPT: Duration = Duration::from_secs(300);
/// Most containers.
const NOTES_MAX: usize = 256;

/// The first process of a container.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub(super) container: NodeContainer,
    pub(super) pid: u32,
    /// Nanoseconds since boot.
    pub(super) started: u64,
    pub(super) mount_ns: u64,
    /// The writer's executable, and its SHA-256.
    pub(super) exe: (InodeKey, String),
    gone: Option<Instant>,
}

/// The containers of installers.
#[derive(Debug, Default)]
pub(super) struct Departed {
    writers: Vec<Arc<PodWriter>>,
    notes: BTreeMap<String, Note>,
    /// When the directories of bundles last changed.
    changed: Vec<Option<SystemTime>>,
    /// Some container was not started yet.
    pending: bool,
}

impl Departed {
    /// Takes over what the accepted baselines declare.
    pub(super) fn declare(&mut self, writers: impl IntoIterator<Item = Arc<PodWriter>>) {
        self.writers = writers.into_iter().filter(|writer| writer.namespace.is_some()).collect();
        self.changed.clear();
    }

    pub(super) fn get(&self, id: &str) -> Option<&Note> {
        self.notes.get(id)
    }

    /// Looks which of their containers run, if any came or went.
    pub(super) fn look(&mut self, root: &Root, proc: &Proc, hashes: &mut ExeHashes) {
        self.notes.retain(|_, note| note.gone.is_none_or(|gone| gone.elapsed() < KEPT));
        if self.writers.is_empty() {
            return;
        }
        let changed: Vec<_> = containers::bundles().map(|dir| root.modified(&dir)).collect();
        if changed == self.changed && !self.pending {
            return;
        }
        self.changed = changed;
        self.pending = false;
        let running = containers::read(root);
        for (id, note) in &mut self.notes {
            if running.iter().all(|container| container.id != *id) {
                note.gone.get_or_insert_with(Instant::now);
            }
        }
        for container in running {
            let writer = self.writers.iter().find(|writer| writer.containers.contains(&container.name));
            let Some(writer) = writer.filter(|_| !self.notes.contains_key(&container.id)) else { continue };
            match note(root, proc, hashes, container, writer) {
                Some(note) if self.notes.len() < NOTES_MAX => {
                    self.notes.insert(note.container.id.clone(), note);
                }
                Some(_) => {}
                None => self.pending = true,
            }
        }
    }
}

fn note(
    root: &Root,
    proc: &Proc,
    hashes: &mut ExeHashes,
    container: NodeContainer,
    writer: &PodWriter,
) -> Option<Note> {
    let pid = containers::first_pid(root, &container)?;
    let started = proc.ticks_to_ns(proc.stat(pid).ok()?.start_ticks);
    let mount_ns = proc.mount_ns(pid)?;
    let path = container.rootfs.join(writer.exe.as_bytes().strip_prefix(b"/")?);
    let mut file = root.open_file(&path).ok()??;
    let meta = file.metadata().ok()?;
    let exe = (inodes::of(&file).ok()?, hashes.of_file(&mut file, &meta)?);
    // It is noted as what it is now: no other process by that pid meanwhile.
    let again = proc.ticks_to_ns(proc.stat(pid).ok()?.start_ticks);
    (again == started).then_some(Note { container, pid, started, mount_ns, exe, gone: None })
}
