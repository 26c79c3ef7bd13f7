//! An image with a bit of everything, as layout and as archive, the tree a runtime makes of it, and what seals and verifies them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::archive::{CAPABILITY, Tar, gzip, sha256, zstd};
use super::bench;

/// An image: stored and unpacked bytes of each layer.
pub(super) struct Image {
    pub(super) layers: Vec<(Vec<u8>, Vec<u8>)>,
    /// What it runs, where, and where that is looked for.
    pub(super) config: Value,
}

impl Image {
    pub(super) fn of(layers: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self { layers, config: json!({"Entrypoint": ["envoy"], "Env": ["PATH=/usr/bin:/bin"]}) }
    }

    pub(super) fn configuration(&self, architecture: &str) -> Vec<u8> {
        let ids: Vec<_> = self.layers.iter().map(|(_, plain)| format!("sha256:{}", sha256(plain))).collect();
        json!({
            "os": "linux", "architecture": architecture,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": ids},
        })
        .to_string()
        .into_bytes()
    }

    /// Writes an OCI layout with an index of two platforms; returns the digest of this image's manifest.
    pub(super) fn layout(&self, dir: &Path) -> String {
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
    pub(super) fn saved(&self) -> Vec<u8> {
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
pub(super) const LONG: &str =
    "very-long-directory-name-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789";

pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        bench::keys(dir.path());
        Self { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn run(&self, args: &[&str]) -> (i32, String, String) {
        bench::run(self.dir.path(), args)
    }

    /// Seals an image; address → object.
    pub(super) fn seal(&self, image: &str, globs: &[&str]) -> Vec<Value> {
        let mut args = vec!["seal", "--images", image, "-o", "s.json"];
        globs.iter().for_each(|glob| args.extend(["--glob", glob]));
        let (status, _, stderr) = self.run(&args);
        assert_eq!(status, 0, "{stderr}");
        let (status, _, stderr) = self.run(&["sign", "--key", "key.pem", "s.json", "-o", "b.json"]);
        assert_eq!(status, 0, "{stderr}");
        let statement: Value = serde_json::from_slice(&fs::read(self.path("s.json")).unwrap()).unwrap();
        statement["predicate"]["objects"].as_array().unwrap().clone()
    }

    pub(super) fn verify(&self, image: &str) -> (i32, Vec<(String, String)>) {
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

    pub(super) fn refused(&self, what: &str, image: &str) -> String {
        let (status, stdout, stderr) = self.run(&["seal", "--images", image, "-o", "none.json"]);
        assert_eq!((status, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{what}: {stderr}");
        assert!(stderr.starts_with("meshseal: bad image: "), "{what}: {stderr}");
        assert!(!self.path("none.json").exists(), "{what}");
        stderr
    }
}

pub(super) fn paths(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["path"].as_str().unwrap()).collect()
}

pub(super) fn image() -> Image {
    let big = vec![b'e'; 300_000];
    let first = Tar::default()
        .directory("usr/")
        .directory("usr/bin/")
        .directory("usr/lib/")
        .symlink("lib", "usr/lib")
        .pax("SCHILY.xattr.security.capability", &CAPABILITY)
        .file("usr/bin/envoy", 0o755, &big)
        .pax("SCHILY.xattr.security.capability", &CAPABILITY)
        .hardlink("usr/bin/envoy-again", "usr/bin/envoy")
        .file("usr/lib/x.so", 0o644, b"x")
        .file("lib/y.so", 0o644, b"y")
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
        .pax("path", format!("{LONG}/name").as_bytes())
        .file("short", 0o644, b"long")
        .hardlink("o/x.so", "usr/lib/x.so")
        .finish();
    let third = Tar::default().symlink("escape", "../../../etc/a").symlink("run", "/usr/bin/envoy").finish();
    // Frames without data, as lazily pulled images have them.
    let skipped = b"\x51\x2a\x4d\x18\x05\0\0\0hello".to_vec();
    let stored = [zstd(&third), skipped.clone(), zstd(&[]), skipped].concat();
    Image::of(vec![(first.clone(), first), (gzip(&second), second), (stored, third)])
}

/// What a runtime makes of that image.
pub(super) fn rootfs(root: &Path) {
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
