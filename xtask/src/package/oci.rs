//! An OCI image archive (image-spec 1.1) of one layer, as `ctr images import` takes it: the same input, the same bytes.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar::Tar;

/// What the image runs and is called.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// Full name with tag, `docker.io/meshseal/meshseal:0.1.0`.
    pub(crate) name: &'a str,
    pub(crate) entrypoint: &'a [&'a str],
    pub(crate) cmd: &'a [&'a str],
    /// `uid:gid`.
    pub(crate) user: &'a str,
    pub(crate) path: &'a str,
    pub(crate) labels: &'a [(&'a str, &'a str)],
    pub(crate) layer: Tar,
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The archive's bytes.
pub(crate) fn archive(image: Image<'_>) -> Result<Vec<u8>> {
    let layer = image.layer.finish();
    let diff_id = format!("sha256:{}", sha256(&layer));
    // No name and no time in the gzip header, so that it is as reproducible as what is in it.
    let mut gzip = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
    gzip.write_all(&layer).and_then(|()| gzip.try_finish()).context("cannot compress the layer")?;
    let layer = gzip.finish().context("cannot compress the layer")?;

    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let labels: serde_json::Map<String, Value> =
        image.labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let config = serde_json::to_vec(&json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": image.user,
            "Env": [format!("PATH={}", image.path)],
            "Entrypoint": image.entrypoint,
            "Cmd": image.cmd,
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask package" }],
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("platform".into(), json!({ "architecture": "amd64", "os": "linux" }));
        entry.insert(
            "annotations".into(),
            json!({ "io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": tag }),
        );
    }
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;

    let mut out = Tar::default();
    out.directory("blobs", 0o755)?;
    out.directory("blobs/sha256", 0o755)?;
    let mut blobs: Vec<(String, &[u8])> =
        [&config, &manifest, &layer].into_iter().map(|blob| (sha256(blob), blob.as_slice())).collect();
    blobs.sort();
    for (digest, blob) in blobs {
        out.file(&format!("blobs/sha256/{digest}"), 0o644, blob)?;
    }
    out.file("index.json", 0o644, &index)?;
    out.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(out.finish())
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(blob)), "size": blob.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::process::Command;

    fn build() -> Vec<u8> {
        let mut layer = Tar::default();
        layer.file("hello", 0o755, b"hello\n").unwrap();
        archive(Image {
            name: "docker.io/a/b:1",
            entrypoint: &["/hello"],
            cmd: &["x"],
            user: "0:0",
            path: "/",
            labels: &[("k", "v")],
            layer,
        })
        .unwrap()
    }

    #[test]
    fn same_input_same_bytes() {
        assert_eq!(build(), build());
    }

    #[test]
    fn every_digest_is_that_of_the_bytes_it_names() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image.tar"), build()).unwrap();
        assert!(
            Command::new("tar")
                .current_dir(dir.path())
                .args(["-xf", "image.tar"])
                .status()
                .unwrap()
                .success()
        );
        let mut blobs = BTreeMap::new();
        for entry in std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            let bytes = std::fs::read(entry.path()).unwrap();
            assert_eq!(sha256(&bytes), entry.file_name().to_string_lossy());
            blobs.insert(format!("sha256:{}", sha256(&bytes)), bytes);
        }
        let index: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("index.json")).unwrap()).unwrap();
        let manifest: Value =
            serde_json::from_slice(&blobs[index["manifests"][0]["digest"].as_str().unwrap()]).unwrap();
        let config: Value =
            serde_json::from_slice(&blobs[manifest["config"]["digest"].as_str().unwrap()]).unwrap();
        let packed = &blobs[manifest["layers"][0]["digest"].as_str().unwrap()];
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&layer)));
        assert_eq!(config["config"]["Entrypoint"], json!(["/hello"]));
        assert_eq!(manifest["layers"][0]["size"], packed.len());
        assert_eq!(blobs.len(), 3);
    }
}
