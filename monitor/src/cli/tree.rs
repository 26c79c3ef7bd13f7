//! A tree that is verified: which pods are in it, and where the objects of workloads lie.

use std::fmt::Write as _;
use std::path::Path;

use super::output;
use crate::baseline::{Anchor, Baseline, ObjectId, Root, SealedObject};
use crate::inventory::containers;
use crate::inventory::pods;
use crate::inventory::workloads::{Expect, Resolution, is_of, resolve, resolve_images};
use crate::model::HostPath;

/// What a baseline's workloads are in a tree.
#[derive(Debug, Default)]
pub(super) struct Tree {
    resolution: Resolution,
    /// Objects of the baseline that are not the host's own.
    anchored: usize,
    /// The tree is the root of one image, and its objects are where that says.
    of_image: bool,
    /// The kubelet's directory that was taken.
    kubelet_root: Option<HostPath>,
}

impl Tree {
    /// Puts in place of the baseline's workload objects those of the pods that are in the tree.
    pub(super) fn resolve(root: &Root, baseline: &mut Baseline, kubelet_root: Option<&Path>) -> Self {
        let anchored = baseline.objects.iter().filter(|object| !object.rule.anchor.is_host()).count();
        if anchored == 0 {
            return Self::default();
        }
        let kubelet_root =
            kubelet_root.map_or_else(|| pods::kubelet_root(root), |path| Some(HostPath::from(path)));
        let pods = kubelet_root.as_ref().map(|dir| pods::read(root, dir)).unwrap_or_default();
        let mut resolution = resolve(root, &baseline.objects, &pods, Expect::All);
        let containers = containers::read(root);
        resolve_images(root, &baseline.objects, &containers, &mut resolution);
        let own = baseline.objects.iter().filter(|object| object.rule.anchor.is_host()).cloned();
        let mut objects: Vec<SealedObject> = own.chain(std::mem::take(&mut resolution.objects)).collect();
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        baseline.objects = objects.into();
        Self { resolution, anchored, of_image: false, kubelet_root }
    }

    /// Takes the tree for the root of a container of that image, and leaves out everything that lies elsewhere.
    ///
    /// # Errors
    /// The baseline seals no such image, or several; in words that say which there are.
    pub(super) fn of_image(baseline: &mut Baseline, reference: &str) -> Result<Self, String> {
        let mut images: Vec<_> = baseline
            .objects
            .iter()
            .filter_map(|object| match &object.rule.anchor {
                Anchor::Image(image) => Some(image.clone()),
                _ => None,
            })
            .collect();
        images.dedup();
        let wanted: Vec<_> = images.iter().filter(|image| is_of(image, reference)).collect();
        let [wanted] = wanted.as_slice() else {
            let all: Vec<String> = images
                .iter()
                .map(|image| format!("sha256:{} {}", hex::encode(image.digest), image.names.join(" ")))
                .collect();
            return Err(format!("one image of the baseline: {}", all.join(", ")));
        };
        let objects =
            baseline.objects.iter().filter(|object| object.rule.anchor == Anchor::Image((*wanted).clone()));
        baseline.objects = objects.cloned().collect();
        Ok(Self { of_image: true, ..Self::default() })
    }

    /// The id that records and findings give an object.
    pub(super) fn id(&self, baseline: &Baseline, object: &SealedObject) -> ObjectId {
        if self.of_image {
            object.id_at_anchor(&baseline.name)
        } else {
            SealedObject::id_of(&baseline.name, &object.path)
        }
    }

    /// Why nothing can be said of the whole tree, though nothing in it differs.
    pub(super) fn cannot_tell(&self, objects: usize) -> Option<String> {
        if self.anchored > 0
            && objects == 0
            && self.resolution.pods.is_empty()
            && self.resolution.containers.is_empty()
        {
            let at = self.kubelet_root.as_ref().map_or_else(
                || "no kubelet's directory: --kubelet-root".to_owned(),
                |dir| format!("none below {dir}"),
            );
            return Some(format!("a pod or container that is in the baseline ({at})"));
        }
        let unclear = self.resolution.unknown.iter().find(|pod| pod.may_be_sealed)?;
        Some(format!("pod {} told apart: {}", unclear.uid, unclear.reason))
    }

    /// For people, after the verdict.
    pub(super) fn describe(&self, out: &mut String) {
        if self.anchored == 0 {
            return;
        }
        // Writing to a string cannot fail.
        out.push('\n');
        for pod in &self.resolution.pods {
            let name = pod
                .name
                .as_ref()
                .map_or_else(String::new, |(namespace, name)| format!("{namespace}/{name} "));
            let text = format!(
                "pod {name}({}) of {}, told by {}: {} objects",
                pod.uid,
                pod.workload,
                pod.told_by.as_str(),
                pod.objects.len()
            );
            let _ = writeln!(out, "{}", output::one_line(&text));
        }
        for container in &self.resolution.containers {
            let text = format!(
                "container {} of pod ({}), image sha256:{}: {} objects",
                container.name,
                container.pod_uid,
                hex::encode(container.image.digest),
                container.objects.len()
            );
            let _ = writeln!(out, "{}", output::one_line(&text));
        }
        for pod in &self.resolution.unknown {
            let text = format!("pod ({}) passed over: {}", pod.uid, pod.reason);
            let _ = writeln!(out, "{}", output::one_line(&text));
        }
        for workload in &self.resolution.absent {
            let _ = writeln!(out, "no pod of {workload} here");
        }
        for image in &self.resolution.absent_images {
            let name = image.names.first().map_or("", String::as_str);
            let text = format!("no container of image sha256:{} {name} here", hex::encode(image.digest));
            let _ = writeln!(out, "{}", output::one_line(&text));
        }
        for path in &self.resolution.uncovered {
            let _ = writeln!(out, "not in the baseline: {}", output::one_line(&path.to_string()));
        }
    }

    /// For programs; `null` where the baseline has no workloads.
    pub(super) fn json(&self) -> serde_json::Value {
        if self.anchored == 0 {
            return serde_json::Value::Null;
        }
        let pods = self.resolution.pods.iter().map(|pod| {
            serde_json::json!({
                "uid": pod.uid,
                "namespace": pod.name.as_ref().map(|name| &name.0),
                "name": pod.name.as_ref().map(|name| &name.1),
                "workload": pod.workload.to_string(),
                "told_by": pod.told_by,
                "objects": pod.objects.len(),
            })
        });
        let unknown = self.resolution.unknown.iter();
        let containers = self.resolution.containers.iter().map(|container| {
            serde_json::json!({
                "id": container.id,
                "pod_uid": container.pod_uid,
                "name": container.name,
                "image": format!("sha256:{}", hex::encode(container.image.digest)),
                "objects": container.objects.len(),
            })
        });
        let absent = self.resolution.absent_images.iter();
        serde_json::json!({
            "kubelet_root": self.kubelet_root,
            "pods": pods.collect::<Vec<_>>(),
            "unknown_pods": unknown
                .map(|pod| serde_json::json!({ "uid": pod.uid, "reason": pod.reason }))
                .collect::<Vec<_>>(),
            "absent_workloads": self.resolution.absent.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "containers": containers.collect::<Vec<_>>(),
            "absent_images": absent
                .map(|image| format!("sha256:{}", hex::encode(image.digest)))
                .collect::<Vec<_>>(),
            "uncovered": self.resolution.uncovered,
        })
    }
}

/// Whose an object is, where that is not the host: workload, and containers with the path they see it at.
pub(super) fn whose(object: &SealedObject) -> Option<String> {
    if object.rule.anchor.is_host() {
        return None;
    }
    let owner = match &object.rule.anchor {
        Anchor::Workload(workload) => workload.to_string(),
        Anchor::Image(image) => format!("image sha256:{}", hex::encode(image.digest)),
        Anchor::Host => String::new(),
    };
    let mounts = object.rule.mounts.iter();
    let seen: Vec<String> = mounts.map(|mount| format!("{}:{}", mount.container, mount.path)).collect();
    Some(if seen.is_empty() { owner } else { format!("{owner}, seen at {}", seen.join(", ")) })
}
