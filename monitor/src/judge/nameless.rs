//! What is lawful where the sensor names nobody.
//!
//! `inotify` tells of no actor, so that no writer is ever proven there. To tell each renewal of a token as a violation would make that rung
//! useless, and to pass over volumes would make it blind. What ends as a lawful writer of the object would have left it, in the shape of a publish
//! where the object is a volume, is taken for that writer's doing; that whoever does just the same passes for it is in `blind_to`.

use crate::baseline::Seal;
use crate::baseline::volume::DATA;
use crate::model::{Operation, Rung};

use super::acts::{Act, Acts};
use super::look::Look;
use super::unit::Unit;

impl Act {
    /// Its sensor cannot tell by whom it is.
    pub(super) fn is_nameless(&self) -> bool {
        self.sensor == Rung::Inotify && self.actor.is_err()
    }
}

/// Whether these acts pass for a lawful writer's.
pub(super) fn passes_for_lawful(unit: &Unit, look: &Look, acts: &Acts) -> bool {
    let object = unit.object();
    let ends_well = look.found.is_some() && look.differences.is_empty() && !object.rule.writers.is_empty();
    let nameless = !acts.is_empty() && acts.more == 0 && acts.iter().all(Act::is_nameless);
    ends_well && nameless && (!matches!(object.seal, Seal::Volume { .. }) || is_publish(acts))
}

/// `..data` was swung, and nothing else was renamed; names that came and went are as the volume's look has them.
fn is_publish(acts: &Acts) -> bool {
    let swings = |act: &Act| act.to.as_ref().is_some_and(|to| to.name() == DATA);
    let mut renames = acts.iter().filter(|act| act.operation == Operation::Rename).peekable();
    renames.peek().is_some() && renames.all(swings)
}
