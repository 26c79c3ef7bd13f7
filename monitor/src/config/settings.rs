//! What of a config decides how much is trusted, refused and told. Running on less of it is a relaxation: a reload refuses one, and a
//! restart that brings one is a violation of its own.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Config, Mode, OnAgentLoss, Protocol, RungChoice};

/// These settings of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    mode: Mode,
    on_agent_loss: OnAgentLoss,
    rung: RungChoice,
    require_signatures: u32,
    /// Ids of the trusted keys.
    trusted_keys: BTreeSet<String>,
    receivers: BTreeSet<Receiver>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Receiver {
    protocol: Protocol,
    endpoint: String,
}

/// A setting that trusts more, refuses less or tells less than it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relaxation {
    /// The key of the config.
    pub key: &'static str,
    /// Its value before; of a list what matters of it.
    pub before: String,
    /// Its value now.
    pub after: String,
    says: String,
}

impl fmt::Display for Relaxation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} relaxes", self.key, self.says)
    }
}

impl Relaxation {
    fn lower(key: &'static str, before: impl fmt::Display, after: impl fmt::Display) -> Self {
        let (before, after) = (before.to_string(), after.to_string());
        Self { key, says: format!("{before} to {after}"), before, after }
    }
}

impl Settings {
    /// Those of a config; `trusted_keys` are the ids of all trusted keys, the config's and others'.
    #[must_use]
    pub fn of(config: &Config, trusted_keys: BTreeSet<String>) -> Self {
        let receiver =
            |one: &super::Endpoint| Receiver { protocol: one.protocol, endpoint: one.endpoint.clone() };
        Self {
            mode: config.mode,
            on_agent_loss: config.enforce.on_agent_loss,
            rung: config.sensor.rung,
            require_signatures: config.baselines.require_signatures,
            trusted_keys,
            receivers: config.export.iter().map(receiver).collect(),
        }
    }

    /// What running on `new` would relax.
    ///
    /// Keys where there were none before are no relaxation: nothing could be accepted until then.
    #[must_use]
    pub fn relaxed_by(&self, new: &Self) -> Vec<Relaxation> {
        let mut relaxations = Vec::new();
        if new.mode < self.mode {
            relaxations.push(Relaxation::lower("mode", self.mode.as_str(), new.mode.as_str()));
        }
        let (before, after) = (self.require_signatures, new.require_signatures);
        if after < before {
            relaxations.push(Relaxation::lower("baselines.requireSignatures", before, after));
        }
        let added: Vec<&str> = new.trusted_keys.difference(&self.trusted_keys).map(String::as_str).collect();
        if let Some(first) = added.first().filter(|_| !self.trusted_keys.is_empty()) {
            relaxations.push(Relaxation {
                key: "baselines.trustedKeys",
                before: listed(self.trusted_keys.iter().map(String::as_str)),
                after: listed(new.trusted_keys.iter().map(String::as_str)),
                says: format!("another trusted key ({first})"),
            });
        }
        // Who can change the config could otherwise cut off the witness.
        if self.receivers.difference(&new.receivers).next().is_some() {
            relaxations.push(Relaxation {
                key: "export.otlp",
                before: listed(self.receivers.iter().map(|one| one.endpoint.as_str())),
                after: listed(new.receivers.iter().map(|one| one.endpoint.as_str())),
                says: "without a receiver that there was".to_owned(),
            });
        }
        let loss = (self.on_agent_loss, new.on_agent_loss);
        if self.mode == Mode::Enforce && loss == (OnAgentLoss::Keep, OnAgentLoss::Release) {
            relaxations.push(Relaxation::lower("enforce.onAgentLoss", "keep", "release"));
        }
        if new.rung < self.rung {
            relaxations.push(Relaxation::lower("sensor.rung", self.rung.name(), new.rung.name()));
        }
        relaxations
    }

    /// What the next run is held to, after this one: to trust nobody for a while must not be a way to trust others.
    #[must_use]
    pub fn after(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before.filter(|_| self.trusted_keys.is_empty()) {
            self.trusted_keys.clone_from(&before.trusted_keys);
        }
        self
    }
}

fn listed<S: std::borrow::Borrow<str>>(values: impl Iterator<Item = S>) -> String {
    values.collect::<Vec<S>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::{Mode, OnAgentLoss, Settings};
    use crate::config::parse;

    fn settings(yaml: &str, keys: &[&str]) -> Settings {
        let config =
            parse(Path::new("/c.yaml"), &format!("apiVersion: meshseal/v1\nnode: n\n{yaml}\n")).unwrap();
        Settings::of(&config, keys.iter().map(|&id| id.to_owned()).collect::<BTreeSet<_>>())
    }

    fn told(old: &Settings, new: &Settings) -> Vec<String> {
        old.relaxed_by(new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn less_than_before_is_told_setting_by_setting() {
        let two = settings("baselines: {requireSignatures: 2}", &["a"]);
        assert_eq!(told(&two, &two), [""; 0]);
        assert_eq!(told(&two, &settings("baselines: {requireSignatures: 3}", &["a"])), [""; 0]);
        let all = settings("sensor: {rung: inotify}", &["a", "b"]);
        assert_eq!(
            told(&two, &all),
            [
                "baselines.requireSignatures: 2 to 1 relaxes",
                "baselines.trustedKeys: another trusted key (b) relaxes",
                "sensor.rung: auto to inotify relaxes",
            ]
        );
        assert_eq!(told(&all, &two), [""; 0]);
    }

    #[test]
    fn enforcement_and_what_becomes_of_it_only_grow() {
        let observe = settings("", &[]);
        let keep = Settings { mode: Mode::Enforce, on_agent_loss: OnAgentLoss::Keep, ..observe.clone() };
        assert_eq!(told(&observe, &keep), [""; 0]);
        assert_eq!(
            told(&keep, &observe),
            ["mode: enforce to observe relaxes", "enforce.onAgentLoss: keep to release relaxes"]
        );
        let released = Settings { on_agent_loss: OnAgentLoss::Release, ..keep.clone() };
        assert_eq!(told(&keep, &released), ["enforce.onAgentLoss: keep to release relaxes"]);
        assert_eq!(told(&released, &keep), [""; 0]);
    }

    #[test]
    fn keys_may_come_where_there_were_none_and_go() {
        let (none, a, b, both) =
            (settings("", &[]), settings("", &["a"]), settings("", &["b"]), settings("", &["a", "b"]));
        assert_eq!(told(&none, &both), [""; 0]);
        assert_eq!(told(&both, &a), [""; 0]);
        assert_eq!(told(&a, &none), [""; 0]);
        assert_eq!(told(&a, &b), ["baselines.trustedKeys: another trusted key (b) relaxes"]);
        let held = none.after(Some(&a));
        assert_eq!(held, a);
        assert_eq!(told(&held, &b), ["baselines.trustedKeys: another trusted key (b) relaxes"]);
        assert_eq!(b.clone().after(Some(&a)), b);
    }

    #[test]
    fn a_receiver_is_missed_and_its_settings_are_its_own() {
        let with = |otlp: &str| settings(&format!("export: {{otlp: [{otlp}]}}"), &[]);
        let one = with("{endpoint: \"http://c:1\"}");
        assert_eq!(
            told(&one, &with("{endpoint: \"http://c:1\", timeout: 1s}, {endpoint: \"http://c:2\"}")),
            [""; 0]
        );
        assert_eq!(
            told(&one, &with("{endpoint: \"http://c:2\"}")),
            ["export.otlp: without a receiver that there was relaxes"]
        );
    }

    #[test]
    fn what_is_kept_comes_back_and_nothing_else_does() {
        let kept = settings("export: {otlp: [{endpoint: \"http://c:1\"}]}", &["a"]);
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), kept);
        let more = text.replacen('{', "{\"more\":1,", 1);
        assert!(
            serde_json::from_str::<Settings>(&more)
                .unwrap_err()
                .to_string()
                .starts_with("unknown field `more`")
        );
    }
}
