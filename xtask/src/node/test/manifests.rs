//! The kubelet as the judge of `seal --manifests`: manifests are sealed before they are applied, and what the kubelet then lays down
//! must be what was sealed, every file of it. The same for what a container runs, sealed from the archive of its image.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::PATIENCE;
use super::sealed::Sealed;
use crate::node::cluster::Cluster;
use crate::node::daemon;
use crate::node::mesh::rollout;
use crate::{cmd, interrupt};

/// Every kind of volume, with items, modes, subPaths, fsGroup; also what the tests without a node use.
const EVERY_KIND: &str = include_str!("../../../../tests/fixtures/manifests/every-kind.yaml");

/// Baselines from the approved side, and the node that must be as they say.
pub(super) struct Judged<'a> {
    cluster: &'a Cluster,
    package: &'a Path,
    sealed: &'a Sealed,
    /// Files of this test.
    dir: PathBuf,
}

impl<'a> Judged<'a> {
    pub(super) fn new(cluster: &'a Cluster, package: &'a Path, sealed: &'a Sealed) -> Self {
        Self { cluster, package, sealed, dir: sealed.scratch.join("manifests") }
    }

    /// Manifests with every kind of volume: sealed, then applied, then compared.
    pub(super) fn every_kind(&self) -> Result<()> {
        self.cluster.kubectl(&["create", "namespace", "shop"])?;
        let rendered = self.dir.join("shop");
        fs::create_dir_all(&rendered).context("cannot create a directory")?;
        // Made by the cluster: put beside the manifests, as the docs say.
        interrupt::until("the cluster's root certificate is there", PATIENCE, || {
            self.write(&rendered.join("root.yaml"), &self.made_by_the_cluster("shop", &["kube-root-ca.crt"])?)
        })?;
        let manifests = rendered.join("every-kind.yaml");
        self.write(&manifests, &runnable(EVERY_KIND))?;
        let image = self.package.join("meshseal-image.tar");
        self.seal("shop", &[&rendered], &["--images", &image.to_string_lossy()])?;
        // On an emulated machine the API server may take longer than kubectl waits.
        interrupt::until("the manifests are taken", PATIENCE, || {
            self.cluster.kubectl(&["apply", "-f", &manifests.to_string_lossy()])
        })?;
        for what in ["deployment/web", "statefulset/store"] {
            rollout(self.cluster, "shop", what)?;
        }
        interrupt::until("the pod runs", PATIENCE, || {
            self.cluster.kubectl(&[
                "-n",
                "shop",
                "wait",
                "--for=condition=Ready",
                "pod/alone",
                "--timeout=1s",
            ])
        })?;

        let answer = self.intact("shop")?;
        let mut workloads = strings(&answer["workloads"]["pods"], "workload");
        workloads.sort_unstable();
        if workloads != ["shop/Deployment/web", "shop/Pod/alone", "shop/StatefulSet/store"] {
            bail!("verified were {workloads:?}");
        }
        let containers = strings(&answer["workloads"]["containers"], "name");
        // The runtime's bundles are where they usually are, unless another runtime is there.
        if containers != ["agent"] && self.cluster.places.containerd_state == Path::new("/run/containerd") {
            bail!("containers of the image that was sealed from its archive: {containers:?}");
        }
        Ok(())
    }

    /// Istio's own manifests and the pods that its injector made.
    pub(super) fn mesh(&self) -> Result<()> {
        let rendered = self.dir.join("mesh");
        fs::create_dir_all(&rendered).context("cannot create a directory")?;
        let istio = self.cluster.places.work.join("istio.yaml");
        fs::copy(&istio, rendered.join("istio.yaml"))
            .with_context(|| format!("cannot copy {}", istio.display()))?;
        for (namespace, kinds) in [("istio-system", ""), ("app", "pods,configmaps")] {
            let yaml = if kinds.is_empty() {
                self.made_by_the_cluster(namespace, &["kube-root-ca.crt", "istio-ca-root-cert"])?
            } else {
                self.cluster.kubectl(&["-n", namespace, "get", kinds, "-o", "yaml"])?
            };
            self.write(&rendered.join(format!("{namespace}.yaml")), &yaml)?;
        }
        let authority =
            self.cluster.kubectl(&["-n", "istio-system", "get", "secret", "cacerts", "-o", "yaml"])?;
        self.write(&rendered.join("cacerts.yaml"), &authority)?;
        self.seal("mesh", &[&rendered], &[])?;
        let answer = self.intact("mesh")?;
        let workloads = strings(&answer["workloads"]["pods"], "workload");
        let of = |prefix: &str| workloads.iter().filter(|one| one.starts_with(prefix)).count();
        if (of("app/Pod/web-"), of("istio-system/Deployment/istiod")) != (2, 1) {
            bail!("verified were {workloads:?}; expected two pods of app and istiod");
        }
        Ok(())
    }

    /// One byte, one mode, one link, one key: each is found, and nothing beside it.
    pub(super) fn single_changes(&self) -> Result<()> {
        let uid = self.cluster.kubectl(&[
            "-n",
            "shop",
            "get",
            "pods",
            "-l",
            "app=store",
            "-o",
            "jsonpath={.items[0].metadata.uid}",
        ])?;
        let pod = self.cluster.places.kubelet.join("pods").join(uid.trim());
        let volume = pod.join("volumes/kubernetes.io~configmap/conf");
        let one = volume.join("one");
        let link = volume.join("two.conf");
        let key = volume.join("..data/three");
        // It would put most of it right within seconds.
        let _held =
            daemon::running(&self.cluster.places.work, "kubelet").context("the kubelet does not run")?.hold();
        let bytes = |content: &'static str| {
            let one = one.clone();
            move || fs::write(&one, content).with_context(|| format!("cannot write {}", one.display()))
        };
        let mode = |mode: u32| {
            let one = one.clone();
            move || Ok(fs::set_permissions(&one, fs::Permissions::from_mode(mode))?)
        };
        let target = |to: &'static str| {
            let link = link.clone();
            move || {
                fs::remove_file(&link)?;
                Ok(symlink(to, &link)?)
            }
        };
        let add = || Ok(fs::write(&key, "3")?);
        let remove = || Ok(fs::remove_file(&key)?);
        self.finds(&volume, &["content"], "one", &bytes("2\n"), &bytes("1\n"))?;
        self.finds(&volume, &["attributes"], "one", &mode(0o666), &mode(0o644))?;
        self.finds(&volume, &["structure"], "two.conf", &target("..data/one"), &target("..data/two.conf"))?;
        // A key that no link of the volume leads to.
        self.finds(&volume, &["structure", "names"], "three", &add, &remove)?;
        self.intact("shop").map(drop)
    }

    /// `verify` tells that alone, in that volume; undone afterwards.
    fn finds(
        &self,
        volume: &Path,
        aspects: &[&str],
        entry: &str,
        change: &dyn Fn() -> Result<()>,
        undo: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        change().with_context(|| format!("changing {entry}"))?;
        let (status, answer) = self.verify("shop")?;
        undo().with_context(|| format!("undoing {entry}"))?;
        let told: Vec<String> = answer["differences"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| format!("{} {} {}", one["path"], one["aspect"], one["entry"]))
            .collect();
        let path = Value::from(volume.display().to_string());
        let expected: Vec<String> =
            aspects.iter().map(|aspect| format!("{path} {aspect:?} {entry:?}")).collect();
        if status != Some(1) || told != expected {
            bail!("`verify` ends with {status:?} and tells {told:?}; expected {expected:?}");
        }
        Ok(())
    }

    /// `verify` finds everything as sealed, and nothing that is not in the baseline.
    fn intact(&self, name: &str) -> Result<Value> {
        let (status, answer) = self.verify(name)?;
        if status != Some(0) || answer["verdict"] != "intact" {
            bail!("`verify` ends with {status:?}: {answer:#}");
        }
        for list in ["uncovered", "absent_workloads"] {
            if answer["workloads"][list] != Value::Array(Vec::new()) {
                bail!("{list}: {}", answer["workloads"][list]);
            }
        }
        Ok(answer)
    }

    fn verify(&self, name: &str) -> Result<(Option<i32>, Value)> {
        let mut verify = self.meshseal();
        verify
            .args(["verify", "--format", "json", "--baseline"])
            .arg(self.dir.join(format!("{name}.dsse.json")));
        verify.arg("--trusted-key").arg(&self.sealed.key).arg("--secret-key").arg(&self.sealed.cluster_key);
        verify.arg("--kubelet-root").arg(&self.cluster.places.kubelet);
        let out = verify.output().context("cannot start meshseal")?;
        let answer = serde_json::from_slice(&out.stdout)
            .with_context(|| format!("`verify` says: {}", String::from_utf8_lossy(&out.stderr)))?;
        Ok((out.status.code(), answer))
    }

    fn seal(&self, name: &str, manifests: &[&Path], more: &[&str]) -> Result<()> {
        let statement = self.dir.join(format!("{name}.json"));
        let mut seal = self.meshseal();
        seal.args(["seal", "--name", name, "--secret-key"]).arg(&self.sealed.cluster_key);
        seal.args(["--token-issuer", "https://kubernetes.default.svc", "--manifests"]).args(manifests);
        cmd::output(seal.args(more).arg("-o").arg(&statement))?;
        let mut sign = self.meshseal();
        sign.args(["sign", "--key"]).arg(&self.sealed.private).arg(&statement);
        cmd::output(sign.arg("-o").arg(self.dir.join(format!("{name}.dsse.json")))).map(drop)
    }

    fn meshseal(&self) -> Command {
        Command::new(self.package.join("meshseal"))
    }

    fn made_by_the_cluster(&self, namespace: &str, names: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", namespace, "get", "configmaps", "-o", "yaml"][..], names].concat())
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// With an image that the node has, and without what the cluster makes itself.
fn runnable(manifests: &str) -> String {
    let documents = manifests.split("\n---\n").filter(|one| !one.contains("name: kube-root-ca.crt"));
    let lines = |document: &str| {
        let line = |line: &str| match line.split_once("image: ") {
            Some((indent, _)) => format!(
                "{indent}image: docker.io/meshseal-node/busybox:1\n{indent}imagePullPolicy: Never\n\
                 {indent}command: [/bin/sh, -c, \"while :; do sleep 5; done\"]"
            ),
            None => line.to_owned(),
        };
        document.lines().map(line).collect::<Vec<_>>().join("\n")
    };
    documents.map(lines).collect::<Vec<_>>().join("\n---\n")
}

fn strings<'v>(list: &'v Value, field: &str) -> Vec<&'v str> {
    list.as_array().into_iter().flatten().filter_map(|one| one[field].as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_run_on_the_node() {
        let text = runnable(EVERY_KIND);
        assert!(!text.contains("example.com") && !text.contains("kube-root-ca.crt, namespace"));
        assert_eq!(text.matches("imagePullPolicy: Never").count(), EVERY_KIND.matches("image: ").count());
        assert_eq!(text.matches("\n---\n").count() + 1, EVERY_KIND.matches("\n---\n").count());
    }
}
