//! Puts events together that are one act: a link or unlink and the change of the link count it causes, a rename and
//! the inode it replaced, and the halves of a rename on kernels that report it in two.
//!
//! Sources: `fsnotify_move`, `fsnotify_link` and `vfs_unlink` in the kernel. A change of the link count comes as
//! `FAN_ATTRIB` without directory and name, before the name event of a link or unlink and after that of a rename; a
//! change of mode or owner has both.

use std::time::{Duration, Instant};

use super::parse::{Event, Named, Pidfd};
use super::sys::FileId;
use crate::model::Time;

/// How long a rename waits for the rest of it, which need not come. All of it comes from one system call, but whoever makes it may
/// lose its processor between them; other events do not make it longer.
const REST: Duration = Duration::from_millis(120);
/// How long a change of the link count waits for the name that was made or taken away: that one always comes.
const NAME: Duration = Duration::from_secs(1);

/// A directory and an entry of it.
pub(super) type OwnedName = (FileId, Vec<u8>);

/// One act, as far as events tell.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) mask: u64,
    pub(super) pid: i32,
    pub(super) pidfd: Pidfd,
    pub(super) time: Time,
    pub(super) child: Option<FileId>,
    pub(super) dir: Option<OwnedName>,
    pub(super) from: Option<OwnedName>,
    pub(super) to: Option<OwnedName>,
    pub(super) replaced: Option<FileId>,
}

/// All bits that make an act a rename.
pub(super) const MOVES: u64 = libc::FAN_RENAME | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
const NAMES: u64 = libc::FAN_CREATE | libc::FAN_DELETE;

impl Act {
    fn new(event: Event<'_>, time: Time) -> Self {
        let own = |named: Option<Named<'_>>| named.map(|(id, name)| (FileId::new(id), name.to_vec()));
        let (mut dir, mut from, mut to) = (own(event.dir), own(event.old), own(event.new));
        if event.mask & libc::FAN_MOVED_FROM != 0 {
            from.clone_from(&dir);
        } else if event.mask & libc::FAN_MOVED_TO != 0 {
            to.clone_from(&dir);
        }
        // The kernel merges what happens to one name: created and moved on.
        if event.mask & (libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO) != 0 && event.mask & NAMES == 0 {
            dir = None;
        }
        Self {
            mask: event.mask,
            pid: event.pid,
            pidfd: event.pidfd,
            time,
            child: event.child.map(FileId::new),
            dir,
            from,
            to,
            replaced: None,
        }
    }

    /// The inode acted upon.
    pub(super) fn subject(&self) -> Option<&FileId> {
        self.child.as_ref().or_else(|| self.dir.as_ref().filter(|(_, name)| name == b".").map(|(id, _)| id))
    }

    fn is_link_count(&self) -> bool {
        self.mask & libc::FAN_ATTRIB != 0 && self.dir.is_none() && self.mask & MOVES == 0
    }
}

/// Holds one act back until it is whole.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    held: Option<Act>,
    /// Until when it may be; other events do not make it longer.
    until: Option<Instant>,
}

impl Assembler {
    /// How long the act that waits for its other half may still wait; `None` where none does.
    pub(super) fn waits(&self) -> Option<Duration> {
        self.held.as_ref()?;
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether this event may be the other half of the act that waits, though its inode and directory are not watched.
    /// Nothing else that is not watched may end the wait: the threads of one process have one pid.
    pub(super) fn is_completed_by(&self, event: &Event<'_>) -> bool {
        let Some(held) = self.held.as_ref().filter(|held| held.pid == event.pid) else { return false };
        if held.mask & MOVES != 0 {
            return (held.to.is_none() && event.mask & libc::FAN_MOVED_TO != 0)
                || (held.child.is_none() && event.mask & libc::FAN_MOVE_SELF != 0);
        }
        let same = |child: &[u8]| held.child.as_ref().is_some_and(|id| &**id == child);
        event.mask & NAMES != 0 && event.child.is_none_or(same)
    }

    /// The act that waits, whole or not: nothing more came.
    pub(super) fn flush(&mut self) -> Option<Act> {
        self.held.take()
    }

    /// Takes the next event; gives at most two acts that are whole now, in order.
    pub(super) fn take(&mut self, event: Event<'_>, time: Time) -> [Option<Act>; 2] {
        let mut act = Act::new(event, time);
        let Some(mut held) = self.held.take() else { return [None, self.hold(act)] };
        if held.pid != act.pid {
            return [Some(held), self.hold(act)];
        }
        if held.mask & MOVES != 0 {
            if held.to.is_none() && act.mask & libc::FAN_MOVED_TO != 0 {
                held.to = act.to.take();
                held.mask |= act.mask;
                self.held = Some(held);
                return [None, None];
            }
            if act.mask & libc::FAN_MOVE_SELF != 0 && held.child.is_none() {
                held.child = act.subject().cloned();
                return [Some(held), None];
            }
            if act.is_link_count() && act.child != held.child && held.replaced.is_none() {
                held.replaced = act.child.take();
                if held.child.is_some() {
                    return [Some(held), None];
                }
                self.held = Some(held);
                return [None, None];
            }
            return [Some(held), self.hold(act)];
        }
        // The link count changed: by this very act, if it is on the same inode (or does not tell which).
        if act.mask & NAMES != 0 && (act.child.is_none() || act.child == held.child) {
            act.child = held.child.take();
            let rest = held.mask & !(libc::FAN_ATTRIB | libc::FAN_DELETE_SELF | libc::FAN_ONDIR);
            act.mask |= rest | (held.mask & libc::FAN_DELETE_SELF);
            return [None, Some(act)];
        }
        [Some(held), self.hold(act)]
    }

    fn hold(&mut self, act: Act) -> Option<Act> {
        if act.mask & MOVES != 0 || act.is_link_count() {
            let wait = if act.is_link_count() { NAME } else { REST };
            self.held = Some(act);
            self.until = Some(Instant::now() + wait);
            return None;
        }
        Some(act)
    }
}

#[cfg(test)]
mod tests {
    use super::{Act, Assembler};
    use crate::model::Time;
    use crate::sensor::fanotify::parse::{Event, Pidfd};

    const A: [u8; 16] = [1; 16];
    const B: [u8; 16] = [2; 16];
    const DIR: [u8; 16] = [9; 16];

    fn event<'a>(mask: u64, child: Option<&'a [u8]>, dir: Option<(&'a [u8], &'a [u8])>) -> Event<'a> {
        Event { mask, pid: 1, pidfd: Pidfd::Gone, child, dir, old: None, new: None }
    }

    fn feed(events: Vec<Event<'_>>) -> Vec<(u64, bool, bool)> {
        let mut assembler = Assembler::default();
        let mut acts: Vec<Act> = Vec::new();
        for event in events {
            acts.extend(assembler.take(event, Time(0)).into_iter().flatten());
        }
        acts.extend(assembler.flush());
        acts.iter().map(|act| (act.mask, act.child.is_some(), act.replaced.is_some())).collect()
    }

    #[test]
    fn an_unlink_is_one_act() {
        let events = vec![
            event(libc::FAN_ATTRIB, Some(&A), None),
            event(libc::FAN_DELETE, Some(&A), Some((&DIR, b"a"))),
        ];
        assert_eq!(feed(events), [(libc::FAN_DELETE, true, false)]);
    }

    #[test]
    fn an_unlink_that_does_not_name_the_inode_gets_it() {
        let events =
            vec![event(libc::FAN_ATTRIB, Some(&A), None), event(libc::FAN_DELETE, None, Some((&DIR, b"a")))];
        assert_eq!(feed(events), [(libc::FAN_DELETE, true, false)]);
    }

    #[test]
    fn a_chmod_stays_a_chmod() {
        let events = vec![
            event(libc::FAN_ATTRIB, Some(&A), Some((&DIR, b"a"))),
            event(libc::FAN_DELETE, Some(&B), Some((&DIR, b"b"))),
        ];
        assert_eq!(feed(events), [(libc::FAN_ATTRIB, true, false), (libc::FAN_DELETE, true, false)]);
        let nameless = vec![
            event(libc::FAN_ATTRIB, Some(&A), None),
            event(libc::FAN_DELETE, Some(&B), Some((&DIR, b"b"))),
        ];
        assert_eq!(feed(nameless), [(libc::FAN_ATTRIB, true, false), (libc::FAN_DELETE, true, false)]);
    }

    #[test]
    fn a_rename_learns_what_it_replaced() {
        let rename = Event {
            old: Some((&DIR, b"a")),
            new: Some((&DIR, b"b")),
            ..event(libc::FAN_RENAME, Some(&A), None)
        };
        let events = vec![rename, event(libc::FAN_ATTRIB, Some(&B), None)];
        assert_eq!(feed(events), [(libc::FAN_RENAME, true, true)]);
    }

    #[test]
    fn a_rename_in_two_halves_is_one() {
        let events = vec![
            event(libc::FAN_MOVED_FROM, None, Some((&DIR, b"a"))),
            event(libc::FAN_MOVED_TO, None, Some((&DIR, b"b"))),
            event(libc::FAN_ATTRIB, Some(&B), None),
            event(libc::FAN_MOVE_SELF, Some(&A), None),
        ];
        assert_eq!(feed(events), [(libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO, true, true)]);
    }
}
