//! Where profiles come from: those built in, and files that the config names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::parse::{NOUN, parse};
use super::{Profile, Profiles};
use crate::text::one_line;
use crate::yaml;

/// Most profiles that files may add.
const MAX: usize = 256;

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        /// Names and texts of the profiles in this binary.
        pub const BUILT_IN: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../profiles/", $name, ".yaml")))),+];
    };
}

built_in![
    "cni",
    "istio-proxy",
    "istio-ztunnel",
    "istio-cni",
    "istiod",
    "linkerd-proxy",
    "linkerd-control-plane",
    "linkerd-cni",
    "cert-manager-csi",
    "consul-dataplane",
    "consul-cni",
    "kuma-sidecar",
    "kuma-control-plane",
    "kuma-cni",
    "cilium",
    "spire",
];

/// Why a profile is refused: `profile: FILE[:LINE]: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("profile: {}: {message}", self.place())]
pub struct ProfileError {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: Option<u64>,
    /// What was found and what was expected.
    pub message: String,
}

impl ProfileError {
    /// Values are repeated as they were written: what is a line break in them is none here.
    pub(super) fn new(file: impl fmt::Display, line: Option<u64>, message: impl AsRef<str>) -> Self {
        Self { file: one_line(&file.to_string()), line, message: one_line(message.as_ref()) }
    }

    /// `FILE` or `FILE:LINE`.
    #[must_use]
    pub fn place(&self) -> String {
        match self.line {
            Some(line) => format!("{}:{line}", self.file),
            None => self.file.clone(),
        }
    }
}

impl Profiles {
    /// Those in this binary. One that cannot be read would be left out; the tests see to it that none is.
    #[must_use]
    pub fn built_in() -> &'static Arc<Self> {
        static PROFILES: LazyLock<Arc<Profiles>> = LazyLock::new(|| {
            let read = BUILT_IN.iter().filter_map(|(name, text)| {
                parse("built-in", text)
                    .inspect_err(|e| tracing::error!(name, error = %e, "a built-in profile"))
                    .ok()
            });
            Arc::new(Profiles { all: read.map(Arc::new).collect() })
        });
        &PROFILES
    }

    /// Those, and these files or directories of `*.yaml`: a profile of the same name takes the place of ours.
    ///
    /// # Errors
    /// A file cannot be read or is refused, or two of them have the same name.
    pub fn with(files: &[PathBuf]) -> Result<Self, ProfileError> {
        let mut added: Vec<Profile> = Vec::new();
        for file in
            files.iter().map(|file| all_of(file)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten()
        {
            let text = yaml::read(&file, NOUN)
                .map_err(|message| ProfileError::new(file.display(), None, message))?;
            let profile = parse(&file.display().to_string(), &text)?;
            if let Some(other) = added.iter().find(|other| other.name == profile.name) {
                let why =
                    format!("profile: '{}' is also in {}, expected it once", profile.name, other.origin);
                return Err(ProfileError::new(file.display(), None, why));
            }
            if added.len() >= MAX {
                return Err(ProfileError::new(
                    file.display(),
                    None,
                    format!("expected at most {MAX} profiles"),
                ));
            }
            added.push(profile);
        }
        let mut all = Self::built_in().all.clone();
        all.retain(|ours| added.iter().all(|other| other.name != ours.name));
        // Of two rules that say as much of a place the first counts: theirs come first.
        let mut profiles: Vec<Arc<Profile>> = added.into_iter().map(Arc::new).collect();
        profiles.append(&mut all);
        Ok(Self { all: profiles })
    }
}

/// A file itself; the `*.yaml` of a directory, by name.
fn all_of(path: &Path) -> Result<Vec<PathBuf>, ProfileError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| {
        ProfileError::new(path.display(), None, format!("cannot be listed ({e}), expected a directory"))
    })?;
    let yaml =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(yaml).take(MAX + 1).collect();
    files.sort();
    Ok(files)
}
