//! The software bill of materials: CycloneDX 1.5 of what is linked into the binary and into its eBPF objects, from
//! `cargo metadata` and `Cargo.lock`. No times and no random serial number: the same sources, the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{cmd, workspace};

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<String>,
    source: Option<String>,
    repository: Option<String>,
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// `None`: a normal dependency.
    kind: Option<String>,
}

/// The document; `binary_sha256` is that of the binary it describes.
pub(crate) fn cyclonedx(version: &str, binary_sha256: &str) -> Result<String> {
    let lock = workspace::root().join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let checksums = checksums(&lock);
    let mut components = BTreeMap::new();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (root, platform) in [("monitor", "x86_64-unknown-linux-gnu"), ("monitor-ebpf", "bpfel-unknown-none")]
    {
        let text = cmd::output(cmd::cargo().args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            platform,
        ]))?;
        let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata is not as expected")?;
        linked(&metadata, root, &checksums, &mut components, &mut edges)?;
    }
    let dependencies: Vec<Value> =
        edges.iter().map(|(from, to)| json!({ "ref": from, "dependsOn": to })).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "meshseal",
                "name": "meshseal",
                "version": version,
                "licenses": [{ "expression": "Apache-2.0" }],
                "hashes": [{ "alg": "SHA-256", "content": binary_sha256 }],
            },
        },
        "components": components.values().collect::<Vec<_>>(),
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// Adds what `root` reaches by normal dependencies, itself included.
fn linked(
    metadata: &Metadata,
    root: &str,
    checksums: &BTreeMap<(String, String), String>,
    components: &mut BTreeMap<String, Value>,
    edges: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let start = metadata
        .packages
        .iter()
        .find(|package| package.name == root && package.source.is_none())
        .with_context(|| format!("cargo metadata does not know the package {root}"))?;
    let mut seen = BTreeSet::from([start.id.as_str()]);
    let mut open = vec![start.id.as_str()];
    while let Some(id) = open.pop() {
        let (Some(package), Some(node)) = (packages.get(id), nodes.get(id)) else {
            bail!("cargo metadata names {id} and does not describe it");
        };
        let reference = purl(package);
        let to = edges.entry(reference.clone()).or_default();
        for dependency in node.deps.iter().filter(|d| d.dep_kinds.iter().any(|kind| kind.kind.is_none())) {
            if let Some(package) = packages.get(dependency.pkg.as_str()) {
                to.insert(purl(package));
            }
            if seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
        components.insert(reference, component(package, checksums)?);
    }
    Ok(())
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

fn component(package: &Package, checksums: &BTreeMap<(String, String), String>) -> Result<Value> {
    let mut value = json!({
        "type": "library",
        "bom-ref": purl(package),
        "purl": purl(package),
        "name": package.name,
        "version": package.version,
    });
    let Some(fields) = value.as_object_mut() else { return Ok(value) };
    if let Some(license) = &package.license {
        // `MIT/Apache-2.0` is how older crates write `MIT OR Apache-2.0`.
        fields.insert("licenses".into(), json!([{ "expression": license.replace('/', " OR ") }]));
    } else if let Some(file) = &package.license_file {
        fields.insert("licenses".into(), json!([{ "license": { "name": file } }]));
    }
    if let Some(description) = &package.description {
        fields.insert("description".into(), json!(description.trim()));
    }
    if let Some(url) = &package.repository {
        fields.insert("externalReferences".into(), json!([{ "type": "vcs", "url": url }]));
    }
    if package.source.is_some() {
        let checksum = checksums
            .get(&(package.name.clone(), package.version.clone()))
            .with_context(|| format!("Cargo.lock has no checksum of {} {}", package.name, package.version))?;
        fields.insert("hashes".into(), json!([{ "alg": "SHA-256", "content": checksum }]));
    }
    Ok(value)
}

/// Name and version to checksum. Cargo writes the lock file itself, one `key = "value"` a line.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for stanza in lock.split("[[package]]") {
        let value = |key: &str| {
            stanza.lines().find_map(|line| {
                line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"').map(str::to_owned)
            })
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (value("name"), value("version"), value("checksum"))
        {
            found.insert((name, version), checksum);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_read_from_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\n\
                    checksum = \"ff00\"\ndependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"b\"\nversion = \"0.1.0\"\n";
        assert_eq!(
            checksums(lock),
            BTreeMap::from([(("a".to_owned(), "1.0.0".to_owned()), "ff00".to_owned())])
        );
    }

    #[test]
    fn the_bill_names_what_is_linked_and_nothing_else() {
        let bill: Value = serde_json::from_str(&cyclonedx("9.9.9", "00").unwrap()).unwrap();
        let names: BTreeSet<&str> =
            bill["components"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        for linked in ["monitor", "monitor-ebpf", "tokio", "sha2", "aya", "aya-ebpf"] {
            assert!(names.contains(linked), "{linked} is missing");
        }
        for other in ["xtask", "proptest", "tempfile"] {
            assert!(!names.contains(other), "{other} is not linked");
        }
        for component in bill["components"].as_array().unwrap() {
            assert!(component["licenses"].is_array(), "{} has no licence", component["name"]);
        }
    }
}
