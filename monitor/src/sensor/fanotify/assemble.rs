//! Puts events together that are one act: a link or unlink and the change of the link count it causes, a rename and
//! the inode it replaced, and the halves of a rename on kernels that report it in two.
//!
//! Sources: `fsnotify_move`, `fsnotify_link` and `vfs_unlink` in the kernel. A change of the link count comes as
//! `FAN_ATTRIB` without directory and name, before the name event of a link or unlink and after that of a rename; a
//! change of mode or owner has both.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::parse::{Event, Named, Pidfd};
use super::sys::FileId;
use crate::model::{Actor, Time};

/// How long a rename waits for the rest of it, which need not come. All of it comes from one system call, but whoever makes it may
/// lose its processor between them; other events do not make it longer.
const REST: Duration = Duration::from_millis(120);
/// How long a change of the link count waits for the name that was made or taken away: that one always comes.
pub(super) const NAME: Duration = Duration::from_secs(1);

/// Acts that are held back at once; the first is given as it is, if there are more.
const HELD_MAX: usize = 256;

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
    /// Who did it, where that was asked while the act waited: by the time it is whole, the process may be gone.
    pub(super) actor: Option<Who>,
}

/// The process of an act, or why it is not known.
pub(super) type Who = Result<Box<Actor>, String>;

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
            actor: None,
        }
    }

    /// The inode acted upon.
    pub(super) fn subject(&self) -> Option<&FileId> {
        self.child.as_ref().or_else(|| self.dir.as_ref().filter(|(_, name)| name == b".").map(|(id, _)| id))
    }

    fn is_link_count(&self) -> bool {
        self.mask & libc::FAN_ATTRIB != 0 && self.dir.is_none() && self.mask & MOVES == 0
    }

    /// The inode has gone, and nothing else is told with it.
    fn is_end(&self) -> bool {
        self.mask & !libc::FAN_ONDIR == libc::FAN_DELETE_SELF
    }
}

/// An act that is whole, or waits for the rest of it.
#[derive(Debug)]
struct Held {
    act: Act,
    /// Until when it waits; `None` once it is whole.
    until: Option<Instant>,
}

impl Held {
    fn new(act: Act) -> Self {
        let wait = if act.mask & MOVES != 0 {
            Some(REST)
        } else if act.is_link_count() {
            Some(NAME)
        } else {
            None
        };
        Self { act, until: wait.map(|wait| Instant::now() + wait) }
    }

    /// Whether the event may be the other half, though its inode and directory are not watched.
    fn is_completed_by(&self, event: &Event<'_>) -> bool {
        if self.act.mask & MOVES != 0 {
            return (self.act.to.is_none() && event.mask & libc::FAN_MOVED_TO != 0)
                || (self.act.child.is_none() && event.mask & libc::FAN_MOVE_SELF != 0);
        }
        let same = |child: &[u8]| self.act.child.as_ref().is_some_and(|id| &**id == child);
        event.mask & NAMES != 0 && event.child.is_none_or(same)
    }

    /// Takes the rest of it in, or some of the rest; gives back what is none.
    fn take(&mut self, mut more: Act) -> Option<Act> {
        let held = &mut self.act;
        if held.mask & MOVES == 0 {
            // `vfs_unlink` lets go of the inode before it tells of the name. Only a reader that is faster than that sees it by itself.
            if more.is_end() && more.child == held.child {
                held.mask |= libc::FAN_DELETE_SELF;
                return None;
            }
            // The link count changed: by this very act, if it is on the same inode (or does not tell which).
            if more.mask & NAMES == 0 || (more.child.is_some() && more.child != held.child) {
                return Some(more);
            }
            more.child = held.child.take();
            more.actor = held.actor.take();
            let rest = held.mask & !(libc::FAN_ATTRIB | libc::FAN_DELETE_SELF | libc::FAN_ONDIR);
            more.mask |= rest | (held.mask & libc::FAN_DELETE_SELF);
            *self = Self { act: more, until: None };
        } else if held.to.is_none() && more.mask & libc::FAN_MOVED_TO != 0 {
            held.to = more.to.take();
            held.mask |= more.mask;
        } else if more.mask & libc::FAN_MOVE_SELF != 0 && held.child.is_none() {
            held.child = more.subject().cloned();
            self.until = None;
        } else if more.is_link_count() && more.child != held.child && held.replaced.is_none() {
            held.replaced = more.child.take();
            if held.child.is_some() {
                self.until = None;
            }
        } else {
            return Some(more);
        }
        None
    }
}

/// Holds acts back until they are whole, and gives them in order: what came after an act that waits waits with it. Processes
/// act at the same time, so that halves of several acts come in turn; one process does one at a time.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    held: VecDeque<Held>,
}

impl Assembler {
    /// How long the first act that waits for the rest of it may still wait; `None` where none does.
    pub(super) fn waits(&self) -> Option<Duration> {
        self.held.front()?.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether this event may be the other half of an act that waits, though its inode and directory are not watched.
    /// Nothing else that is not watched may end the wait: the threads of one process have one pid.
    pub(super) fn is_completed_by(&self, event: &Event<'_>) -> bool {
        self.waiting(event.pid)
            .is_some_and(|at| self.held.get(at).is_some_and(|held| held.is_completed_by(event)))
    }

    fn waiting(&self, pid: i32) -> Option<usize> {
        self.held.iter().position(|held| held.until.is_some() && held.act.pid == pid)
    }

    /// Takes the next event; asks who it was if it is held back.
    pub(super) fn take(&mut self, event: Event<'_>, time: Time, who: impl FnOnce(i32, &Pidfd) -> Who) {
        let mut act = Act::new(event, time);
        if let Some(held) = self.waiting(act.pid).and_then(|at| self.held.get_mut(at)) {
            let Some(other) = held.take(act) else { return };
            // Its process went on with something else: nothing more of it comes.
            held.until = None;
            act = other;
        }
        let mut held = Held::new(act);
        if held.until.is_some() || self.waits().is_some() {
            held.act.actor = Some(who(held.act.pid, &held.act.pidfd));
        }
        self.held.push_back(held);
        if self.held.len() > HELD_MAX
            && let Some(first) = self.held.front_mut()
        {
            first.until = None;
        }
    }

    /// Nothing more comes of any.
    pub(super) fn give_up(&mut self) {
        self.held.iter_mut().for_each(|held| held.until = None);
    }

    /// The next act that is whole, or has waited for long enough.
    pub(super) fn next(&mut self) -> Option<Act> {
        if self.held.front()?.until.is_some_and(|until| until > Instant::now()) {
            return None;
        }
        self.held.pop_front().map(|held| held.act)
    }
}

#[cfg(test)]
mod tests {
    use super::{Act, Assembler, Who};
    use crate::model::Time;
    use crate::sensor::fanotify::parse::{Event, Pidfd};

    const A: [u8; 16] = [1; 16];
    const B: [u8; 16] = [2; 16];
    const DIR: [u8; 16] = [9; 16];

    fn event<'a>(mask: u64, child: Option<&'a [u8]>, dir: Option<(&'a [u8], &'a [u8])>) -> Event<'a> {
        Event { mask, pid: 1, pidfd: Pidfd::Gone, child, dir, old: None, new: None }
    }

    fn nobody(pid: i32, _: &Pidfd) -> Who {
        Err(format!("process {pid}"))
    }

    fn feed(events: Vec<Event<'_>>) -> Vec<(u64, bool, bool)> {
        let mut assembler = Assembler::default();
        events.into_iter().for_each(|event| assembler.take(event, Time(0), nobody));
        assembler.give_up();
        let acts: Vec<Act> = std::iter::from_fn(|| assembler.next()).collect();
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
    fn an_inode_that_goes_before_its_name_is_told_is_part_of_that() {
        let events = vec![
            event(libc::FAN_ATTRIB, Some(&A), None),
            event(libc::FAN_DELETE_SELF, Some(&A), None),
            event(libc::FAN_DELETE, Some(&A), Some((&DIR, b"a"))),
        ];
        assert_eq!(feed(events), [(libc::FAN_DELETE | libc::FAN_DELETE_SELF, true, false)]);
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

    #[test]
    fn what_two_processes_do_at_a_time_is_put_together_by_process_and_stays_in_order() {
        let other = |event: Event<'static>| Event { pid: 2, ..event };
        let mut assembler = Assembler::default();
        assembler.take(event(libc::FAN_ATTRIB, Some(&A), None), Time(1), nobody);
        assembler.take(other(event(libc::FAN_ATTRIB, Some(&B), None)), Time(2), nobody);
        assembler.take(other(event(libc::FAN_DELETE, Some(&B), Some((&DIR, b"b")))), Time(3), nobody);
        assert!(assembler.next().is_none() && assembler.waits().is_some(), "the first is not whole");
        assembler.take(event(libc::FAN_DELETE, Some(&A), Some((&DIR, b"a"))), Time(4), nobody);
        let acts: Vec<Act> = std::iter::from_fn(|| assembler.next()).collect();
        let told: Vec<_> =
            acts.iter().map(|act| (act.pid, act.mask, act.child.as_deref().map(|id| id[0]))).collect();
        assert_eq!(told, [(1, libc::FAN_DELETE, Some(1)), (2, libc::FAN_DELETE, Some(2))]);
        assert!(assembler.waits().is_none(), "nothing is left");
    }

    #[test]
    fn not_more_is_held_back_than_there_is_room_for() {
        let mut assembler = Assembler::default();
        assembler.take(event(libc::FAN_ATTRIB, Some(&A), None), Time(0), nobody);
        for _ in 0..super::HELD_MAX {
            assembler.take(Event { pid: 2, ..event(libc::FAN_MODIFY, Some(&B), None) }, Time(0), nobody);
        }
        assert_eq!(std::iter::from_fn(|| assembler.next()).count(), super::HELD_MAX + 1);
    }
}
