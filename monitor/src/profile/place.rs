//! Where a file lies on a node, in terms that are the same on every node: a volume of a pod, a CNI directory, or the
//! host; and patterns of such places.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::attribution::below_root;
use crate::attribution::pods::{source_kind, volume_path};
use crate::inventory::mesh::CniDirs;
use crate::inventory::procs::read;
use crate::inventory::writers::KUBELET_ROOT;
use crate::model::HostPath;
use crate::text::wildcard;

/// Longest note of a CSI volume that is read, in bytes.
const CSI_NOTE_MAX: u64 = 64 << 10;

/// Where the kubelet and the runtime keep their files on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The kubelet's directory.
    pub kubelet_root: HostPath,
    /// Directories of CNI.
    pub cni: CniDirs,
}

impl Default for Layout {
    fn default() -> Self {
        let cni = CniDirs {
            conf: vec![HostPath::from("/etc/cni/net.d")],
            bin: vec![HostPath::from("/opt/cni/bin")],
        };
        Self { kubelet_root: HostPath::from(KUBELET_ROOT), cni }
    }
}

/// A file's or directory's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a volume of a pod.
    Volume {
        /// Uid of the pod.
        pod_uid: String,
        /// What the volume is made from: `ConfigMap`, `Secret`, ...
        kind: &'static str,
        /// The volume's name, then the logical path in it: without the timestamp directory of its publisher.
        parts: Vec<Vec<u8>>,
    },
    /// In a directory of plugin chains.
    CniConf(Vec<Vec<u8>>),
    /// In a directory of plugins.
    CniBin(Vec<Vec<u8>>),
    /// Elsewhere on the host.
    Host(Vec<Vec<u8>>),
}

impl Place {
    /// The place of a path of the host; none for a volume of a kind that is not known.
    #[must_use]
    pub fn of(path: &HostPath, layout: &Layout) -> Option<Self> {
        if let Some(at) = volume_path(path, &layout.kubelet_root) {
            let kind = source_kind(&at.plugin)?;
            let mut parts = split(&at.rest);
            let published = |part: &Vec<u8>| part.starts_with(b"..");
            if kind == "CSI" && parts.first().is_some_and(|part| part == b"mount") {
                parts.remove(0);
            }
            if parts.first().is_some_and(published) {
                parts.remove(0);
            }
            parts.insert(0, at.volume.into_bytes());
            return Some(Self::Volume { pod_uid: at.pod_uid, kind, parts });
        }
        let below = |dirs: &[HostPath]| {
            dirs.iter()
                .find_map(|dir| if path == dir { Some(Vec::new()) } else { path.below(dir).map(split) })
        };
        if let Some(parts) = below(&layout.cni.conf) {
            return Some(Self::CniConf(parts));
        }
        if let Some(parts) = below(&layout.cni.bin) {
            return Some(Self::CniBin(parts));
        }
        Some(Self::Host(split(path.as_bytes())))
    }
}

fn split(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
}

/// What must be asked of the node to tell some places apart.
pub trait Surroundings {
    /// Whether the pod has a container of that name.
    fn has_container(&self, pod_uid: &str, container: &str) -> bool;

    /// The driver of a CSI volume.
    fn csi_driver(&self, pod_uid: &str, volume: &str) -> Option<String>;
}

/// Where there is no node to ask.
#[derive(Debug, Clone, Copy)]
pub struct Nowhere;

impl Surroundings for Nowhere {
    fn has_container(&self, _: &str, _: &str) -> bool {
        false
    }

    fn csi_driver(&self, _: &str, _: &str) -> Option<String> {
        None
    }
}

/// The kubelet's own directories.
#[derive(Debug, Clone, Copy)]
pub struct OnDisk<'a> {
    /// Where the node's root is mounted.
    pub host_root: &'a Path,
    /// The kubelet's directory as the host names it.
    pub kubelet_root: &'a HostPath,
}

impl OnDisk<'_> {
    fn pod(&self, pod_uid: &str) -> HostPath {
        self.kubelet_root.join(b"pods").join(pod_uid.as_bytes())
    }
}

impl Surroundings for OnDisk<'_> {
    /// The kubelet makes a directory for each container that it starts.
    fn has_container(&self, pod_uid: &str, container: &str) -> bool {
        let dir = self.pod(pod_uid).join(b"containers").join(container.as_bytes());
        below_root(self.host_root, &dir).is_dir()
    }

    fn csi_driver(&self, pod_uid: &str, volume: &str) -> Option<String> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Note {
            driver_name: String,
        }
        let dir = self.pod(pod_uid).join(b"volumes/kubernetes.io~csi").join(volume.as_bytes());
        let text = read(&below_root(self.host_root, &dir.join(b"vol_data.json")), CSI_NOTE_MAX).ok()?;
        serde_json::from_slice::<Note>(&text).ok().map(|note| note.driver_name)
    }
}

/// What a volume is made from, in a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `ConfigMap`, `Secret`, `Projected`, `DownwardAPI`, `EmptyDir`.
    Of(&'static str),
    /// A CSI volume: of that driver, or of any.
    Csi(Option<String>),
}

/// Kinds of volumes by their word in a pattern.
const KINDS: [&str; 5] = ["ConfigMap", "Secret", "Projected", "DownwardAPI", "EmptyDir"];
/// What stands in refusals.
const EXPECTED: &str = "expected /PATH of the host, or {ConfigMap}, {Secret}, {Projected}, {DownwardAPI}, {EmptyDir}, {CSI}, \
                        {CSI DRIVER} or several of them with | and /VOLUME[/FILE], or {cni.conf}/FILE or {cni.bin}/FILE; \
                        `*` within a name";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Anchor {
    Volume(Vec<Kind>),
    CniConf,
    CniBin,
    Host,
}

impl Anchor {
    /// What follows it in a place.
    fn parts<'p>(&self, place: &'p Place) -> Option<&'p [Vec<u8>]> {
        match (self, place) {
            (Self::Volume(_), Place::Volume { parts, .. })
            | (Self::CniConf, Place::CniConf(parts))
            | (Self::CniBin, Place::CniBin(parts))
            | (Self::Host, Place::Host(parts)) => Some(parts),
            _ => None,
        }
    }
}

/// Which files a rule means: a place, with `*` within names. All below it is meant too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    anchor: Anchor,
    parts: Vec<Vec<u8>>,
}

/// How much of a place a pattern names: names first, then letters.
pub(super) type Rank = (usize, usize);

impl Pattern {
    /// Longest pattern, in bytes.
    pub const MAX: usize = 1024;

    /// Reads one.
    ///
    /// # Errors
    /// It is none; the text says what one is.
    pub fn new(text: &str) -> Result<Self, String> {
        let refuse = || format!("'{}' is no place, {EXPECTED}", text.chars().take(80).collect::<String>());
        let (anchor, rest) = match text.strip_prefix('{') {
            None => (Anchor::Host, text),
            Some(rest) => {
                let (word, rest) = rest.split_once('}').ok_or_else(refuse)?;
                let anchor = match word {
                    "cni.conf" => Anchor::CniConf,
                    "cni.bin" => Anchor::CniBin,
                    kinds => {
                        Anchor::Volume(kinds.split('|').map(kind).collect::<Option<_>>().ok_or_else(refuse)?)
                    }
                };
                (anchor, rest)
            }
        };
        let plain = |part: &&str| {
            !part.is_empty()
                && *part != "."
                && *part != ".."
                && !part.contains(['\0', '{', '}'])
                && part.len() <= 255
        };
        let parts = rest.strip_prefix('/').ok_or_else(refuse)?.split('/').collect::<Vec<_>>();
        if text.len() > Self::MAX || !parts.iter().all(plain) {
            return Err(refuse());
        }
        let parts = parts.into_iter().map(|part| part.as_bytes().to_vec()).collect();
        Ok(Self { text: text.to_owned(), anchor, parts })
    }

    /// Whether a volume of that name is meant, or something in it, whatever its kind. A pattern that takes any name means
    /// none by it.
    #[must_use]
    pub fn is_volume(&self, volume: &str) -> bool {
        let named = |first: &[u8]| first != b"*" && wildcard(first, volume.as_bytes());
        matches!(self.anchor, Anchor::Volume(_)) && self.parts.first().is_some_and(|first| named(first))
    }

    /// Of a path of the host, what stands between its slashes.
    pub(super) fn host_parts(&self) -> Option<&[Vec<u8>]> {
        (self.anchor == Anchor::Host).then_some(self.parts.as_slice())
    }

    /// Whether this means something in a volume, and not the volume itself.
    pub(super) fn is_in_volume(&self) -> bool {
        matches!(self.anchor, Anchor::Volume(_)) && self.parts.len() > 1
    }

    /// Whether `other` means the volume that this means something in.
    pub(super) fn is_in(&self, other: &Self) -> bool {
        self.anchor == other.anchor && other.parts.len() == 1 && self.parts.first() == other.parts.first()
    }

    /// How much it names of a place that it means.
    pub(super) fn rank(&self, place: &Place, around: &dyn Surroundings) -> Option<Rank> {
        let parts = self.anchor.parts(place)?;
        let meant = self.parts.len() <= parts.len()
            && self.parts.iter().zip(parts).all(|(pattern, name)| wildcard(pattern, name));
        if !meant || !self.is_kind(place, around) {
            return None;
        }
        let letters = self.parts.iter().flatten().filter(|byte| !matches!(byte, b'*' | b'?')).count();
        Some((self.parts.len(), letters))
    }

    fn is_kind(&self, place: &Place, around: &dyn Surroundings) -> bool {
        let (Anchor::Volume(kinds), Place::Volume { pod_uid, kind, parts }) = (&self.anchor, place) else {
            return true;
        };
        kinds.iter().any(|wanted| match wanted {
            Kind::Of(word) => word == kind,
            Kind::Csi(None) => *kind == "CSI",
            Kind::Csi(Some(driver)) => {
                let volume = parts.first().and_then(|volume| std::str::from_utf8(volume).ok());
                *kind == "CSI"
                    && volume.and_then(|volume| around.csi_driver(pod_uid, volume)).as_ref() == Some(driver)
            }
        })
    }
}

fn kind(word: &str) -> Option<Kind> {
    let (word, driver) = word.split_once(' ').map_or((word, None), |(word, driver)| (word, Some(driver)));
    match (word, driver) {
        ("CSI", None) => Some(Kind::Csi(None)),
        ("CSI", Some(driver)) if !driver.is_empty() => Some(Kind::Csi(Some(driver.to_owned()))),
        (_, None) => KINDS.into_iter().find(|known| *known == word).map(Kind::Of),
        _ => None,
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
