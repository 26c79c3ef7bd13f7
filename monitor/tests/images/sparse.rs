//! Files with holes, and sizes beyond a header.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::Command;

use serde_json::{Value, json};

use super::archive::{Tar, gzip, sha256};
use super::layout::{Bench, Image};

/// Files with holes, in each format that GNU tar has for them, against the files themselves.
#[test]
fn sparse_files_are_sealed_with_their_holes() {
    let bench = Bench::new();
    let root = bench.path("root");
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    let long = "n".repeat(150);
    let mut expected = Vec::new();
    // More pieces than a header has room for, and than the block after it; holes at both ends; nothing else; none; a small one.
    for (name, pieces, length) in [
        ("usr/bin/envoy", (0..90).map(|at| at * 8192).collect::<Vec<_>>(), 90 * 8192 + 5),
        ("ends", vec![40_960], 400_000),
        ("hole", vec![], 500_000),
        ("full", vec![0], 512),
        ("small", vec![1024, 8192], 10_000),
        (&long, vec![512], 12_288),
    ] {
        let mut bytes = vec![0; length];
        for (at, piece) in pieces.iter().enumerate() {
            bytes[*piece..piece + 512].fill(b'a' + u8::try_from(at % 26).unwrap());
        }
        // With holes on the disk: tar looks for none in a file that takes as much there as it is long.
        let file = fs::File::create(root.join(name)).unwrap();
        file.set_len(length as u64).unwrap();
        for piece in pieces {
            file.write_all_at(&bytes[piece..piece + 512], piece as u64).unwrap();
        }
        file.sync_all().unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        expected.push((format!("/{name}"), sha256(&bytes), length as u64));
    }
    expected.push(("/after".to_owned(), sha256(b"after"), 5));
    fs::write(root.join("after"), "after").unwrap();
    expected.sort();
    let formats = [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ];
    for (at, format) in formats.into_iter().enumerate() {
        // Where exactly the holes are is found by reading: a file system has larger blocks.
        let args = ["--sparse", "--hole-detection=raw", "--sort=name", "-cf", "layer.tar", "-C", "root", "."];
        let tar = Command::new("tar").args(format).args(args).current_dir(bench.dir.path()).status();
        assert!(tar.unwrap().success(), "{format:?}");
        let layer = fs::read(bench.path("layer.tar")).unwrap();
        assert!(layer.len() < 200_000, "{format:?}: {} bytes, of which none is a hole", layer.len());
        let name = format!("sparse{at}");
        Image::of(vec![(gzip(&layer), layer)]).layout(&bench.path(&name));
        let objects = bench.seal(&name, &["/**"]);
        let text = |object: &Value, key: &str| object[key].as_str().unwrap().to_owned();
        let sealed: Vec<_> = objects
            .iter()
            .map(|object| (text(object, "path"), text(object, "sha256"), object["size"].as_u64().unwrap()))
            .collect();
        assert_eq!(sealed, expected, "{format:?}");
    }
}

/// What the pax records say of a file's size goes before its header, as for files of 8 GiB and more; a link's size is of nothing that follows.
#[test]
fn the_size_is_what_pax_records_say() {
    let bench = Bench::new();
    let mut layer = Tar::default().pax("size", b"600").sized("a", 0, &[b'a'; 600]);
    layer = layer.pax("size", b"5").sized("b", 0o77_777_777_777, b"bytes");
    layer.header(b'2', "link", 0o777, "a", 512);
    // The last of two headers counts alone, and an empty value leaves what the entry says.
    let layer = layer.pax("size", b"9").records(&[("path", b"")]).file("c", 0o644, b"c").finish();
    Image::of(vec![(gzip(&layer), layer)]).layout(&bench.path("layout"));
    let objects = bench.seal("layout", &["/**"]);
    let told: Vec<_> =
        objects.iter().map(|object| (&object["path"], &object["sha256"], &object["size"])).collect();
    let file = |path: &str, bytes: &[u8]| (json!(path), json!(sha256(bytes)), json!(bytes.len()));
    let expected = [
        file("/a", &[b'a'; 600]),
        file("/b", b"bytes"),
        file("/c", b"c"),
        (json!("/link"), Value::Null, Value::Null),
    ];
    assert_eq!(told, expected.iter().map(|(path, sha256, size)| (path, sha256, size)).collect::<Vec<_>>());
}
