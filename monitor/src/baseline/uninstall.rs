//! Permission to take Meshseal off a node: a statement signed by those who may sign baselines.
//!
//! An in-toto statement like a baseline: `predicateType` [`PREDICATE_TYPE`], `subject[0]` named [`NAME`] with the SHA-256 of
//! `predicate` as canonical JSON. It names its nodes and runs out: one that was signed once must not be good for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::Error;
use super::statement::{STATEMENT_TYPE, Statement, is_statement_type};
use super::trust::is_of_type;
use crate::model::Time;

/// `predicateType` of such a statement.
pub const PREDICATE_TYPE: &str = "https://meshseal.dev/uninstall/v1";
/// Name of its subject.
pub const NAME: &str = "uninstall";
/// The longest it may be good for, from when it is used.
pub const MAX_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most nodes of one statement.
const MAX_NODES: usize = 10_000;
/// Longest reason, in characters.
const MAX_REASON: usize = 1000;
const WHAT: &str = "bad uninstall statement";

/// Whether a payload means to be an uninstall statement.
#[must_use]
pub fn is_uninstall_statement(payload: &[u8]) -> bool {
    is_of_type(payload, PREDICATE_TYPE)
}

/// What was signed. Fields are sorted: their canonical JSON is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Uninstall {
    /// Names of the nodes, as their config or Kubernetes names them.
    pub nodes: BTreeSet<String>,
    /// Not good from then on.
    pub not_after: Time,
    /// Why, for people.
    pub reason: String,
}

impl Uninstall {
    /// Reads a statement. Whether it is trusted, and meant for here and now, is not its own to say.
    ///
    /// # Errors
    /// What is wrong, with the field.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let bad = |place: &str, expected: &str| Error::new(WHAT, place, expected);
        if !is_uninstall_statement(payload) {
            return Err(bad("predicateType", PREDICATE_TYPE));
        }
        let wire: Statement<Self> =
            serde_json::from_slice(payload).map_err(|e| Error::new(WHAT, "JSON", e))?;
        if !is_statement_type(&wire.statement_type) {
            return Err(bad("_type", STATEMENT_TYPE));
        }
        let predicate = wire.predicate;
        let [subject] = wire.subject.as_slice() else { return Err(bad("subject", "exactly one")) };
        if subject.name != NAME || subject.digest.sha256 != predicate.digest()? {
            return Err(bad("subject[0]", "uninstall, with the SHA-256 of predicate as canonical JSON"));
        }
        if predicate.nodes.is_empty() || predicate.nodes.len() > MAX_NODES {
            return Err(bad("predicate.nodes", "1 to 10000 names of nodes"));
        }
        if predicate.reason.trim().is_empty() || predicate.reason.chars().count() > MAX_REASON {
            return Err(bad("predicate.reason", "1 to 1000 characters"));
        }
        Ok(predicate)
    }

    /// Makes a statement, to review and to sign.
    ///
    /// # Errors
    /// What [`Uninstall::parse`] would refuse.
    pub fn statement(&self) -> Result<Vec<u8>, Error> {
        let out = Statement::around((NAME, self.digest()?), PREDICATE_TYPE, self.clone()).to_json()?;
        Self::parse(&out)?;
        Ok(out)
    }

    /// Whether it is for this node, now.
    ///
    /// # Errors
    /// It names other nodes, has run out, or is good for longer than [`MAX_VALIDITY`].
    pub fn is_for(&self, node: &str, now: Time) -> Result<(), Error> {
        if !self.nodes.contains(node) {
            return Err(Error::new("uninstall statement", "predicate.nodes", format!("this node, {node}")));
        }
        let left = self.not_after.0.saturating_sub(now.0);
        if left <= 0 {
            return Err(Error::new(
                "uninstall statement",
                "predicate.notAfter",
                "a time to come: it has run out",
            ));
        }
        if u128::from(left.unsigned_abs()) > MAX_VALIDITY.as_nanos() {
            return Err(Error::new("uninstall statement", "predicate.notAfter", "30 days from now at most"));
        }
        Ok(())
    }

    fn digest(&self) -> Result<String, Error> {
        let text = serde_json::to_vec(self).map_err(|e| Error::new("cannot write predicate", "", e))?;
        Ok(hex::encode(Sha256::digest(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::Uninstall;
    use crate::model::Time;

    const DAY: i64 = 24 * 3600 * 1_000_000_000;
    const NOW: Time = Time(1_800_000_000_000_000_000);

    fn made() -> Uninstall {
        let nodes = ["a".to_owned(), "b".to_owned()].into();
        Uninstall { nodes, not_after: Time(NOW.0 + DAY), reason: "moved".to_owned() }
    }

    #[test]
    fn it_is_for_its_nodes_and_for_a_while() {
        let statement = made().statement().unwrap();
        let read = Uninstall::parse(&statement).unwrap();
        assert_eq!(read, made());
        assert!(read.is_for("b", NOW).is_ok());
        let refused = |node: &str, now: i64| read.is_for(node, Time(now)).unwrap_err().to_string();
        assert!(refused("c", NOW.0).contains("predicate.nodes"));
        assert!(refused("a", NOW.0 + DAY).contains("has run out"));
        assert!(refused("a", NOW.0 - 30 * DAY).contains("30 days"));
    }

    #[test]
    fn what_was_changed_or_is_no_such_statement_is_refused() {
        let text = String::from_utf8(made().statement().unwrap()).unwrap();
        for (from, to) in [
            ("moved", "other"),
            ("uninstall/v1", "baseline/v1"),
            ("\"name\": \"uninstall\"", "\"name\": \"else\""),
            ("\"reason\"", "\"why\""),
        ] {
            assert!(Uninstall::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{from}");
        }
        let none = Uninstall { nodes: std::collections::BTreeSet::new(), ..made() };
        assert!(none.statement().is_err());
        assert!(Uninstall { reason: " ".to_owned(), ..made() }.statement().is_err());
    }
}
