//! No sensor: the agent still verifies, and says that it is blind.

use std::os::fd::BorrowedFd;

use super::{Health, Proven, Sensor, WatchError};
use crate::model::{HostPath, Rung, Slot, WatchKind};

/// Stands where no rung can run.
#[derive(Debug)]
pub struct Nothing {
    /// Why each rung refused.
    pub why: Vec<String>,
}

impl Sensor for Nothing {
    fn rung(&self) -> Rung {
        Rung::None
    }

    fn watch(&mut self, _: BorrowedFd<'_>, _: Slot, _: WatchKind, _: &HostPath) -> Result<(), WatchError> {
        Err(WatchError::Unsupported("no sensor runs on this node".to_owned()))
    }

    fn unwatch(&mut self, _: Slot) {}

    fn watched(&self) -> u64 {
        0
    }

    fn count_reads(&mut self, _: Slot, _: bool) -> Option<u64> {
        None
    }

    fn prove(&mut self) {}

    fn proven(&mut self, _: bool) -> Option<Proven> {
        None
    }

    fn health(&self) -> Health {
        Health { rung: Rung::None, hooks: Vec::new(), blind_to: self.why.clone() }
    }
}
