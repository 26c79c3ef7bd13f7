//! Baselines from container images: OCI layouts (directories and tar archives) and `docker save` archives.
//!
//! - [`blobs`]: the files of a layout or archive, by name, without unpacking it; [`layout`]: which manifest is for the
//!   platform, and what it is made of; [`layer`]: one layer as a stream, decompressed and checked; `members`: that split up, [`entry`]: its
//!   entries, `sparse`: those with holes; [`tree`]: the layers one over the other, with whiteouts, links followed inside the root only;
//!   [`glob`]: which files; [`mod@seal`]: objects of a statement.
//!
//! An archive is hostile input: digests are checked, names cannot leave the root, sizes and counts are bounded, and
//! nothing is written or kept in memory but names and digests.
//! Formats: OCI image-spec 1.1 (`image-layout.md`, `layer.md`), docker's image tarball v1.2, pax(1).

pub mod blobs;
pub mod entry;
pub mod glob;
pub mod layer;
pub mod layout;
mod members;
pub mod seal;
mod sparse;
pub mod tree;

pub use seal::{Options, seal};

/// Takes a layer, whatever its digests.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_layer(bytes: &[u8]) {
    let described = layout::LayerBlob { name: "layer".into(), digest: None, size: None, diff_id: [0; 32] };
    let (mut bounds, mut tree) = (layer::Bounds { unpacked: 16 << 20 }, tree::Tree::default());
    tree.next_layer();
    crate::fuzz::used(layer::read(Box::new(bytes), &described, None, &mut bounds, |entry| tree.take(entry)));
    for (path, _) in tree.iter() {
        assert!(path.starts_with(b"/") && !path.split(|b| *b == b'/').any(|part| part == b".."));
        crate::fuzz::used(tree.follow(path));
    }
}

/// Takes an archive, as far as the images in it.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_archive(bytes: &[u8]) {
    use std::io::Write as _;

    let memory = rustix::fs::memfd_create(c"archive", rustix::fs::MemfdFlags::CLOEXEC);
    let Ok(mut file) = memory.map(std::fs::File::from) else { return };
    let whole = file.write_all(bytes).and_then(|()| std::io::Seek::rewind(&mut file));
    if whole.is_ok()
        && let Ok(blobs) = blobs::Blobs::archive(file)
        && let Ok(platform) = "linux/amd64".parse()
    {
        crate::fuzz::used(layout::images(&blobs, "archive", &platform));
    }
}
