//! Certificates that must belong to a private key beside them. The key is a file of its own, of which no bytes are sealed: whoever replaces it
//! leaves a pair that no longer is one, which shows when the certificate is looked at.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::baseline::identity::SealedIdentity;
use crate::baseline::{Content, Seal};
use crate::model::{HostPath, ViolationKind};

use super::Judge;
use super::acts::{Act, Acts, decisive};
use super::slots::Ix;
use super::unit::Unit;
use super::units::Units;
use super::verdict::{Round, Verdict};

/// How long a renewal may take from one file to the other.
const RENEWAL: Duration = Duration::from_secs(5);
/// Most acts on a key that are kept for its certificate.
const ACTS: usize = 4;

/// Which certificates lean on which key.
#[derive(Debug, Default)]
pub(super) struct Beside {
    by_key: HashMap<HostPath, Vec<Ix>>,
}

impl Beside {
    pub(super) fn of(units: &Units) -> Self {
        let mut by_key: HashMap<HostPath, Vec<Ix>> = HashMap::new();
        for (ix, unit) in units.iter() {
            if let Some(key) = key_of(unit) {
                by_key.entry(key.clone()).or_default().push(ix);
            }
        }
        Self { by_key }
    }
}

fn key_of(unit: &Unit) -> Option<&HostPath> {
    let Seal::File(Content::Identity(identity)) = &unit.object().seal else { return None };
    match &**identity {
        SealedIdentity::X509 { key_file, .. } => key_file.as_ref(),
        SealedIdentity::Token { .. } => None,
    }
}

impl Judge {
    /// A file has other bytes than before: the certificates that lean on it are looked at, once a renewal has had its time.
    pub(super) fn changed_beside(&mut self, ix: Ix, acts: &Acts) {
        let Some(unit) = self.units.get(ix) else { return };
        let Some(leaning) = self.beside.by_key.get(&unit.object().path).cloned() else { return };
        let by = |act: &&Act| !act.denied && (act.touches_content() || act.touches_names());
        let acts: Vec<Act> = acts.iter().filter(by).take(ACTS).cloned().collect();
        for certificate in leaning {
            let Some(unit) = self.units.get_mut(certificate) else { continue };
            unit.apart_mut().beside.clone_from(&acts);
            self.schedule.at_latest(certificate, Instant::now() + RENEWAL);
        }
    }
}

impl Verdict {
    /// What nobody did to a certificate itself is by whoever changed its key.
    pub(super) fn by_whoever_acted_beside(&mut self, unit: &Unit) {
        let acts: Vec<&Act> = unit.apart().beside.iter().collect();
        let Some(act) = decisive(acts.iter().copied()) else { return };
        let nobodys = |found: &&mut super::violations::Finding| {
            found.kind == ViolationKind::Identity && found.act.is_none()
        };
        for finding in self.findings.iter_mut().filter(nobodys) {
            let round = Round { object: &finding.object, acts: &acts };
            let (expected, actual) = (finding.expected.clone(), finding.actual.clone());
            let detail = finding.detail.take();
            *finding = round.finding(ViolationKind::Identity, Some(act.clone()), expected, actual);
            finding.detail = detail;
        }
    }
}
