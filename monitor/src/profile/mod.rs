//! What is known of each mesh on a node: which files it has, of which class, who may write them, what they are to it.
//!
//! Profiles are data (`monitor/profiles/*.yaml`), built in; the config's `profiles` adds others or puts another in place
//! of one of ours. A profile describes: it says what to list, what to propose and how grave a finding is. What is
//! lawful is in signed baselines alone, so that a profile file on a node relaxes nothing.

mod load;
mod parse;
mod place;
mod written;

pub use load::{BUILT_IN, ProfileError};
pub use parse::parse;
pub use place::{Kind, Layout, Nowhere, OnDisk, Pattern, Place, Surroundings};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::attribution::attack::Role;
use crate::baseline::Publish;
use crate::model::{Class, HostPath, Severity, ViolationKind};

/// What is known of one part of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The mesh it is part of: `istio`, `linkerd`, ...
    pub mesh: String,
    /// For people.
    pub about: String,
    /// Project and version it was read from.
    pub read_from: String,
    /// Whether it was seen to run or only read.
    pub status: Status,
    /// Names of its containers in their pods.
    pub containers: Vec<String>,
    /// Its volumes bear names that others use too: they count in pods with one of these containers only.
    pub only_with_container: bool,
    /// What its certificates are named by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// What it runs.
    pub executables: Vec<Executable>,
    /// Processes of its own containers that write.
    pub writers: Vec<PodWriter>,
    /// Its files.
    pub files: Vec<FileRule>,
    /// The file it came from; `built-in`.
    pub origin: String,
}

/// Whether what a profile says was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// On a running mesh.
    Run,
    /// In documents and sources only.
    Read,
}

impl Status {
    /// For people.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Read => "read, not run",
        }
    }
}

/// An executable of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Executable {
    /// Where it is in its container.
    pub path: String,
    /// For people.
    pub about: String,
    /// Its name is its own: a file of that name is it wherever it lies.
    pub anywhere: bool,
}

/// A process of a container that lawfully writes files of its own pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodWriter {
    /// What files call it.
    pub name: String,
    /// Its executable in the container.
    pub exe: String,
    /// In which containers of the pod.
    pub containers: Vec<String>,
}

/// How the files that a pattern means may change, and what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileRule {
    /// Which files: this one and all below it, unless another rule says more of them.
    pub path: Pattern,
    /// For people.
    pub about: String,
    /// How they may change.
    pub class: Class,
    /// What they are to the mesh.
    pub role: Role,
    /// Who writes them: `kubelet`, `runtime`, or a writer of the profile.
    pub writers: Vec<String>,
    /// How often.
    pub rate: Rate,
    /// Whether a publish may reach a running pod.
    pub publish: Publish,
    /// How content is compared.
    pub compare: Compare,
    /// Severities other than the table's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub severity: BTreeMap<ViolationKind, Severity>,
}

/// How often something changes lawfully.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Not while it is there.
    Never,
    /// At each start of its container.
    AtStart,
    /// When somebody changes what it comes from.
    OnChange,
    /// By itself, about so often.
    Every(Duration),
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::AtStart => f.write_str("at-start"),
            Self::OnChange => f.write_str("on-change"),
            Self::Every(every) => {
                let seconds = every.as_secs();
                let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm')];
                let unit = units.into_iter().find(|(unit, _)| seconds >= *unit && seconds % unit == 0);
                let (unit, letter) = unit.unwrap_or((1, 's'));
                write!(f, "{}{letter}", seconds / unit)
            }
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// How content is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compare {
    /// Byte by byte.
    Bytes,
    /// A PEM bundle, as a set of certificates.
    Pem,
    /// A chain of CNI plugins, entry by entry.
    Cni,
    /// JSON, by value.
    Json,
    /// YAML, by value.
    Yaml,
}

impl Compare {
    /// The word in profiles.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Pem => "pem",
            Self::Cni => "cni",
            Self::Json => "json",
            Self::Yaml => "yaml",
        }
    }
}

/// A rule that says something of a place, and the profile it is in.
#[derive(Debug, Clone, Copy)]
pub struct Match<'p> {
    /// Of which mesh.
    pub profile: &'p Profile,
    /// What it says.
    pub rule: &'p FileRule,
}

/// The profiles in use: ours, and those of the config.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Profiles {
    all: Vec<Arc<Profile>>,
}

/// Their names and where they came from: all that they say is for `meshseal profile show`.
impl fmt::Debug for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|profile| (&profile.name, &profile.origin))).finish()
    }
}

impl Profiles {
    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.all.iter().map(AsRef::as_ref)
    }

    /// The profile of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Profile> {
        self.iter().find(|profile| profile.name == name)
    }

    /// The rule that says most of a place: the one that names the most of its path.
    #[must_use]
    pub fn rule(&self, place: &Place, around: &dyn Surroundings) -> Option<Match<'_>> {
        let rules =
            self.iter().flat_map(|profile| profile.files.iter().map(move |rule| Match { profile, rule }));
        let mut found: Option<(place::Rank, Match<'_>)> = None;
        for candidate in rules {
            let Some(rank) = candidate.rule.path.rank(place, around) else { continue };
            if found.as_ref().is_some_and(|(best, _)| *best >= rank)
                || !candidate.profile.is_in(place, around)
            {
                continue;
            }
            found = Some((rank, candidate));
        }
        found.map(|(_, candidate)| candidate)
    }

    /// The rule for a path of the host.
    #[must_use]
    pub fn rule_of(&self, path: &HostPath, layout: &Layout, around: &dyn Surroundings) -> Option<Match<'_>> {
        self.rule(&Place::of(path, layout)?, around)
    }

    /// What a file or directory of the host is to a mesh: as a profile says, or else as its path tells.
    #[must_use]
    pub fn role_of(&self, path: &HostPath, layout: &Layout, around: &dyn Surroundings) -> Role {
        let place = Place::of(path, layout);
        if let Some(found) = place.as_ref().and_then(|place| self.rule(place, around)) {
            return found.rule.role;
        }
        match place {
            Some(Place::CniConf(_)) => Role::CniConfig,
            Some(Place::CniBin(_)) => Role::CniBinary,
            _ if self.executable(path.as_bytes()).is_some() && !Role::of(path).is_layer() => Role::Binary,
            _ => Role::of(path),
        }
    }

    /// Whose executable this is: by its whole path in a container, or else by its file's name alone. Not of profiles
    /// whose names are not their own.
    #[must_use]
    pub fn executable(&self, path: &[u8]) -> Option<(&Profile, &Executable)> {
        let name = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
        let all = || {
            let own = self.iter().filter(|profile| !profile.only_with_container);
            own.flat_map(|profile| profile.executables.iter().map(move |executable| (profile, executable)))
        };
        let called = name(path)?;
        all().find(|(_, known)| known.path.as_bytes() == path).or_else(|| {
            all().find(|(_, known)| known.anywhere && name(known.path.as_bytes()).as_ref() == Some(&called))
        })
    }

    /// Whether a reference to an image has a mesh's name in it, or its proxy's.
    #[must_use]
    pub fn is_image(&self, reference: &str) -> bool {
        let named = |profile: &Profile| !profile.containers.is_empty() && reference.contains(&profile.mesh);
        reference.contains("envoy") || self.iter().any(named)
    }

    /// The mesh that a container of that name is part of. Where the name is used by several, its image has to name one of them.
    #[must_use]
    pub fn mesh_of_container(&self, container: &str, image: Option<&str>) -> Option<&str> {
        let of = self.iter().filter(|profile| profile.containers.iter().any(|name| name == container));
        let meshes: std::collections::BTreeSet<&str> = of.map(|profile| profile.mesh.as_str()).collect();
        if meshes.len() < 2 {
            return meshes.first().copied();
        }
        let mut named = meshes.iter().copied().filter(|mesh| image.is_some_and(|image| image.contains(mesh)));
        named.next().filter(|_| named.next().is_none())
    }

    /// Paths of the host that rules name, apart at their slashes, with `*` within names.
    pub fn host_paths(&self) -> impl Iterator<Item = &[Vec<u8>]> {
        self.iter().flat_map(|profile| &profile.files).filter_map(|rule| rule.path.host_parts())
    }

    /// The mesh that injects a volume of that name into any pod, of whichever kind it is.
    #[must_use]
    pub fn mesh_of_volume(&self, volume: &str) -> Option<&str> {
        let of = |profile: &&Profile| {
            !profile.only_with_container && profile.files.iter().any(|rule| rule.path.is_volume(volume))
        };
        self.iter().find(of).map(|profile| profile.mesh.as_str())
    }
}

impl Profile {
    /// Where its volumes' names are not its own, its containers tell.
    fn is_in(&self, place: &Place, around: &dyn Surroundings) -> bool {
        match place {
            Place::Volume { pod_uid, .. } if self.only_with_container => {
                self.containers.iter().any(|container| around.has_container(pod_uid, container))
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;
