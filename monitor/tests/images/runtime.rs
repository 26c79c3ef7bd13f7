//! What runtimes make of entries that can be read in several ways. Expected is what containerd 1.6 laid down on overlayfs, and where nothing
//! else is said what umoci 0.4.7 did, too.

use serde_json::{Value, json};

use super::archive::{CAPABILITY, Tar, sha256};
use super::layout::{Bench, Image, paths};

fn of(layers: Vec<Tar>) -> Image {
    let layers = layers.into_iter().map(Tar::finish);
    Image::of(layers.map(|layer| (layer.clone(), layer)).collect())
}

/// Path, target, content and attributes of all that is sealed of an image.
fn sealed(layers: Vec<Tar>) -> Vec<(Value, Value, Value, Value)> {
    let bench = Bench::new();
    of(layers).layout(&bench.path("layout"));
    let objects = bench.seal("layout", &["/**"]);
    let fields = |mut object: Value| {
        let [path, target, sha256, xattrs] =
            ["path", "target", "sha256", "xattrs"].map(|field| object[field].take());
        (path, target, sha256, xattrs)
    };
    objects.into_iter().map(fields).collect()
}

fn file(path: &str, bytes: &[u8]) -> (Value, Value, Value, Value) {
    (json!(path), Value::Null, json!(sha256(bytes)), Value::Null)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    format!("base64:{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn link(path: &str, target: &str) -> (Value, Value, Value, Value) {
    (json!(path), json!(target), Value::Null, Value::Null)
}

/// umoci follows the link.
#[test]
fn what_comes_below_a_link_of_a_lower_layer_makes_a_directory() {
    let lower =
        || Tar::default().file("e/f", 0o644, b"f").symlink("d", "e").symlink("g", "e").file("h", 0o644, b"h");
    let upper = Tar::default().file("d/n", 0o644, b"n").file("g/.wh.f", 0o644, b"").file("h/i", 0o644, b"i");
    let upper = upper.symlink("k", "e").file("k/l", 0o644, b"l");
    assert_eq!(
        sealed(vec![lower(), upper]),
        [file("/d/n", b"n"), file("/e/f", b"f"), file("/e/l", b"l"), file("/h/i", b"i"), link("/k", "e")]
    );
    // In one layer it is one directory.
    let alone = lower().file("g/n", 0o644, b"n");
    let all = [link("/d", "e"), file("/e/f", b"f"), file("/e/n", b"n"), link("/g", "e"), file("/h", b"h")];
    assert_eq!(sealed(vec![alone]), all);
}

#[test]
fn a_hard_link_takes_a_capability_away_unless_it_brings_it() {
    const NAME: &str = "SCHILY.xattr.security.capability";
    let layer = || {
        let user = ("SCHILY.xattr.user.a", b"1".as_slice());
        Tar::default().records(&[(NAME, &CAPABILITY), user]).file("ping", 0o755, b"ping")
    };
    let value = base64(&CAPABILITY);
    let xattrs = |layer: Tar| sealed(vec![layer]).into_iter().map(|(.., xattrs)| xattrs).collect::<Vec<_>>();
    let (without, with) =
        (json!({"user.a": base64(b"1")}), json!({"security.capability": value, "user.a": base64(b"1")}));
    let found = xattrs(layer().hardlink("ping4", "ping"));
    assert_eq!(found, [without.clone(), without]);
    assert_eq!(xattrs(layer().pax(NAME, &CAPABILITY).hardlink("ping4", "ping")), [with.clone(), with]);
}

/// The kernel tells one of the initial user namespace without that namespace's root; and no runtime sets what is trusted's.
#[test]
fn attributes_are_sealed_as_they_are_read_back() {
    let mut third = [CAPABILITY.as_slice(), &[0; 4]].concat();
    third[3] = 3;
    let (name, trusted) =
        ("SCHILY.xattr.security.capability", ("SCHILY.xattr.trusted.overlay.opaque", b"y".as_slice()));
    let layer = Tar::default().records(&[(name, &third), trusted]).file("ping", 0o755, b"ping");
    let [(.., xattrs)] = <[_; 1]>::try_from(sealed(vec![layer])).unwrap();
    assert_eq!(xattrs, json!({"security.capability": base64(&CAPABILITY)}));
}

#[test]
fn headers_are_read_as_go_reads_them() {
    let mut layer = Tar::default();
    // A directory of the time before there was a type for it has no data, whatever its size.
    layer.header(0, "old/", 0o755, "", 1024);
    let mut layer = layer.file("old/x", 0o644, b"x");
    // What comes before a header for all is gone.
    layer = layer.pax("path", b"elsewhere").entry(b'g', "g", 0o644, "", b"").file("here", 0o644, b"here");
    // Fields without digits are zero; empty records are none.
    layer = layer.records(&[("uid", b""), ("size", b"")]);
    let at = layer.0.len();
    layer.header(b'0', "blank", 0o644, "", 0);
    for field in [108..116, 116..124, 124..136] {
        layer.0[at..][field].fill(b' ');
    }
    // A prefix counts in whatever version.
    let with_prefix = layer.0.len();
    layer.header(b'0', "name", 0o644, "", 0);
    layer.0[with_prefix..][345..351].copy_from_slice(b"prefix");
    layer.0[with_prefix..][263..265].fill(b' ');
    for header in [at, with_prefix] {
        let header = &mut layer.0[header..header + 512];
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    assert_eq!(
        sealed(vec![layer]),
        [file("/blank", b""), file("/here", b"here"), file("/old/x", b"x"), file("/prefix/name", b"")]
    );
}

#[test]
fn a_whiteout_of_no_name_is_hostile() {
    for name in [".wh.", "a/.wh..", ".wh..."] {
        let bench = Bench::new();
        of(vec![Tar::default().file(name, 0o644, b"")]).layout(&bench.path("layout"));
        assert!(
            bench.refused(name, "layout").contains(&format!("a whiteout of a name, not /{name}")),
            "{name}"
        );
    }
}

/// Links that lead through links cost a moment, and are refused.
#[test]
fn ways_without_an_end_are_refused() {
    let deep = vec!["d".repeat(180); 20].join("/");
    let mut layer = Tar::default().pax("path", deep.as_bytes()).directory("d");
    for at in 0..39 {
        let (name, target) = (format!("{deep}/l{at}"), format!("{}l{}", "x/../".repeat(16), at + 1));
        layer = layer.pax("path", name.as_bytes()).symlink("l", &target);
    }
    let within = format!("{deep}/l0");
    for at in 0..40_000 {
        layer = layer.pax("path", format!("{within}/f{at}").as_bytes()).file("f", 0o644, b"");
    }
    let bench = Bench::new();
    of(vec![layer]).layout(&bench.path("layout"));
    let refused = bench.refused("ways", "layout");
    assert!(refused.contains("links that lead somewhere in fewer steps"), "{refused}");
}

/// As runc looks for it: in the working directory, and only what can be executed.
#[test]
fn what_an_image_runs_is_found_as_runc_finds_it() {
    let layer = || {
        let layer =
            Tar::default().file("bin/server", 0o755, b"other").file("app/bin/server", 0o755, b"server");
        layer.file("usr/bin/x", 0o644, b"no").file("bin/x", 0o755, b"x").file("app/x", 0o755, b"x")
    };
    for (runs, working_dir, found) in [
        ("bin/server", json!("/app"), "/app/bin/server"),
        ("./bin/server", json!("app/"), "/app/bin/server"),
        ("../bin/server", json!("/app"), "/bin/server"),
        ("/bin/server", json!("/app"), "/bin/server"),
        ("bin/server", Value::Null, "/bin/server"),
        ("x", json!("/app"), "/bin/x"),
    ] {
        let bench = Bench::new();
        let mut image = of(vec![layer()]);
        image.config = json!({"Cmd": [runs], "Env": ["PATH=/usr/bin:/bin:"], "WorkingDir": working_dir});
        image.layout(&bench.path("layout"));
        assert_eq!(paths(&bench.seal("layout", &[])), [found], "{runs} in {working_dir}");
    }
}
