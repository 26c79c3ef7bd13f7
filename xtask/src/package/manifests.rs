//! `meshseal.yaml`: the base in `deploy/base`, as `kubectl kustomize` would put it together, comments kept.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// The part of a kustomization that the base uses; anything else in it is an error, so that nothing is silently left out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    resources: Vec<String>,
    images: Vec<ImageOverride>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ImageOverride {
    name: String,
    new_tag: String,
}

/// All manifests in one stream, in the order of the kustomization, with the image's tag set to this version.
pub(crate) fn render(base: &Path, image: &str, version: &str) -> Result<String> {
    let file = base.join("kustomization.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let kustomization: Kustomization =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is not as expected", file.display()))?;
    match kustomization.images.as_slice() {
        [only] if only.name == image && only.new_tag == version => {}
        other => bail!(
            "{}: `images` must be {image} with newTag {version}, the version in Cargo.toml, and is {other:?}",
            file.display()
        ),
    }
    let mut out = format!("# Meshseal {version}. Rendered from deploy/base by `cargo xtask package`.\n");
    let mut tagged = 0;
    for name in &kustomization.resources {
        let file = base.join(name);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        out.push_str("---\n");
        for line in text.lines() {
            let trimmed = line.trim_start();
            if trimmed.strip_prefix("image: ") == Some(image) {
                tagged += 1;
                out.push_str(&format!("{line}:{version}\n"));
            } else {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    if tagged != 1 {
        bail!("{}: {tagged} lines are `image: {image}`; exactly one is expected", base.display());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(kustomization: &str, resource: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kustomization.yaml"), kustomization).unwrap();
        fs::write(dir.path().join("a.yaml"), resource).unwrap();
        dir
    }

    const GOOD: &str = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n\
                        images: [{name: docker.io/x/y, newTag: 1.2.3}]\n";

    #[test]
    fn the_tag_is_set_once() {
        let dir = base(GOOD, "kind: A # why\nspec:\n  image: docker.io/x/y\n");
        assert_eq!(
            render(dir.path(), "docker.io/x/y", "1.2.3").unwrap(),
            "# Meshseal 1.2.3. Rendered from deploy/base by `cargo xtask package`.\n---\nkind: A # why\nspec:\n  \
             image: docker.io/x/y:1.2.3\n"
        );
    }

    #[test]
    fn another_version_no_image_or_an_unknown_field_is_an_error() {
        let dir = base(GOOD, "image: docker.io/x/y\n");
        assert!(render(dir.path(), "docker.io/x/y", "2.0.0").is_err());
        let dir = base(GOOD, "kind: A\n");
        assert!(render(dir.path(), "docker.io/x/y", "1.2.3").is_err());
        let dir = base(&format!("{GOOD}namePrefix: x\n"), "image: docker.io/x/y\n");
        assert!(render(dir.path(), "docker.io/x/y", "1.2.3").is_err());
    }

    #[test]
    fn the_base_of_this_checkout_renders() {
        let yaml =
            render(&crate::workspace::root().join("deploy/base"), super::super::IMAGE, super::super::VERSION)
                .unwrap();
        let kinds: Vec<&str> = yaml.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
        let expected = [
            "Namespace",
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "ResourceQuota",
            "DaemonSet",
        ];
        assert_eq!(kinds, expected);
        // Whatever is added to it: the agent reads, and reads no Secrets.
        let verbs: Vec<&str> = yaml.lines().filter_map(|line| line.trim().strip_prefix("verbs: ")).collect();
        assert_eq!(verbs, ["[list, watch]", "[get]", "[get]", "[get]", "[get]"]);
        let resources: Vec<&str> =
            yaml.lines().filter_map(|line| line.trim().strip_prefix("resources: [")).collect();
        assert_eq!(resources, ["pods]", "replicasets]", "jobs]", "nodes]", "namespaces]"]);
    }
}
