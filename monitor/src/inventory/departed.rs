//! Installers as they were while they ran. One that is stopped takes away what it installed and ends; by the time its acts are judged its process is
//! gone, and so is what its container lived by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attribution::ExeHashes;
use crate::baseline::{PodWriter, Root};
use crate::inventory::containers::{self, Bundle, NodeContainer};
use crate::inventory::inodes;
use crate::inventory::procs::Proc;
use crate::model::{HostPath, InodeKey};

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
    /// Containers that are no installer's, as long as they are there.
    others: BTreeSet<String>,
}

impl Departed {
    /// Takes over what the accepted baselines declare.
    pub(super) fn declare(&mut self, writers: impl IntoIterator<Item = Arc<PodWriter>>) {
        self.writers = writers.into_iter().filter(|writer| writer.namespace.is_some()).collect();
        self.others.clear();
    }

    pub(super) fn get(&self, id: &str) -> Option<&Note> {
        self.notes.get(id)
    }

    /// Looks which of their containers run. Reads a container's configuration until it is known what it is for.
    pub(super) fn look(&mut self, root: &Root, proc: &Proc, hashes: &mut ExeHashes) {
        if self.writers.is_empty() {
            return;
        }
        let bundles: BTreeMap<String, HostPath> = containers::list(root).into_iter().collect();
        self.others.retain(|id| bundles.contains_key(id));
        for (id, note) in &mut self.notes {
            let gone = !bundles.contains_key(id);
            note.gone = gone.then(|| note.gone.unwrap_or_else(Instant::now));
        }
        self.notes.retain(|_, note| note.gone.is_none_or(|gone| gone.elapsed() < KEPT));
        for (id, bundle) in bundles {
            if self.notes.contains_key(&id) || self.others.contains(&id) {
                continue;
            }
            match containers::at(root, &id, &bundle) {
                // The runtime has not written it yet: next time.
                Bundle::Unfinished => {}
                Bundle::Container(container) if self.writer_of(&container).is_some() => {
                    self.remember(root, proc, hashes, container);
                }
                Bundle::Container(_) | Bundle::Other => _ = self.others.insert(id),
            }
        }
    }

    /// Whose container it is, by its name.
    fn writer_of(&self, container: &NodeContainer) -> Option<&Arc<PodWriter>> {
        self.writers.iter().find(|writer| writer.containers.contains(&container.name))
    }

    /// Notes an installer's container, if it can be: its process may not run yet.
    pub(super) fn remember(
        &mut self,
        root: &Root,
        proc: &Proc,
        hashes: &mut ExeHashes,
        container: NodeContainer,
    ) {
        let Some(writer) = self.writer_of(&container) else { return };
        if self.notes.len() < NOTES_MAX
            && !self.notes.contains_key(&container.id)
            && let Some(note) = note(root, proc, hashes, container, writer)
        {
            self.notes.insert(note.container.id.clone(), note);
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
    // Another's by now, if it has ended. In a cgroup namespace of one's own the path begins somewhere; its end names the container.
    if !proc.cgroup(pid)?.contains(&container.id) {
        return None;
    }
    let started = proc.ticks_to_ns(proc.stat(pid).ok()?.start_ticks);
    let mount_ns = proc.mount_ns(pid)?;
    let path = container.rootfs.join(writer.exe.as_bytes().strip_prefix(b"/")?);
    let file = root.open_file(&path).ok()??;
    let meta = file.metadata().ok()?;
    let exe = (inodes::of(&file).ok()?, hashes.of_file(file, &meta)?);
    // It is noted as what it is now: no other process by that pid meanwhile.
    let again = proc.ticks_to_ns(proc.stat(pid).ok()?.start_ticks);
    (again == started).then_some(Note { container, pid, started, mount_ns, exe, gone: None })
}
