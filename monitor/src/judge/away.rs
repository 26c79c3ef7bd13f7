//! What an installer takes away when it ends. A restarted or replaced one puts it back when it has come again; one that does not has left the node
//! without it, which is then told.

use std::time::Duration;

use crate::baseline::{Content, Form, FoundKind, Meaning, Seal, Writer};

use super::look::Look;
use super::unit::Unit;

/// Between two looks at what an installer took away, at least.
const WAIT_FOR_INSTALLER: Duration = Duration::from_secs(1);
/// Looks at it, where nothing else has it looked at.
const LOOKS: u32 = 200;

/// How long to wait before the next look for an installer that may come again within that time.
pub(super) fn look_again(within: Duration) -> Duration {
    WAIT_FOR_INSTALLER.max(within / LOOKS)
}

/// Its installer took it away, or its plugin out of the chain, and put nothing in its place.
pub(super) fn is_away(writers: &[Writer], unit: &Unit, look: &Look) -> bool {
    let installer = |writer: &Writer| matches!(writer, Writer::InPod(writer) if writer.namespace.is_some());
    if unit.is_volume() || !writers.iter().any(installer) {
        return false;
    }
    match (look.found.as_ref().map(|found| &found.kind), &unit.object().seal) {
        (None, _) => true,
        (Some(FoundKind::File { content, .. }), Seal::File(Content::Meaning(sealed))) => {
            let (Meaning::Cni(sealed), Ok(Meaning::Cni(found))) = (&**sealed, content.meaning(Form::Cni))
            else {
                return false;
            };
            sealed.only_lacks(found)
        }
        _ => false,
    }
}
