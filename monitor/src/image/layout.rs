//! From a layout or archive to the images in it: which manifest is for the platform, and what it is made of.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::blobs::Blobs;
use crate::baseline::{Digest, Error};

/// Most images of one layout, and most layers of one image.
const IMAGES_MAX: usize = 256;
const LAYERS_MAX: usize = 512;
/// Deepest nesting of indexes.
const DEPTH_MAX: u32 = 4;
/// Names by which a layout's index calls an image: containerd's and buildkit's, then the specification's.
const NAMED: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An operating system and architecture, as `linux/arm64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl std::str::FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
                Ok(Self { os, architecture, variant })
            }
            _ => Err("expected OS/ARCHITECTURE, such as linux/amd64".into()),
        }
    }
}

/// An image, not yet unpacked.
#[derive(Debug)]
pub struct Found {
    /// Digest it is known by: of its manifest; of its configuration in a `docker save` archive.
    pub digest: Digest,
    /// References and digests pods may name it by.
    pub names: Vec<String>,
    /// Its layers, lowest first.
    pub layers: Vec<LayerBlob>,
    /// What it runs.
    pub runs: Vec<String>,
    /// Where that is looked for.
    pub path: String,
    /// Where it is started, from the root.
    pub working_dir: String,
}

/// A layer as it is stored.
#[derive(Debug)]
pub struct LayerBlob {
    /// Name in the layout or archive.
    pub name: String,
    /// Digest of the blob, where the manifest gives it.
    pub digest: Option<Digest>,
    /// Bytes of the blob, where the manifest gives them.
    pub size: Option<u64>,
    /// Digest of the unpacked layer.
    pub diff_id: Digest,
}

/// What the configuration of an image is called: by the OCI's specification, and by Docker's.
const IMAGES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<DescribedPlatform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct DescribedPlatform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Configuration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<Runs>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Runs {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of a layout or archive for this platform.
///
/// # Errors
/// It is neither, a digest does not match, or there is nothing for this platform.
pub fn images(blobs: &Blobs, place: &str, platform: &Platform) -> Result<Vec<Found>, Error> {
    let bad = |expected: String| Error::new("bad image", place, expected);
    let found = if blobs.has("index.json") && blobs.has("oci-layout") {
        let index: Index = parse(&blobs.document("index.json").map_err(bad)?, "index.json").map_err(bad)?;
        let mut found = Vec::new();
        for descriptor in &index.manifests {
            let mut names: Vec<String> = descriptor
                .annotations
                .iter()
                .flat_map(|all| NAMED.iter().filter_map(|name| all.get(*name)))
                // The specification's may be no more than a tag.
                .filter(|name| name.contains(['/', ':']))
                .take(1)
                .cloned()
                .collect();
            names.push(descriptor.digest.clone());
            follow(blobs, descriptor, &names, platform, 0, &mut found).map_err(bad)?;
        }
        found
    } else if blobs.has("manifest.json") {
        saved(blobs, platform).map_err(bad)?
    } else {
        return Err(bad("an OCI layout (oci-layout, index.json) or a docker-archive (manifest.json)".into()));
    };
    if found.is_empty() {
        let wanted = format!("an image for {}/{}", platform.os, platform.architecture);
        return Err(bad(wanted));
    }
    Ok(found)
}

fn follow(
    blobs: &Blobs,
    descriptor: &Descriptor,
    names: &[String],
    platform: &Platform,
    depth: u32,
    found: &mut Vec<Found>,
) -> Result<(), String> {
    if descriptor.platform.as_ref().is_some_and(|described| !fits(platform, described)) {
        return Ok(());
    }
    let bytes = checked(blobs, descriptor)?;
    let index: Index = parse(&bytes, &descriptor.digest)?;
    if let (Some(config), Some(layers)) = (&index.config, &index.layers) {
        if found.len() >= IMAGES_MAX {
            return Err(format!("at most {IMAGES_MAX} images"));
        }
        let configuration: Configuration = match parse(&checked(blobs, config)?, &config.digest) {
            // A signature, a bill of materials or a chart that lies beside the images.
            Err(_) if !config.media_type.as_deref().is_none_or(|kind| IMAGES.contains(&kind)) => {
                return Ok(());
            }
            configuration => configuration?,
        };
        if (&configuration.os, &configuration.architecture) != (&platform.os, &platform.architecture) {
            return Ok(());
        }
        if layers.len() > LAYERS_MAX || layers.len() != configuration.rootfs.diff_ids.len() {
            return Err(format!("as many layers as its configuration has, at most {LAYERS_MAX}"));
        }
        let layers = layers.iter().zip(&configuration.rootfs.diff_ids).map(|(layer, diff_id)| {
            let digest = sha256(&layer.digest)?;
            Ok(LayerBlob {
                name: blob(&digest),
                digest: Some(digest),
                size: Some(layer.size),
                diff_id: sha256(diff_id)?,
            })
        });
        let layers = layers.collect::<Result<_, String>>()?;
        let mut names = names.to_vec();
        names.retain(|name| *name != descriptor.digest);
        found.push(described(sha256(&descriptor.digest)?, names, layers, configuration.config));
        return Ok(());
    }
    if index.manifests.is_empty() {
        // Attestations and other artifacts have no layers of files.
        return Ok(());
    }
    if depth >= DEPTH_MAX {
        return Err(format!("indexes at most {DEPTH_MAX} deep"));
    }
    for descriptor in &index.manifests {
        follow(blobs, descriptor, names, platform, depth + 1, found)?;
    }
    Ok(())
}

fn saved(blobs: &Blobs, platform: &Platform) -> Result<Vec<Found>, String> {
    let all: Vec<Saved> = parse(&blobs.document("manifest.json")?, "manifest.json")?;
    if all.len() > IMAGES_MAX {
        return Err(format!("at most {IMAGES_MAX} images"));
    }
    let mut found = Vec::new();
    for one in all {
        let bytes = blobs.document(&one.config)?;
        let digest: Digest = Sha256::digest(&bytes).into();
        let stem = one.config.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        if stem != hex::encode(digest) {
            return Err(format!("a configuration {} whose name is its SHA-256", one.config));
        }
        let configuration: Configuration = parse(&bytes, &one.config)?;
        if (&configuration.os, &configuration.architecture) != (&platform.os, &platform.architecture) {
            continue;
        }
        let ids = &configuration.rootfs.diff_ids;
        if one.layers.len() > LAYERS_MAX || one.layers.len() != ids.len() {
            return Err(format!("as many layers as its configuration has, at most {LAYERS_MAX}"));
        }
        let layers = one.layers.into_iter().zip(ids).map(|(name, diff_id)| {
            Ok(LayerBlob { name, digest: None, size: None, diff_id: sha256(diff_id)? })
        });
        let layers = layers.collect::<Result<_, String>>()?;
        found.push(described(digest, one.repo_tags.unwrap_or_default(), layers, configuration.config));
    }
    Ok(found)
}

fn described(digest: Digest, names: Vec<String>, layers: Vec<LayerBlob>, runs: Option<Runs>) -> Found {
    let runs = runs.unwrap_or_default();
    let path =
        runs.env.unwrap_or_default().into_iter().find_map(|one| Some(one.strip_prefix("PATH=")?.to_owned()));
    let command = [runs.entrypoint, runs.cmd].into_iter().flatten().find(|words| !words.is_empty());
    let working_dir = format!("/{}", runs.working_dir.unwrap_or_default());
    let runs = command.unwrap_or_default();
    let path = path.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    Found { digest, names, layers, runs, path, working_dir }
}

/// A blob whose digest and size are as described.
fn checked(blobs: &Blobs, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
    let digest = sha256(&descriptor.digest)?;
    let bytes = blobs.document(&blob(&digest))?;
    let right = bytes.len() as u64 == descriptor.size && Digest::from(Sha256::digest(&bytes)) == digest;
    if right { Ok(bytes) } else { Err(format!("a blob {} with that digest and size", descriptor.digest)) }
}

fn fits(platform: &Platform, described: &DescribedPlatform) -> bool {
    platform.os == described.os
        && platform.architecture == described.architecture
        && platform.variant.as_ref().is_none_or(|variant| described.variant.as_ref() == Some(variant))
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", hex::encode(digest))
}

fn sha256(text: &str) -> Result<Digest, String> {
    let mut digest = Digest::default();
    text.strip_prefix("sha256:")
        .filter(|hex| hex::decode_to_slice(hex, &mut digest).is_ok())
        .ok_or_else(|| format!("a digest `sha256:` and 64 hex digits, not `{text}`"))?;
    Ok(digest)
}

fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("{what} as JSON of its kind ({e})"))
}
