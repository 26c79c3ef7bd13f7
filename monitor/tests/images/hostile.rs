//! Archives and layouts that mean harm.

use std::fs;
use std::os::unix::fs::symlink;

use super::archive::{Tar, gzip, sha256};
use super::layout::{Bench, Image, image};

/// What a map of a sparse file must be.
const MAP: &str = "a map in order, within the file, of as many bytes as there are; the sparse file /a";

#[test]
fn archives_that_mean_harm_are_refused_in_one_line() {
    let bench = Bench::new();
    let mut absurd = Tar::default();
    absurd.header(b'0', "big", 0o644, "", 0o77_777_777_777);
    let long = vec![b'x'; 3 << 20];
    let mut another_checksum = Tar::default().file("a", 0o644, b"x").finish();
    another_checksum[0] = b'b';
    let size: (&str, &[u8]) = ("size", b"9");
    let sparse = |records: &[(&str, &[u8])], bytes: &[u8]| {
        let records: Vec<_> =
            records.iter().map(|(key, value)| (format!("GNU.sparse.{key}"), *value)).collect();
        let records: Vec<_> = records.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        Tar::default().records(&records).file("a", 0o644, bytes).finish()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "path upwards",
            Tar::default().file("../etc/passwd", 0o644, b"x").finish(),
            "paths inside the image",
        ),
        (
            "path upwards within",
            Tar::default().file("a/../../b", 0o644, b"x").finish(),
            "paths inside the image",
        ),
        ("link upwards", Tar::default().hardlink("a", "../../etc/shadow").finish(), "paths inside the image"),
        (
            "link to nothing",
            Tar::default().hardlink("a", "etc/shadow").finish(),
            "a hard link /a to a file of the image",
        ),
        (
            "name twice",
            Tar::default().file("a", 0o644, b"x").file("./a", 0o644, b"y").finish(),
            "/a comes twice",
        ),
        (
            "links in circles",
            Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", 0o644, b"").finish(),
            "directories that end somewhere",
        ),
        (
            "file as directory",
            Tar::default().file("a", 0o644, b"x").file("a/b", 0o644, b"y").finish(),
            "directories only above files",
        ),
        ("absurd size", absurd.finish(), "as many bytes of each file"),
        (
            "a volume's second part",
            Tar::default().entry(b'M', "a", 0o644, "", b"x").finish(),
            "is something else",
        ),
        (
            "a map without a length",
            sparse(&[("numblocks", b"0"), ("map", b"")], b""),
            "the length of the file",
        ),
        ("a map that overlaps", sparse(&[size, ("numblocks", b"2"), ("map", b"0,3,2,3")], &[b'x'; 6]), MAP),
        ("a map of less than there is", sparse(&[size, ("numblocks", b"1"), ("map", b"0,3")], b"xxxx"), MAP),
        ("a map of more than there is", sparse(&[size, ("numblocks", b"1"), ("map", b"0,4")], b"xxx"), MAP),
        ("a map beyond the end", sparse(&[size, ("numblocks", b"1"), ("map", b"7,3")], b"xxx"), MAP),
        ("a map with another count", sparse(&[size, ("numblocks", b"2"), ("map", b"0,3")], b"xxx"), MAP),
        ("half a pair", sparse(&[size, ("numblocks", b"1"), ("map", b"0,3,5")], b"xxx"), MAP),
        ("no numbers", sparse(&[size, ("numblocks", b"1"), ("map", b"0,-3")], b"xxx"), "length key=value"),
        ("another version", sparse(&[size, ("major", b"2"), ("minor", b"0")], b"xxx"), "0.0, 0.1 or 1.0"),
        (
            "a sparse bomb",
            sparse(&[("size", b"1000000000000"), ("numblocks", b"0"), ("map", b"")], b""),
            "unpacks to more than",
        ),
        (
            "a small sparse bomb",
            sparse(&[("size", b"100000000"), ("numblocks", b"0"), ("map", b"")], b""),
            "a decompression bomb",
        ),
        (
            "a map in the data that is none",
            sparse(&[("realsize", b"9"), ("major", b"1"), ("minor", b"0")], &[b'x'; 512]),
            MAP,
        ),
        (
            "a map in the data that is cut off",
            sparse(&[("realsize", b"9"), ("major", b"1"), ("minor", b"0")], b"1\n0\n"),
            "tar archive",
        ),
        (
            "a map in the data without end",
            sparse(&[("realsize", b"9"), ("major", b"1"), ("minor", b"0")], "1\n".repeat(1 << 20).as_bytes()),
            MAP,
        ),
        (
            "an endless map in the data",
            sparse(
                &[("realsize", b"9"), ("major", b"1"), ("minor", b"0")],
                ["9999999999\n".to_owned(), "1\n".repeat(1 << 20)].concat().as_bytes(),
            ),
            "of headers before one entry",
        ),
        ("an unsorted map", Tar::default().sparse("a", 9, &[(5, 1), (0, 1)], b"xx").finish(), MAP),
        ("a map of GNU tar that lies", Tar::default().sparse("a", 9, &[(0, 3)], b"xxxx").finish(), MAP),
        (
            "sparse, in no format",
            Tar::default().entry(b'S', "a", 0o644, "", b"x").finish(),
            "a header of GNU tar",
        ),
        (
            "more in pax than there is",
            Tar::default().pax("size", b"9999").file("a", 0o644, b"x").finish(),
            "as many bytes of each file",
        ),
        (
            "half an end",
            [&[0; 512][..], &Tar::default().file("a", 0o644, b"x").finish()].concat(),
            "half of an end",
        ),
        ("another checksum", another_checksum, "that its checksum is not of"),
        (
            "another path in pax",
            Tar::default().pax("path", b"../a").file("a", 0o644, b"x").finish(),
            "paths inside the image",
        ),
        (
            "deep",
            Tar::default().pax("path", "d/".repeat(101).as_bytes()).file("a", 0o644, b"x").finish(),
            "one in the other",
        ),
        (
            "whiteout twice",
            Tar::default().file("a/.wh.b", 0o644, b"").file("./a/.wh.b", 0o644, b"").finish(),
            "comes twice",
        ),
        (
            "opaque twice",
            Tar::default().file("a/.wh..wh..opq", 0o644, b"").file("a/.wh..wh..opq", 0o644, b"").finish(),
            "comes twice",
        ),
        (
            "another way to the same name",
            Tar::default().symlink("l", "d").file("d/a", 0o644, b"x").file("l/a", 0o644, b"y").finish(),
            "comes twice",
        ),
        (
            "endless header",
            Tar::default().pax("SCHILY.xattr.user.x", &long).file("a", 0o644, b"x").finish(),
            "of headers before one entry",
        ),
        (
            "cut off",
            Tar::default().file("a", 0o644, &[b'x'; 2000]).finish()[..1024].to_vec(),
            "as many bytes of each file",
        ),
        ("no tar", vec![b'x'; 4096], "tar archive"),
        ("device", Tar::default().entry(b'V', "volume", 0o644, "", &[]).finish(), "is something else"),
    ];
    for (at, (what, layer, expected)) in cases.into_iter().enumerate() {
        let name = format!("l{at}");
        Image::of(vec![(gzip(&layer), layer)]).layout(&bench.path(&name));
        let stderr = bench.refused(what, &name);
        assert!(stderr.contains(expected), "{what}: {stderr}");
    }

    // A bomb: 256 MiB of nothing in a few hundred kilobytes.
    let bomb = Tar::default().file("zeros", 0o644, &vec![0; 256 << 20]).finish();
    Image::of(vec![(gzip(&bomb), bomb)]).layout(&bench.path("bomb"));
    assert!(bench.refused("bomb", "bomb").contains("a decompression bomb"));

    // Bytes other than the digests say.
    let good = image();
    good.layout(&bench.path("changed"));
    let blob = bench.path("changed/blobs/sha256").join(sha256(&good.layers[0].0));
    let mut bytes = fs::read(&blob).unwrap();
    let at = bytes.iter().position(|byte| *byte == b'e').unwrap();
    bytes[at] = b'f';
    fs::write(&blob, &bytes).unwrap();
    let said = bench.refused("changed", "changed");
    assert!(said.contains("digest") || said.contains("tar archive"), "{said}");

    // The archive itself.
    let endless =
        Tar::default().entry(b'L', "././@LongLink", 0o644, "", &vec![b'x'; 1 << 20]).file("a", 0o644, b"x");
    fs::write(bench.path("endless.tar"), endless.finish()).unwrap();
    assert!(bench.refused("endless", "endless.tar").contains("of headers before one entry"));
    let outer = Tar::default().file("../../x", 0o644, b"x").finish();
    fs::write(bench.path("outer.tar"), outer).unwrap();
    assert!(bench.refused("outer", "outer.tar").contains("names inside the archive"));
    let twice = Tar::default().file("index.json", 0o644, b"{}").file("./index.json", 0o644, b"{}").finish();
    fs::write(bench.path("twice.tar"), twice).unwrap();
    assert!(bench.refused("twice", "twice.tar").contains("index.json comes twice"));
    // A layout's link out of the layout leads nowhere.
    good.layout(&bench.path("linked"));
    fs::remove_file(bench.path("linked/index.json")).unwrap();
    symlink(bench.path("changed/index.json"), bench.path("linked/index.json")).unwrap();
    bench.refused("linked", "linked");
}
