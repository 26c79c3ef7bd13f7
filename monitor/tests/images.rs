//! Baselines from images: layouts and archives written by code of the test's own, sealed by the binary, compared with
//! the tree a runtime makes of them; and archives that mean harm.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside their functions")]

mod agent;
mod bench;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::Agent;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// `VFS_CAP_REVISION_2` with two capabilities, effective; one byte of it is a newline.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 10, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A tar archive in ustar format, entry by entry, as hostile as it is asked to be.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: u8, name: &str, mode: u32, link: &str, bytes: &[u8]) -> Self {
        self.header(kind, name, mode, link, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn header(&mut self, kind: u8, name: &str, mode: u32, link: &str, size: u64) {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }

    fn file(self, name: &str, mode: u32, bytes: &[u8]) -> Self {
        self.entry(b'0', name, mode, "", bytes)
    }

    fn directory(self, name: &str) -> Self {
        self.entry(b'5', name, 0o755, "", &[])
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, 0o777, target, &[])
    }

    fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, 0o755, target, &[])
    }

    /// One thing about the next entry.
    fn pax(self, name: &str, value: &[u8]) -> Self {
        self.records(&[(name, value)])
    }

    fn records(self, records: &[(&str, &[u8])]) -> Self {
        let record = |(name, value): &(&str, &[u8])| {
            let mut length = name.len() + value.len() + 3;
            length += length.to_string().len();
            if format!("{length} {name}=").len() + value.len() + 1 != length {
                length += 1;
            }
            [format!("{length} {name}=").as_bytes(), value, b"\n"].concat()
        };
        let records: Vec<u8> = records.iter().flat_map(record).collect();
        self.entry(b'x', "PaxHeaders/x", 0o644, "", &records)
    }

    /// A file whose header says another size than what follows.
    fn sized(mut self, name: &str, size: u64, bytes: &[u8]) -> Self {
        self.header(b'0', name, 0o644, "", size);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A sparse file in GNU tar's own format.
    fn sparse(mut self, name: &str, size: u64, pieces: &[(u64, u64)], bytes: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_path(name).unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(bytes.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(size);
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(pieces) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An image: stored and unpacked bytes of each layer.
struct Image {
    layers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Image {
    fn of(layers: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self { layers }
    }

    fn configuration(&self, architecture: &str) -> Vec<u8> {
        let ids: Vec<_> = self.layers.iter().map(|(_, plain)| format!("sha256:{}", sha256(plain))).collect();
        json!({
            "os": "linux", "architecture": architecture,
            "config": {"Entrypoint": ["envoy"], "Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
        })
        .to_string()
        .into_bytes()
    }

    /// Writes an OCI layout with an index of two platforms; returns the digest of this image's manifest.
    fn layout(&self, dir: &Path) -> String {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            fs::write(blobs.join(sha256(bytes)), bytes).unwrap();
            json!({"digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len(), "mediaType": "x"})
        };
        let layers: Vec<_> = self.layers.iter().map(|(stored, _)| put(stored)).collect();
        let mut manifests = Vec::new();
        for architecture in ["arm64", "amd64"] {
            let config = put(&self.configuration(architecture));
            let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
            let mut descriptor = put(manifest.as_bytes());
            descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
            manifests.push(descriptor);
        }
        let digest = manifests[1]["digest"].as_str().unwrap().to_owned();
        let mut index = put(json!({"schemaVersion": 2, "manifests": manifests}).to_string().as_bytes());
        index["annotations"] = json!({"org.opencontainers.image.ref.name": "docker.io/istio/proxyv2:1"});
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [index]}).to_string())
            .unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        digest
    }

    /// As `docker save` writes it.
    fn saved(&self) -> Vec<u8> {
        let config = self.configuration("amd64");
        let name = format!("{}.json", sha256(&config));
        let mut tar = Tar::default().file(&name, 0o644, &config);
        let mut names = Vec::new();
        for (at, (stored, _)) in self.layers.iter().enumerate() {
            names.push(format!("{at}/layer.tar"));
            tar = tar.file(&format!("{at}/layer.tar"), 0o644, stored);
        }
        let manifest = json!([{"Config": name, "RepoTags": ["istio/proxyv2:1"], "Layers": names}]);
        tar.file("manifest.json", 0o644, manifest.to_string().as_bytes()).finish()
    }
}

/// Longer than a header has room for.
const LONG: &str =
    "very-long-directory-name-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789";

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        bench::keys(dir.path());
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        bench::run(self.dir.path(), args)
    }

    /// Seals an image; address → object.
    fn seal(&self, image: &str, globs: &[&str]) -> Vec<Value> {
        let mut args = vec!["seal", "--images", image, "-o", "s.json"];
        globs.iter().for_each(|glob| args.extend(["--glob", glob]));
        let (status, _, stderr) = self.run(&args);
        assert_eq!(status, 0, "{stderr}");
        let (status, _, stderr) = self.run(&["sign", "--key", "key.pem", "s.json", "-o", "b.json"]);
        assert_eq!(status, 0, "{stderr}");
        let statement: Value = serde_json::from_slice(&fs::read(self.path("s.json")).unwrap()).unwrap();
        statement["predicate"]["objects"].as_array().unwrap().clone()
    }

    fn verify(&self, image: &str) -> (i32, Vec<(String, String)>) {
        let (status, stdout, stderr) = self.run(&[
            "verify",
            "--baseline",
            "b.json",
            "--trusted-key",
            "key.pub",
            "--image",
            image,
            "--root",
            "rootfs",
            "--format",
            "json",
        ]);
        assert!(stdout.starts_with('{'), "{stderr}");
        let answer: Value = serde_json::from_str(&stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = answer["differences"].as_array().unwrap();
        (status, all.iter().map(|line| (text(&line["path"]), text(&line["aspect"]))).collect())
    }

    fn refused(&self, what: &str, image: &str) -> String {
        let (status, stdout, stderr) = self.run(&["seal", "--images", image, "-o", "none.json"]);
        assert_eq!((status, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{what}: {stderr}");
        assert!(stderr.starts_with("meshseal: bad image: "), "{what}: {stderr}");
        assert!(!self.path("none.json").exists(), "{what}");
        stderr
    }
}

fn paths(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["path"].as_str().unwrap()).collect()
}

fn image() -> Image {
    let big = vec![b'e'; 300_000];
    let first = Tar::default()
        .directory("usr/")
        .directory("usr/bin/")
        .directory("usr/lib/")
        .symlink("lib", "usr/lib")
        .pax("SCHILY.xattr.security.capability", &CAPABILITY)
        .file("usr/bin/envoy", 0o755, &big)
        .hardlink("usr/bin/envoy-again", "usr/bin/envoy")
        .file("usr/lib/x.so", 0o644, b"x")
        .file("etc/a", 0o644, b"old")
        .file("d/1", 0o644, b"1")
        .file("d/2", 0o644, b"2")
        .file("o/old", 0o644, b"old")
        .finish();
    let second = Tar::default()
        .file("d/.wh.1", 0o644, &[])
        .file("o/new", 0o600, b"new")
        .file("o/.wh..wh..opq", 0o644, &[])
        .file("etc/a", 0o4755, b"new")
        .file("lib/y.so", 0o644, b"y")
        .pax("path", format!("{LONG}/name").as_bytes())
        .file("short", 0o644, b"long")
        .hardlink("o/x.so", "lib/x.so")
        .finish();
    let third = Tar::default().symlink("escape", "../../../etc/a").symlink("run", "/usr/bin/envoy").finish();
    // Frames without data, as lazily pulled images have them.
    let skipped = b"\x51\x2a\x4d\x18\x05\0\0\0hello".to_vec();
    let stored = [zstd(&third), skipped.clone(), zstd(&[]), skipped].concat();
    Image::of(vec![(first.clone(), first), (gzip(&second), second), (stored, third)])
}

/// What a runtime makes of that image.
fn rootfs(root: &Path) {
    for (path, mode, bytes) in [
        ("usr/bin/envoy", 0o755, vec![b'e'; 300_000]),
        ("usr/lib/x.so", 0o755, b"x".to_vec()),
        (&format!("{LONG}/name"), 0o644, b"long".to_vec()),
        ("usr/lib/y.so", 0o644, b"y".to_vec()),
        ("etc/a", 0o4755, b"new".to_vec()),
        ("d/2", 0o644, b"2".to_vec()),
        ("o/new", 0o600, b"new".to_vec()),
    ] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), bytes).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let envoy = root.join("usr/bin/envoy");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&envoy, "security.capability", &CAPABILITY, flags).unwrap();
    fs::hard_link(&envoy, root.join("usr/bin/envoy-again")).unwrap();
    // In a runtime too the last entry sets the mode of all names.
    fs::hard_link(root.join("usr/lib/x.so"), root.join("o/x.so")).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("../../../etc/a", root.join("escape")).unwrap();
    symlink("/usr/bin/envoy", root.join("run")).unwrap();
}

#[test]
fn what_a_runtime_unpacks_is_as_the_image_says() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: only root can make files with capabilities");
        return;
    }
    let bench = Bench::new();
    let digest = image().layout(&bench.path("layout"));
    rootfs(&bench.path("rootfs"));
    let objects = bench.seal("layout", &["/**"]);
    let all = [
        "/d/2",
        "/escape",
        "/etc/a",
        "/lib",
        "/o/new",
        "/o/x.so",
        "/run",
        "/usr/bin/envoy",
        "/usr/bin/envoy-again",
        "/usr/lib/x.so",
        "/usr/lib/y.so",
        &format!("/{LONG}/name"),
    ];
    assert_eq!(paths(&objects), all);
    assert!(objects.iter().all(|object| object["image"]["digest"] == *digest));
    assert_eq!(bench.verify(&digest), (0, Vec::new()));
    assert_eq!(bench.verify("istio/proxyv2:1"), (0, Vec::new()), "by the name a pod uses");

    let at = |path: &str| bench.path("rootfs").join(path);
    rustix::fs::removexattr(at("usr/bin/envoy"), "security.capability").unwrap();
    let both =
        ["/usr/bin/envoy", "/usr/bin/envoy-again"].map(|path| (path.to_owned(), "attributes".to_owned()));
    assert_eq!(bench.verify(&digest), (1, both.to_vec()));
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("usr/bin/envoy"), "security.capability", &CAPABILITY, flags).unwrap();

    fs::write(at("usr/lib/y.so"), "z").unwrap();
    fs::remove_file(at("run")).unwrap();
    symlink("/usr/bin/evil", at("run")).unwrap();
    fs::remove_file(at("d/2")).unwrap();
    let expected = [("/d/2", "missing"), ("/run", "target"), ("/usr/lib/y.so", "content")];
    assert_eq!(bench.verify(&digest), (1, expected.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec()));
}

/// A mesh that no profile of ours knows.
const PROFILE: &str = "apiVersion: meshseal/v1
profile: ours
mesh: ours
about: a mesh of our own
readFrom: nowhere
status: read
containers: [ours]
executables:
  - { path: /usr/lib/x.so, about: a part of it }
files:
  - { path: \"{ConfigMap}/ours\", about: its configuration, class: sealed, role: proxy-config }
";

#[test]
fn profiles_of_ones_own_say_what_an_image_has_of_a_mesh() {
    let bench = Bench::new();
    image().layout(&bench.path("layout"));
    fs::write(bench.path("ours.yaml"), PROFILE).unwrap();
    let seal = |more: &[&str]| {
        let (status, _, stderr) =
            bench.run(&[&["seal", "--images", "layout", "-o", "s.json"], more].concat());
        assert_eq!(status, 0, "{stderr}");
        let statement: Value = serde_json::from_slice(&fs::read(bench.path("s.json")).unwrap()).unwrap();
        let objects = statement["predicate"]["objects"].as_array().unwrap().clone();
        objects.iter().map(|object| object["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(seal(&[]), ["/usr/bin/envoy"]);
    // A file of that name is it wherever it lies.
    let all = ["/o/x.so", "/usr/bin/envoy", "/usr/lib/x.so"];
    assert_eq!(seal(&["--profiles", "ours.yaml"]), all);
}

#[test]
fn profiles_of_ones_own_say_which_volumes_are_of_a_mesh() {
    let bench = Bench::new();
    fs::write(bench.path("ours.yaml"), PROFILE).unwrap();
    let pod = "kind: ConfigMap\nmetadata: {name: settings}\ndata: {k: v}\n---\nkind: Pod\nmetadata: {name: p}\n\
               spec: {volumes: [{name: ours, configMap: {name: settings}}], \
               containers: [{name: c, image: i, volumeMounts: [{name: ours, mountPath: /m}]}]}\n";
    fs::write(bench.path("m.yaml"), pod).unwrap();
    let told = |more: &[&str]| {
        let (status, _, stderr) =
            bench.run(&[&["seal", "--manifests", "m.yaml", "-o", "s.json"], more].concat());
        assert_eq!(status, 0, "{stderr}");
        stderr.lines().filter(|line| line.contains("mesh and")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told(&[]), [""; 0]);
    let note = "meshseal: note: ConfigMap default/settings belongs to a mesh and is not `immutable: true`";
    assert_eq!(told(&["--profiles", "ours.yaml"]), [note]);
}

#[test]
fn a_running_agent_judges_every_container_of_an_image() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: only root can make files with capabilities");
        return;
    }
    let bench = Bench::new();
    image().layout(&bench.path("layout"));
    fs::write(bench.path("secret"), [7; 32]).unwrap();
    bench.seal("layout", &["/**"]);
    let tasks = "node/run/containerd/io.containerd.runtime.v2.task/k8s.io";
    let container = |id: &str| {
        let bundle = bench.path(tasks).join(id);
        rootfs(&bundle.join("rootfs"));
        let config = json!({"root": {"path": "rootfs"}, "annotations": {
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "istio-proxy",
            "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": id,
            "io.kubernetes.cri.sandbox-uid": "u", "io.kubernetes.cri.image-name": "docker.io/istio/proxyv2:1"}});
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    };
    let first = container("first");
    let mut agent = Agent::start(bench.dir.path());
    agent.verified(12);
    assert_eq!(agent.status()["posture"], "intact");
    let second = container("second");
    agent.verified(12);
    fs::write(second.join("rootfs/usr/lib/y.so"), "z").unwrap();
    let opened = agent.violation("content", "/second/rootfs/usr/lib/y.so");
    let target = &opened["target"];
    let told = ["namespace", "pod", "pod_uid", "container", "image"].map(|key| target[key].as_str().unwrap());
    assert_eq!(told, ["shop", "second", "u", "istio-proxy", "docker.io/istio/proxyv2:1"]);

    // A container ends: first its root is gone, then what it lives by. What was violated in it ends with it.
    fs::remove_dir_all(second.join("rootfs")).unwrap();
    fs::remove_dir_all(&second).unwrap();
    agent.wait("resolution", |record| {
        record["kind"] == "violation.resolved" && record["resolution"] == "redeployed"
    });
    // Its root alone is no end.
    fs::remove_dir_all(first.join("rootfs/usr")).unwrap();
    agent.violation("removed", "/first/rootfs/usr/bin/envoy");
    let of_second = |record: &&Value| {
        let path = record["object"]["path"].as_str().unwrap_or_default();
        record["kind"] == "violation.opened" && path.contains("/second/")
    };
    assert_eq!(agent.seen.iter().filter(of_second).count(), 1, "{:#?}", agent.seen);
}

#[test]
fn archives_say_the_same_as_the_layout() {
    let bench = Bench::new();
    let digest = image().layout(&bench.path("layout"));
    let of = |objects: &[Value]| {
        let strip = |object: &Value| {
            let mut object = object.clone();
            object["image"] = Value::Null;
            object
        };
        objects.iter().map(strip).collect::<Vec<_>>()
    };
    let directory = bench.seal("layout", &["/**"]);

    let tar = Command::new("tar")
        .args(["-cf", "layout.tar", "-C", "layout", "."])
        .current_dir(bench.dir.path())
        .status();
    assert!(tar.unwrap().success());
    let archive = bench.seal("layout.tar", &["/**"]);
    assert_eq!(archive, directory);

    fs::write(bench.path("saved.tar"), image().saved()).unwrap();
    let saved = bench.seal("saved.tar", &["/**"]);
    assert_eq!(of(&saved), of(&directory));
    assert_eq!(saved[0]["image"]["names"], json!(["istio/proxyv2:1"]));
    assert_ne!(saved[0]["image"]["digest"], *digest, "docker knows an image by its configuration");

    // Without patterns: what it runs, and what meshes call their executables. A link brings what it leads to.
    assert_eq!(paths(&bench.seal("layout", &[])), ["/usr/bin/envoy"]);
    assert_eq!(paths(&bench.seal("layout", &["/lib"])), ["/lib"]);
    assert_eq!(paths(&bench.seal("layout", &["/run"])), ["/run", "/usr/bin/envoy"]);
    // The same image from two places is one, by all its names.
    let (status, _, stderr) = bench.run(&[
        "seal",
        "--images",
        "layout",
        "layout.tar",
        "--image-name",
        "r.example/p:2",
        "-o",
        "s.json",
    ]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let statement: Value = serde_json::from_slice(&fs::read(bench.path("s.json")).unwrap()).unwrap();
    let objects = statement["predicate"]["objects"].as_array().unwrap();
    assert_eq!((objects.len(), objects[0]["image"]["digest"].as_str()), (1, Some(digest.as_str())));
    let names = objects[0]["image"]["names"].as_array().unwrap();
    assert!(names.contains(&json!("docker.io/istio/proxyv2:1")) && names.contains(&json!("r.example/p:2")));
    let two = bench.run(&["seal", "--images", "layout", "saved.tar", "--image-name", "a:1", "-o", "s.json"]);
    assert_eq!((two.0, two.2.as_str()), (2, "meshseal: bad image: a:1: one image to be named so, not 2\n"));
    let (status, _, stderr) =
        bench.run(&["seal", "--images", "layout", "--glob", "/nowhere/*", "-o", "s.json"]);
    assert_eq!(
        (status, stderr.as_str()),
        (
            0,
            "meshseal: not sealed: image docker.io/istio/proxyv2:1: /nowhere/*: no file of the image is so called\n"
        )
    );
    let refused = bench.run(&["seal", "--images", "layout", "--platform", "linux/s390x", "-o", "s.json"]);
    assert_eq!(
        (refused.0, refused.2.as_str()),
        (2, "meshseal: bad image: layout: an image for linux/s390x\n")
    );
}

/// Signatures, bills of materials and attestations lie beside images in a layout; they are none.
#[test]
fn what_lies_beside_an_image_is_passed_over() {
    let bench = Bench::new();
    image().layout(&bench.path("layout"));
    let alone = bench.seal("layout", &["/**"]);
    let put = |bytes: &[u8], kind: &str| {
        fs::write(bench.path("layout/blobs/sha256").join(sha256(bytes)), bytes).unwrap();
        json!({"digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len(), "mediaType": kind})
    };
    let manifest = |config: &[u8], kind: &str| {
        let layer = put(b"{\"signed\": true}", "application/vnd.in-toto+json");
        let manifest = json!({"schemaVersion": 2, "config": put(config, kind), "layers": [layer]});
        put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json")
    };
    let empty = manifest(b"{}", "application/vnd.oci.empty.v1+json");
    let chart = manifest(b"name: chart\n", "application/vnd.cncf.helm.config.v1+json");
    let mut attestation = manifest(
        br#"{"os": "unknown", "architecture": "unknown", "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]}}"#,
        "application/vnd.oci.image.config.v1+json",
    );
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = put(
        json!({"schemaVersion": 2, "manifests": [empty.clone(), attestation]}).to_string().as_bytes(),
        "x",
    );
    let index = bench.path("layout/index.json");
    let whole: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let with = |more: Vec<Value>| {
        let mut all = whole.clone();
        all["manifests"].as_array_mut().unwrap().extend(more);
        fs::write(&index, all.to_string()).unwrap();
    };
    with(vec![empty.clone(), chart, inner]);
    assert_eq!(bench.seal("layout", &["/**"]), alone);
    // An image whose configuration cannot be read is no such thing.
    with(vec![manifest(b"{}", "application/vnd.oci.image.config.v1+json")]);
    let said = bench.refused("a configuration without layers", "layout");
    assert!(said.contains("missing field `rootfs`"), "{said}");
    fs::write(&index, json!({"schemaVersion": 2, "manifests": [empty]}).to_string()).unwrap();
    assert!(bench.refused("no image", "layout").contains("an image for linux/amd64"));
}

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

/// Runs a tool to success, if it is there at all.
fn tool(dir: &Path, line: &str) -> bool {
    let mut words = line.split_whitespace();
    match Command::new(words.next().unwrap()).args(words).current_dir(dir).output() {
        Ok(output) => {
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => false,
    }
}

/// Everything below that is no directory, by its path in the image.
fn files(root: &Path) -> Vec<String> {
    let (mut all, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else {
                all.push(format!("/{}", entry.path().strip_prefix(root).unwrap().to_str().unwrap()));
            }
        }
    }
    all.sort();
    all
}

/// Layers and archives as umoci and skopeo make them, against a tree that umoci unpacked.
#[test]
fn images_that_other_tools_made_are_as_those_tools_unpack_them() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    if !rustix::process::geteuid().is_root() || !tool(dir, "umoci --version") {
        eprintln!("passed over: needs root and umoci");
        return;
    }
    let umoci = |line: &str| assert!(tool(dir, &format!("umoci {line}")));
    umoci("init --layout l");
    umoci("new --image l:1");
    umoci("config --image l:1 --config.entrypoint /usr/bin/envoy");
    umoci("unpack --image l:1 one");
    rootfs(&bench.path("one/rootfs"));
    let at = |path: &str| bench.path("one/rootfs").join(path);
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::set_permissions(at("d/2"), fs::Permissions::from_mode(0o2511)).unwrap();
    std::os::unix::fs::chown(at("etc/a"), Some(70_000), Some(3_000_000_000)).unwrap();
    fs::set_permissions(at("etc/a"), fs::Permissions::from_mode(0o4755)).unwrap();
    umoci("repack --image l:1 one");
    // A second layer: changes, whiteouts, a link in place of a directory, another name of a file of the first.
    umoci("unpack --image l:1 two");
    let at = |path: &str| bench.path("two/rootfs").join(path);
    fs::write(at("o/new"), "newer").unwrap();
    fs::remove_file(at("usr/lib/y.so")).unwrap();
    fs::remove_dir_all(at("d")).unwrap();
    symlink("o", at("d")).unwrap();
    fs::hard_link(at("usr/bin/envoy"), at("usr/bin/third")).unwrap();
    umoci("repack --image l:1 two");
    umoci("unpack --image l:1 bundle");
    fs::rename(bench.path("bundle/rootfs"), bench.path("rootfs")).unwrap();
    let expected: Vec<String> =
        files(&bench.path("rootfs")).into_iter().filter(|path| path != "/fifo").collect();

    let mut images = vec!["l"];
    if tool(dir, "skopeo --version") {
        let skopeo = |line: &str| assert!(tool(dir, &format!("skopeo --insecure-policy copy {line}")));
        skopeo("oci:l:1 docker-archive:saved.tar:r.example/p:1");
        skopeo("oci:l:1 oci-archive:o.tar:1");
        skopeo("--dest-compress-format zstd oci:l:1 oci:z:1");
        images.extend(["saved.tar", "o.tar", "z"]);
    }
    for image in images {
        let args =
            ["seal", "--images", image, "--glob", "/**", "--image-name", "r.example/p:1", "-o", "s.json"];
        let (status, _, stderr) = bench.run(&args);
        assert_eq!(status, 0, "{image}: {stderr}");
        let listed: Vec<&str> = stderr.lines().filter(|line| line.contains("not sealed")).collect();
        assert_eq!(listed.len(), 1, "{image}: the FIFO: {stderr}");
        assert_eq!(bench.run(&["sign", "--key", "key.pem", "s.json", "-o", "b.json"]).0, 0);
        let statement: Value = serde_json::from_slice(&fs::read(bench.path("s.json")).unwrap()).unwrap();
        assert_eq!(paths(statement["predicate"]["objects"].as_array().unwrap()), expected, "{image}");
        assert_eq!(bench.verify("r.example/p:1"), (0, Vec::new()), "{image}");
        let file = bench.path("rootfs/usr/lib/x.so");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let both = ["/o/x.so", "/usr/lib/x.so"].map(|path| (path.to_owned(), "attributes".to_owned()));
        assert_eq!(bench.verify("r.example/p:1"), (1, both.to_vec()), "{image}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let objects = bench.seal("l", &[]);
    assert_eq!(paths(&objects), ["/usr/bin/envoy"], "what it runs");
}

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
