//! A profile as it is written: nothing checked but shape, each value with its line.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

pub(super) type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Written {
    pub(super) api_version: Text,
    pub(super) profile: Text,
    pub(super) mesh: Text,
    pub(super) about: Text,
    pub(super) read_from: Text,
    pub(super) status: Text,
    #[serde(default)]
    pub(super) containers: Vec<Text>,
    #[serde(default)]
    pub(super) only_with_container: bool,
    pub(super) identity: Option<Text>,
    #[serde(default)]
    pub(super) executables: Vec<Executable>,
    #[serde(default)]
    pub(super) writers: Vec<Writer>,
    #[serde(default)]
    pub(super) files: Vec<File>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Executable {
    pub(super) path: Text,
    pub(super) about: Text,
    pub(super) anywhere: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Writer {
    pub(super) name: Text,
    pub(super) exe: Text,
    #[serde(default)]
    pub(super) containers: Vec<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) path: Text,
    pub(super) about: Text,
    pub(super) class: Text,
    pub(super) role: Text,
    #[serde(default)]
    pub(super) writers: Vec<Text>,
    pub(super) rate: Option<Text>,
    pub(super) publish: Option<Text>,
    pub(super) compare: Option<Text>,
    #[serde(default)]
    pub(super) severity: BTreeMap<String, Text>,
}
