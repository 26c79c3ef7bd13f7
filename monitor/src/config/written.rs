//! The configuration as it is written: keys of the contract, nothing checked but shape, each value with its line.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

pub(super) type Text = Option<Spanned<String>>;
pub(super) type List = Option<Vec<Spanned<String>>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Written {
    pub(super) api_version: Text,
    pub(super) mode: Text,
    pub(super) state_dir: Text,
    pub(super) socket: Text,
    pub(super) host_root: Text,
    pub(super) node: Text,
    pub(super) baselines: Option<Baselines>,
    pub(super) profiles: List,
    pub(super) journal: Option<Journal>,
    pub(super) scrub: Option<Scrub>,
    pub(super) enforce: Option<Enforce>,
    pub(super) export: Option<Export>,
    #[expect(dead_code, reason = "checked for unknown keys only: it has none yet")]
    pub(super) api: Option<Api>,
    pub(super) sensor: Option<Sensor>,
    pub(super) kubernetes: Option<Kubernetes>,
    pub(super) log: Option<Log>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Baselines {
    pub(super) files: List,
    pub(super) trusted_keys: List,
    pub(super) require_signatures: Option<Spanned<u32>>,
    pub(super) secret_key: Text,
    pub(super) trust_on_first_use: Option<bool>,
    pub(super) await_approval: Text,
    pub(super) await_installer: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Journal {
    pub(super) max_bytes: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Scrub {
    pub(super) interval: Text,
    pub(super) io_budget: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Enforce {
    pub(super) on_agent_loss: Text,
    pub(super) lease: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Export {
    pub(super) otlp: Option<Vec<Otlp>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Otlp {
    pub(super) endpoint: Spanned<String>,
    pub(super) protocol: Text,
    pub(super) headers: Option<BTreeMap<String, Spanned<String>>>,
    pub(super) tls: Option<Tls>,
    pub(super) compression: Text,
    pub(super) timeout: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Tls {
    pub(super) ca: Text,
    pub(super) cert: Text,
    pub(super) key: Text,
}

/// The TLS port is off, and there is no key yet that would turn it on.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Api {}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Sensor {
    pub(super) rung: Text,
    pub(super) ring_bytes: Text,
    pub(super) max_slots: Option<Spanned<u32>>,
    pub(super) canary_interval: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Kubernetes {
    pub(super) api: Text,
    pub(super) kubeconfig: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Log {
    pub(super) level: Text,
}
