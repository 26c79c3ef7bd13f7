//! Bursts as one observation with a count: same inode, operation and process, within one short window.
//!
//! The kernel itself merges events that wait in its queue, so that the count is how many events it told, not how
//! many acts there were.

use super::translate::Seen;
use crate::model::{Actor, Observation, Operation, Rung, Time};

/// Observations that are held at once.
const HELD_MAX: usize = 256;

/// Observations not sent yet, in order.
#[derive(Debug, Default)]
pub(super) struct Window {
    held: Vec<(i32, Observation)>,
}

impl Window {
    /// Adds what was seen; `actor` is asked only for what does not fold into something held.
    pub(super) fn add(
        &mut self,
        seen: Seen,
        pid: i32,
        time: Time,
        actor: impl FnOnce() -> Result<Box<Actor>, String>,
    ) {
        let folds = |held: &&mut (i32, Observation)| {
            held.0 == pid
                && !is_name_operation(seen.operation)
                && held.1.operation == seen.operation
                && held.1.slot == seen.slot
                && held.1.inode == seen.inode
                && held.1.name == seen.name
                && held.1.path_in_fs == seen.path_in_fs
        };
        // Not past a name operation: what happens before and after a rename stays apart.
        let since =
            self.held.iter().rposition(|(_, held)| is_name_operation(held.operation)).map_or(0, |at| at + 1);
        if let Some((_, held)) = self.held[since..].iter_mut().find(folds) {
            held.count += u64::from(!seen.closes);
            return;
        }
        let observation = Observation {
            time,
            sensor: Rung::Fanotify,
            operation: seen.operation,
            slot: seen.slot,
            child_slot: seen.child_slot,
            inode: seen.inode,
            name: seen.name,
            path_in_fs: seen.path_in_fs,
            renamed_to: seen.renamed_to,
            replaced_slot: seen.replaced_slot,
            actor: actor(),
            count: 1,
            denied: false,
            failed: false,
            unlinked: false,
            moved: None,
        };
        self.held.push((pid, observation));
    }

    /// Whether it should be emptied.
    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= HELD_MAX
    }

    /// Everything held, in order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Observation> + use<> {
        std::mem::take(&mut self.held).into_iter().map(|(_, observation)| observation)
    }
}

const fn is_name_operation(operation: Operation) -> bool {
    use Operation as O;
    matches!(
        operation,
        O::Link | O::Symlink | O::Create | O::Mkdir | O::Mknod | O::Unlink | O::Rmdir | O::Rename
    )
}
