//! Files of images to objects of a statement.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::blobs::Blobs;
use super::glob::Glob;
use super::layer::{self, Bounds, UNPACKED_MAX};
use super::layout::{self, Found, Platform};
use super::tree::{Inode, Kind, Tree};
use crate::baseline::object::{Publish, XattrValue};
use crate::baseline::secret::SecretKey;
use crate::baseline::statement::Unresolved;
use crate::baseline::wire::{Unique, WireImage, WireObject, WireType};
use crate::baseline::{Digest, Error};
use crate::model::{Class, HostPath};
use crate::profile::Profiles;

/// What to seal.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which files; if empty, what the image runs and what is known as a mesh's executable.
    pub globs: Vec<Glob>,
    /// Which platform.
    pub platform: Platform,
    /// References that pods name the image by, beside those its layout knows; with one image only.
    pub names: Vec<String>,
    /// The cluster's key, for secrets in an image.
    pub secret_key: Option<Arc<SecretKey>>,
    /// What tells executables of meshes from others.
    pub profiles: Arc<Profiles>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealed {
    /// To go into a statement.
    pub objects: Vec<WireObject>,
    /// What could not be sealed.
    pub unresolved: Vec<Unresolved>,
}

/// Seals files of all images in these layouts and archives.
///
/// # Errors
/// One cannot be read, is no image, is not what its digests say, or is hostile.
pub fn seal(paths: &[PathBuf], options: &Options) -> Result<Sealed, Error> {
    let mut images: BTreeMap<Digest, (usize, Found)> = BTreeMap::new();
    let blobs = paths.iter().map(|path| Blobs::open(path)).collect::<Result<Vec<_>, Error>>()?;
    let place = |at: usize| paths[at].display().to_string();
    for (at, blobs) in blobs.iter().enumerate() {
        for found in layout::images(blobs, &place(at), &options.platform)? {
            // The same image twice has the same files, and maybe more names.
            match images.get_mut(&found.digest) {
                Some((_, known)) => known.names.extend(found.names),
                None => drop(images.insert(found.digest, (at, found))),
            }
        }
    }
    if !options.names.is_empty() && images.len() != 1 {
        let expected = format!("one image to be named so, not {}", images.len());
        return Err(Error::new("bad image", options.names.join(", "), expected));
    }
    let mut sealed = Sealed::default();
    for (at, mut found) in images.into_values() {
        found.names.extend(options.names.iter().cloned());
        let tree = unpack(&blobs[at], &found, options)
            .map_err(|expected| Error::new("bad image", place(at), expected))?;
        files(&found, &tree, options, &mut sealed);
    }
    Ok(sealed)
}

fn unpack(blobs: &Blobs, found: &Found, options: &Options) -> Result<Tree, String> {
    let (mut tree, mut bounds) = (Tree::default(), Bounds { unpacked: UNPACKED_MAX });
    for layer in &found.layers {
        tree.next_layer();
        let blob = blobs.stream(&layer.name)?;
        layer::read(blob, layer, options.secret_key.as_deref(), &mut bounds, |entry| tree.take(entry))?;
    }
    Ok(tree)
}

fn files(found: &Found, tree: &Tree, options: &Options, sealed: &mut Sealed) {
    let image = WireImage {
        digest: format!("sha256:{}", hex::encode(found.digest)),
        names: found.names.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
    };
    let place = found.names.first().unwrap_or(&image.digest).clone();
    let mut list = |what: &str, reason: &str| {
        let place = format!("image {place}: {what}");
        sealed.unresolved.push(Unresolved { place, reason: reason.to_owned() });
    };
    let mut chosen: BTreeSet<&[u8]> = BTreeSet::new();
    let started = options.globs.is_empty().then(|| runs(found, tree));
    match &started {
        None => {}
        Some(None) => list("entrypoint", "no file of the image"),
        Some(Some(path)) => {
            let of_mesh = |path: &[u8]| options.profiles.executable(path).is_some();
            let named =
                tree.iter().filter(|(path, inode)| matches!(inode.kind, Kind::File(_)) && of_mesh(path));
            chosen.extend(named.map(|(path, _)| path).chain([path.as_slice()]));
        }
    }
    for glob in &options.globs {
        let before = chosen.len();
        let fits = |(path, inode): &(&[u8], &Inode)| inode.kind != Kind::Directory && glob.matches(path);
        chosen.extend(tree.iter().filter(fits).map(|(path, _)| path));
        if chosen.len() == before && !chosen.iter().any(|path| glob.matches(path)) {
            list(glob.as_str(), "no file of the image is so called");
        }
    }
    // A link is sealed with what it leads to, and the links on the way: the one without the others proves nothing.
    let mut all: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in chosen {
        match tree.follow(path) {
            Some((links, end)) => {
                all.extend(links);
                all.extend(tree.at(&end).filter(|inode| inode.kind != Kind::Directory).map(|_| end));
            }
            None => list(&shown(path), "a link that leads to nothing in the image"),
        }
        all.extend(tree.at(path).map(|_| path.to_vec()));
    }
    for path in all {
        let Some(inode) = tree.at(&path) else { continue };
        match object(&image, &path, inode) {
            Ok(object) => sealed.objects.push(object),
            Err(reason) => list(&shown(&path), reason),
        }
    }
}

fn shown(path: &[u8]) -> String {
    HostPath::new(path.to_vec()).to_string()
}

/// The path of what an image runs, as it is written.
fn runs(found: &Found, tree: &Tree) -> Option<Vec<u8>> {
    let command = found.runs.first()?;
    // runc looks for it when it is in the working directory.
    let from_there = |path: &str| {
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", found.working_dir) }
    };
    let places = if command.contains('/') {
        vec![from_there(command)]
    } else {
        found.path.split(':').map(|dir| from_there(&format!("{dir}/{command}"))).collect()
    };
    let runs = |place: &String| {
        let (_, end) = tree.follow(place.as_bytes())?;
        let inode = tree.at(&end)?;
        (matches!(inode.kind, Kind::File(_)) && inode.meta.mode & 0o111 != 0).then_some(())
    };
    places.into_iter().find(|place| runs(place).is_some()).map(String::into_bytes)
}

fn object(image: &WireImage, path: &[u8], inode: &Inode) -> Result<WireObject, &'static str> {
    let mut object = WireObject {
        class: Class::Sealed,
        files: None,
        gid: inode.meta.gid,
        hmac: None,
        identity: None,
        meaning: None,
        image: Some(image.clone()),
        mode: format!("{:04o}", inode.meta.mode),
        mounts: Vec::new(),
        names: None,
        path: HostPath::new(path.to_vec()),
        public_key: None,
        publish: Publish::InPlace,
        sha256: None,
        size: None,
        target: None,
        kind: WireType::File,
        uid: inode.meta.uid,
        workload: None,
        writers: Vec::new(),
        xattrs: Unique::default(),
    };
    match &inode.kind {
        Kind::File(Some(bytes)) => {
            object.hmac.clone_from(&bytes.hmac);
            object.public_key.clone_from(&bytes.public_key);
            object.sha256.clone_from(&bytes.sha256);
            object.size = Some(bytes.size);
        }
        Kind::File(None) => return Err("a secret: its content is sealed only with --secret-key"),
        Kind::Symlink(target) => {
            object.kind = WireType::Symlink;
            "0777".clone_into(&mut object.mode);
            object.target = Some(HostPath::new(target.clone()));
        }
        Kind::Directory | Kind::Special => return Err("neither a file nor a link"),
    }
    let xattrs = inode.meta.xattrs.iter().filter(|(name, _)| crate::baseline::counts_xattr(name.as_bytes()));
    let xattrs = xattrs.map(|(name, value)| (name.clone(), XattrValue::of(value).to_string()));
    object.xattrs = Unique(xattrs.collect());
    Ok(object)
}
