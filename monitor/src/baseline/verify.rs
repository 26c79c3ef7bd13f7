//! Compares a whole tree with a baseline, once, on all processors.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::compare::{Difference, check};
use super::object::{Seal, SealedObject};
use super::observe::{Context, ObserveError, Root};
use crate::model::Time;

/// Objects a worker takes at a time: small ones cost less than a contended counter.
const BATCH: usize = 8;
/// From this size on a file is taken before all others, so that no worker ends up alone with it.
const LARGE: u64 = 1 << 20;

/// What is not as sealed, or could not be told; in the order of the objects. What is intact is not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What differs.
    pub differs: Vec<Differs>,
    /// Index of the object → why it could not be told.
    pub unknown: Vec<(usize, ObserveError)>,
    /// Objects looked at: all of them, unless it was stopped.
    pub looked_at: usize,
}

/// An object that is not as sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differs {
    /// Index of the object.
    pub at: usize,
    /// In what, at least one.
    pub differences: Vec<Difference>,
    /// When its inode was last changed; `None` where nothing is there.
    pub changed: Option<Time>,
}

/// How far a verification is, and whether it is to stop: for whoever waits for it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Objects done.
    pub objects: AtomicUsize,
    /// Bytes of them, as sealed.
    pub bytes: AtomicU64,
    /// Set to stop; what is being read is read to its end.
    pub stop: AtomicBool,
}

/// Checks each object below the root.
#[must_use]
pub fn verify(root: &Root, objects: &[SealedObject], context: &Context) -> Outcome {
    verify_with(root, objects, context, &Progress::default())
}

/// As [`verify`], told about while it runs.
#[must_use]
pub fn verify_with(root: &Root, objects: &[SealedObject], context: &Context, progress: &Progress) -> Outcome {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(objects.len().max(1));
    let order = order(objects);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcome = Outcome::default();
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = order.get(from..).filter(|rest| !rest.is_empty()) else { return outcome };
            for at in batch.iter().take(BATCH).map(|at| *at as usize) {
                let Some(object) = objects.get(at) else { continue };
                if progress.stop.load(Ordering::Relaxed) {
                    return outcome;
                }
                match check(root, object, context, None) {
                    Ok((_, differences)) if differences.is_empty() => {}
                    Ok((found, differences)) => {
                        let changed = found.map(|found| Time(found.ctime));
                        outcome.differs.push(Differs { at, differences, changed });
                    }
                    Err(e) => outcome.unknown.push((at, e)),
                }
                outcome.looked_at += 1;
                progress.objects.fetch_add(1, Ordering::Relaxed);
                progress.bytes.fetch_add(size(object), Ordering::Relaxed);
            }
        }
    };
    let mut all = Outcome::default();
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
        let mut outcomes = vec![work()];
        for other in others {
            match other.join() {
                Ok(outcome) => outcomes.push(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        for outcome in outcomes {
            all.differs.extend(outcome.differs);
            all.unknown.extend(outcome.unknown);
            all.looked_at += outcome.looked_at;
        }
    });
    all.differs.sort_by_key(|differs| differs.at);
    all.unknown.sort_by_key(|(at, _)| *at);
    all
}

/// The order of work: large files one by one by falling size, spread so that each batch starts with one; then the rest as
/// they stand, which keeps neighbours in a directory together.
fn order(objects: &[SealedObject]) -> Vec<u32> {
    let indices = 0..u32::try_from(objects.len()).unwrap_or(u32::MAX);
    let of = |at: &u32| objects.get(*at as usize).map_or(0, size);
    let (mut large, mut small): (Vec<u32>, Vec<u32>) = indices.partition(|at| of(at) >= LARGE);
    large.sort_by_key(|at| std::cmp::Reverse(of(at)));
    let mut rest = small.drain(..);
    let mut out = Vec::with_capacity(objects.len());
    for at in large {
        out.push(at);
        out.extend(rest.by_ref().take(BATCH - 1));
    }
    out.extend(rest);
    out
}

/// Bytes of an object, as sealed; 0 where they are not.
#[must_use]
pub fn size(object: &SealedObject) -> u64 {
    match &object.seal {
        Seal::File(content) => content.size().unwrap_or(0),
        Seal::Volume { entries } => entries.iter().filter_map(|entry| entry.file.as_ref()?.size()).sum(),
        Seal::Symlink { .. } | Seal::Directory { .. } => 0,
    }
}
