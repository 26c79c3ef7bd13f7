//! The layers of an overlay: what the files of a container are made of, by the options of its mount.
//!
//! Paths in the options are those of whoever mounted it. A runtime that has too many layers for one line names them relative
//! to a directory that it does not tell; containerd and CRI-O then mean the one that holds all of them, two above the upper
//! layer's (`snapshots/42/fs`, `overlay/<id>/diff`).

use super::mounts::unescape;
use crate::model::HostPath;

/// Most layers of one mount: the kernel takes 500.
const LAYERS_MAX: usize = 512;

/// The layers of one mount of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// Directory of the overlay that is mounted.
    root: HostPath,
    /// Where it is mounted.
    point: HostPath,
    /// Where changes go.
    upper: Option<HostPath>,
    /// What is below, topmost first.
    lower: Vec<HostPath>,
}

impl Layers {
    /// Those of the mount with that number, from the text of a `mountinfo` file. `None` if it is no overlay.
    #[must_use]
    pub fn of_mount(mountinfo: &[u8], id: u64) -> Option<Self> {
        let id = id.to_string();
        let is_it =
            |line: &&[u8]| line.strip_prefix(id.as_bytes()).is_some_and(|rest| rest.starts_with(b" "));
        let line = mountinfo.split(|byte| *byte == b'\n').find(is_it)?;
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) =
            (HostPath::new(unescape(fields.next()?)), HostPath::new(unescape(fields.next()?)));
        let mut after_dash = fields.skip_while(|field| *field != b"-").skip(1);
        if after_dash.next()? != b"overlay" {
            return None;
        }
        let options = after_dash.nth(1)?;
        let mut layers = Self { root, point, upper: None, lower: Vec::new() };
        let mut named = Vec::new();
        for option in options.split(|byte| *byte == b',') {
            let Some(at) = option.iter().position(|byte| *byte == b'=') else { continue };
            let value = unescape(&option[at + 1..]);
            match &option[..at] {
                b"upperdir" => layers.upper = Some(HostPath::new(value)),
                b"lowerdir" => named.extend(parted(&value)),
                // Since 6.5 they can be given one by one.
                b"lowerdir+" => named.push(value),
                _ => {}
            }
        }
        let around = layers.upper.as_ref().and_then(HostPath::parent).and_then(|dir| dir.parent());
        layers.lower = named
            .into_iter()
            .take(LAYERS_MAX)
            .filter_map(|name| match name.first() {
                None => None,
                Some(b'/') => Some(HostPath::new(name)),
                Some(_) => around.as_ref().map(|dir| dir.join(&name)),
            })
            .collect();
        Some(layers)
    }

    /// Where changes go, if there is such a place.
    #[must_use]
    pub const fn upper(&self) -> Option<&HostPath> {
        self.upper.as_ref()
    }

    /// Where the file that is seen at `path`, through this mount, lies in the upper layer; and where it may lie in those
    /// below, topmost first.
    #[must_use]
    pub fn places(&self, path: &HostPath) -> Option<(Option<HostPath>, Vec<HostPath>)> {
        let below = path.below(&self.point).filter(|rest| !rest.is_empty())?;
        let whole = self.root.join(below);
        let inside = whole.as_bytes().strip_prefix(b"/").unwrap_or(whole.as_bytes());
        let upper = self.upper.as_ref().map(|layer| layer.join(inside));
        Some((upper, self.lower.iter().map(|layer| layer.join(inside)).collect()))
    }

    /// Where what lies at `path` in one of the layers is seen through this mount, unless another layer hides it; and whether that layer is
    /// the one that changes go to.
    #[must_use]
    pub fn seen(&self, path: &HostPath) -> Option<(HostPath, bool)> {
        let layers = self.upper.iter().map(|layer| (layer, true));
        layers.chain(self.lower.iter().map(|layer| (layer, false))).find_map(|(layer, changes)| {
            let inside = HostPath::new(b"/".to_vec()).join(path.below(layer)?);
            Some((self.point.join(inside.below(&self.root)?), changes))
        })
    }
}

/// Parts a list at its colons. One that belongs to a name stands behind a backslash.
fn parted(list: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), list.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => parts.push(std::mem::take(&mut part)),
            b'\\' => part.extend(bytes.next()),
            _ => part.push(*byte),
        }
    }
    parts.push(part);
    parts
}

/// What the fuzzers give to the reader of an overlay's options: a `mountinfo` text, of whose first mounts all is asked.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    for id in [1, 70, 71, 72] {
        let Some(layers) = Layers::of_mount(bytes, id) else { continue };
        assert!(layers.lower.len() <= LAYERS_MAX, "more layers than the kernel takes");
        let inside = layers.point.join(b"bin/x");
        if let Some((upper, lower)) = layers.places(&inside) {
            for place in upper.iter().chain(&lower).take(8) {
                crate::fuzz::used(layers.seen(place));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Layers, parted};
    use crate::model::HostPath;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
70 22 0:50 / /run/b/1/rootfs rw - overlay overlay rw,lowerdir=/s/2/fs:/s/1/fs,upperdir=/s/3/fs,workdir=/s/3/work,xino=off
71 22 0:51 / /m rw - overlay overlay rw,lowerdir=2/fs:1/fs,upperdir=/s/4/fs,workdir=/s/4/work
72 22 0:52 /etc /m\\040n rw - overlay o rw,lowerdir+=/a\\072b,lowerdir+=/c
7 1 0:3 / /x rw - tmpfs tmpfs rw
";

    fn places(id: u64, path: &str) -> Option<(Option<String>, Vec<String>)> {
        let (upper, lower) = Layers::of_mount(TABLE, id)?.places(&HostPath::from(path))?;
        let text = |path: &HostPath| path.to_string();
        Some((upper.as_ref().map(text), lower.iter().map(text).collect()))
    }

    #[test]
    fn a_file_of_a_layer_is_seen_through_the_mount() {
        let seen = |id: u64, path: &str| {
            let (path, changes) = Layers::of_mount(TABLE, id)?.seen(&HostPath::from(path))?;
            Some((path.to_string(), changes))
        };
        assert_eq!(seen(70, "/s/3/fs/lib/x.so"), Some(("/run/b/1/rootfs/lib/x.so".to_owned(), true)));
        assert_eq!(seen(70, "/s/1/fs/lib/x.so"), Some(("/run/b/1/rootfs/lib/x.so".to_owned(), false)));
        assert_eq!(seen(71, "/s/2/fs/x"), Some(("/m/x".to_owned(), false)));
        assert_eq!(seen(72, "/c/etc/x"), Some(("/m n/x".to_owned(), false)));
        assert_eq!(seen(72, "/c/usr/x"), None);
        assert_eq!(seen(70, "/s/9/fs/lib/x.so"), None);
    }

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn a_file_is_found_in_each_layer() {
        let expected = (Some("/s/3/fs/bin/x".to_owned()), texts(&["/s/2/fs/bin/x", "/s/1/fs/bin/x"]));
        assert_eq!(places(70, "/run/b/1/rootfs/bin/x"), Some(expected));
        assert_eq!(places(70, "/run/b/1/rootfs"), None);
        assert_eq!(places(70, "/run/b/2/rootfs/bin/x"), None);
        assert_eq!(places(22, "/bin/x"), None);
        assert_eq!(places(7, "/x/y"), None);
        assert_eq!(places(73, "/x"), None);
    }

    #[test]
    fn layers_that_are_named_otherwise_are_found() {
        let expected = (Some("/s/4/fs/x".to_owned()), texts(&["/s/2/fs/x", "/s/1/fs/x"]));
        assert_eq!(places(71, "/m/x"), Some(expected));
        assert_eq!(places(72, "/m n/x"), Some((None, texts(&["/a:b/etc/x", "/c/etc/x"]))));
        assert_eq!(parted(br"/a\:b:/c::/d"), [b"/a:b".to_vec(), b"/c".to_vec(), Vec::new(), b"/d".to_vec()]);
    }
}
