//! From facts to posture: pure, so that every combination can be tested.

use super::Posture;

/// What posture depends on. Trouble with export is not among it: the journal holds what was not sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Open violations.
    pub open_violations: u64,
    /// Objects that were not as sealed when they were last looked at, told of or not.
    pub violated_objects: u64,
    /// A sensor is live (any rung that reports events).
    pub sensor_live: bool,
    /// Hook families that ought to be live on this rung and are not.
    pub dead_families: u64,
    /// A baseline is accepted.
    pub has_baseline: bool,
    /// Objects that are trusted because they were so when they were seen first.
    pub first_use: u64,
    /// An accepted baseline ran out.
    pub baseline_expired: bool,
    /// The latest baseline given was refused; the one before holds.
    pub baseline_rejected: bool,
    /// Losses not reconciled.
    pub loss_unreconciled: u64,
    /// Objects are waiting to be verified (at start, after a loss, after a reload).
    pub reverification_pending: bool,
    /// Volumes whose lawful publish waits for the baseline that approves it.
    pub awaited_approvals: u64,
    /// Sealed objects that could not be read, so cannot be verified.
    pub unreadable_objects: u64,
    /// Sealed objects that could not be watched.
    pub unwatched_objects: u64,
    /// Writable mappings or other writers of sealed objects that cannot be seen writing.
    pub writable_mappings: u64,
    /// The journal cannot be written.
    pub journal_failing: bool,
}

/// Posture and its reasons, worst first. The words are stable:
///
/// | posture | reasons |
/// |---|---|
/// | violated | `violations_open` `object_violated` |
/// | blind | `no_live_sensor` |
/// | uncertain | `journal_failing` `loss_unreconciled` `dead_hook_family` `no_baseline` `baseline_expired` `baseline_rejected` `reverification_pending` `approval_awaited` `object_unreadable` `object_unwatched` `writable_mapping` |
/// | as without | `trust_on_first_use` |
#[must_use]
pub fn posture(facts: &Facts) -> (Posture, Vec<String>) {
    let reasons = [
        (facts.open_violations > 0, Posture::Violated, "violations_open"),
        (facts.open_violations == 0 && facts.violated_objects > 0, Posture::Violated, "object_violated"),
        (!facts.sensor_live, Posture::Blind, "no_live_sensor"),
        (facts.journal_failing, Posture::Uncertain, "journal_failing"),
        (facts.loss_unreconciled > 0, Posture::Uncertain, "loss_unreconciled"),
        (facts.dead_families > 0, Posture::Uncertain, "dead_hook_family"),
        (!facts.has_baseline, Posture::Uncertain, "no_baseline"),
        (facts.baseline_expired, Posture::Uncertain, "baseline_expired"),
        (facts.baseline_rejected, Posture::Uncertain, "baseline_rejected"),
        (facts.reverification_pending, Posture::Uncertain, "reverification_pending"),
        (facts.awaited_approvals > 0, Posture::Uncertain, "approval_awaited"),
        (facts.unreadable_objects > 0, Posture::Uncertain, "object_unreadable"),
        (facts.unwatched_objects > 0, Posture::Uncertain, "object_unwatched"),
        (facts.writable_mappings > 0, Posture::Uncertain, "writable_mapping"),
        // Changes nothing, and is always said.
        (facts.first_use > 0, Posture::Intact, "trust_on_first_use"),
    ];
    let holding = || reasons.iter().filter(|(holds, ..)| *holds);
    let worst = holding().map(|&(_, posture, _)| posture).max().unwrap_or(Posture::Intact);
    (worst, holding().map(|&(.., reason)| reason.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::{Facts, posture};
    use crate::status::Posture;

    fn healthy() -> Facts {
        Facts { sensor_live: true, has_baseline: true, ..Facts::default() }
    }

    fn answer(change: impl FnOnce(&mut Facts)) -> (Posture, Vec<String>) {
        let mut facts = healthy();
        change(&mut facts);
        posture(&facts)
    }

    fn is(posture: Posture, reasons: &[&str]) -> (Posture, Vec<String>) {
        (posture, reasons.iter().map(|&reason| reason.to_owned()).collect())
    }

    #[test]
    fn each_fact_has_its_posture_and_reason() {
        use Posture::{Blind, Intact, Uncertain, Violated};
        assert_eq!(answer(|_| {}), is(Intact, &[]));
        assert_eq!(answer(|f| f.open_violations = 1), is(Violated, &["violations_open"]));
        assert_eq!(answer(|f| f.violated_objects = 1), is(Violated, &["object_violated"]));
        assert_eq!(answer(|f| f.sensor_live = false), is(Blind, &["no_live_sensor"]));
        assert_eq!(answer(|f| f.journal_failing = true), is(Uncertain, &["journal_failing"]));
        assert_eq!(answer(|f| f.loss_unreconciled = 1), is(Uncertain, &["loss_unreconciled"]));
        assert_eq!(answer(|f| f.dead_families = 1), is(Uncertain, &["dead_hook_family"]));
        assert_eq!(answer(|f| f.has_baseline = false), is(Uncertain, &["no_baseline"]));
        assert_eq!(answer(|f| f.baseline_expired = true), is(Uncertain, &["baseline_expired"]));
        assert_eq!(answer(|f| f.baseline_rejected = true), is(Uncertain, &["baseline_rejected"]));
        assert_eq!(answer(|f| f.reverification_pending = true), is(Uncertain, &["reverification_pending"]));
        assert_eq!(answer(|f| f.awaited_approvals = 1), is(Uncertain, &["approval_awaited"]));
        assert_eq!(answer(|f| f.unreadable_objects = 1), is(Uncertain, &["object_unreadable"]));
        assert_eq!(answer(|f| f.unwatched_objects = 1), is(Uncertain, &["object_unwatched"]));
        assert_eq!(answer(|f| f.writable_mappings = 1), is(Uncertain, &["writable_mapping"]));
        assert_eq!(answer(|f| f.first_use = 1), is(Intact, &["trust_on_first_use"]));
    }

    #[test]
    fn the_worst_wins_and_all_reasons_stay() {
        assert_eq!(
            posture(&Facts { open_violations: 2, loss_unreconciled: 1, ..Facts::default() }),
            is(Posture::Violated, &["violations_open", "no_live_sensor", "loss_unreconciled", "no_baseline"])
        );
        assert_eq!(posture(&Facts::default()), is(Posture::Blind, &["no_live_sensor", "no_baseline"]));
    }

    #[test]
    fn order_and_exit_status_are_the_contracts() {
        assert!(Posture::Violated > Posture::Blind);
        assert!(Posture::Blind > Posture::Uncertain);
        assert!(Posture::Uncertain > Posture::Intact);
        let statuses = [Posture::Intact, Posture::Violated, Posture::Uncertain, Posture::Blind];
        assert_eq!(statuses.map(Posture::exit_status), [0, 1, 3, 4]);
    }
}
