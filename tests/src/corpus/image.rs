//! A container of an image that was sealed from its layout: from the approved side to the node, and to a violation.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::actor;
use super::overlay::{mount_overlay, unmount};
use super::world::{places, scratch};
use crate::agent::{Agent, Home, PATIENCE, Signer, told, told_of};
use crate::meshseal;
use crate::process::{Process, ROLE};

/// Where containerd keeps the bundles of a node's containers.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
const REFERENCE: &str = "docker.io/library/proxy:1";
/// The proxy of the image: a program that needs nothing else.
pub(super) const PROXY: &str = "usr/local/bin/busybox";
const SOURCE: &str = "/bin/busybox";
/// In seconds: it is killed long before.
const FOR_EVER: &str = "100000";
/// An OCI runtime, where the lane has one.
pub(super) const RUNTIME: &str = "/with/crun";
/// Where the runtime mounts a file system of the container's own.
pub(super) const VOLUME: &str = "/volume";

fn sha256(file: &Path) -> Result<String> {
    let out = told(Command::new("sha256sum").arg(file))?;
    let text = String::from_utf8(out)?;
    Ok(text.split(' ').next().context("no hash")?.to_owned())
}

/// Puts a file among the blobs of a layout; the answer describes it.
fn blob(layout: &Path, kind: &str, file: &Path) -> Result<Value> {
    let (hash, size) = (sha256(file)?, fs::metadata(file)?.len());
    let to = layout.join("blobs/sha256");
    fs::create_dir_all(&to)?;
    fs::rename(file, to.join(&hash))?;
    Ok(json!({ "mediaType": kind, "digest": format!("sha256:{hash}"), "size": size }))
}

fn blob_of(layout: &Path, kind: &str, what: &Value) -> Result<Value> {
    let file = layout.join("blob");
    fs::File::create(&file)?.write_all(&serde_json::to_vec(what)?)?;
    blob(layout, kind, &file)
}

/// A layout with one image of one layer, and the layer's archive.
pub(crate) fn layout(at: &Path, tree: &Path, reference: &str, program: &str) -> Result<()> {
    fs::create_dir_all(at)?;
    let archive = at.join("layer");
    told(Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(&archive).arg("."))?;
    let diff = format!("sha256:{}", sha256(&archive)?);
    let layer = blob(at, "application/vnd.oci.image.layer.v1.tar", &archive)?;
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Entrypoint": [program] },
        "rootfs": { "type": "layers", "diff_ids": [diff] },
    });
    let config = blob_of(at, "application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let mut manifest = blob_of(at, "application/vnd.oci.image.manifest.v1+json", &manifest)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
    fs::write(at.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    Ok(fs::write(at.join("index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string())?)
}

/// What containerd tells its runtime, as far as it matters here.
fn specification(id: &str, program: &[&str]) -> Value {
    let mounts = [("proc", "/proc"), ("tmpfs", "/dev"), ("tmpfs", VOLUME)];
    let mounts = mounts.map(|(kind, to)| {
        let options: &[&str] = if to == VOLUME { &["rw", "exec"] } else { &[] };
        json!({ "source": kind, "destination": to, "type": kind, "options": options })
    });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": program,
            "cwd": "/", "env": ["PATH=/"], "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
            "capabilities": { "bounding": ["CAP_DAC_OVERRIDE"], "effective": ["CAP_DAC_OVERRIDE"],
                "permitted": ["CAP_DAC_OVERRIDE"] },
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": id,
        "mounts": mounts,
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" }] },
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "istio-proxy",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.sandbox-name": "cart-7d4b9c6f5b-x2k8q",
            "io.kubernetes.cri.sandbox-uid": "0f0c9cde-52b7-4f0c-9c2b-3a55a5a1e5c1",
            "io.kubernetes.cri.image-name": REFERENCE,
        },
    })
}

/// A container, as the node has it.
pub(super) struct Container {
    id: String,
    pub(super) bundle: PathBuf,
    /// Its first process where no runtime started it.
    process: Option<Process>,
    /// As the host numbers it.
    pid: u32,
}

impl Container {
    /// Starts it with its root made of that layer, and this program.
    pub(super) fn start(id: &str, scratch: &Path, lower: &Path, program: &[&str]) -> Result<Self> {
        let bundle = Path::new(BUNDLES).join(id);
        let root = bundle.join("rootfs");
        fs::create_dir_all(&root)?;
        mount_overlay(&[lower], &scratch.join("snapshots").join(id), &root)?;
        let config = bundle.join("config.json");
        fs::write(&config, serde_json::to_vec_pretty(&specification(id, program))?)?;
        let noted = bundle.join("init.pid");
        let mut container = Self { id: id.to_owned(), bundle, process: None, pid: 0 };
        if Path::new(RUNTIME).exists() {
            let mut run = container.runtime("run");
            run.arg("--detach").arg("--pid-file").arg(&noted).arg("--bundle").arg(&container.bundle).arg(id);
            // It goes on when the runtime ends, with what it was given to write to.
            let errors = fs::File::create(scratch.join("errors"))?;
            let done = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).status()?;
            ensure!(done.success(), "crun: {done}: {}", fs::read_to_string(scratch.join("errors"))?);
            container.pid = fs::read_to_string(&noted)?.trim().parse()?;
        } else {
            let role = ["program", root.to_str().context("not UTF-8")?];
            let mut process = actor::begin("runtime", &[&role, program].concat())?;
            process.hear("held")?;
            container.pid = process.pid();
            fs::write(&noted, container.pid.to_string())?;
            container.process = Some(process);
        }
        container.runs()?;
        Ok(container)
    }

    /// Waits until it runs its program.
    fn runs(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let exe = fs::read_link(format!("/proc/{}/exe", self.pid))?;
            if exe.ends_with(PROXY) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the container runs {}", exe.display());
            std::thread::yield_now();
        }
    }

    /// What runs that program in it, as the runtime does for `kubectl exec`; where there is none, in its mount namespace alone.
    pub(super) fn inside(&self, program: &[&str]) -> Result<Command> {
        if Path::new(RUNTIME).exists() {
            let mut command = self.runtime("exec");
            command.arg(&self.id).args(program);
            return Ok(command);
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ROLE, "runtime", "within", &self.pid.to_string()]).args(program);
        Ok(command)
    }

    fn runtime(&self, verb: &str) -> Command {
        let mut command = Command::new(RUNTIME);
        command.args(["--root", "/run/crun", "--cgroup-manager", "cgroupfs", verb]);
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            drop(process.kill());
        } else {
            // It may never have been started.
            drop(self.runtime("delete").arg("--force").arg(&self.id).output());
        }
        unmount(&self.bundle.join("rootfs"));
        drop(fs::remove_dir_all(&self.bundle));
    }
}

/// Seals an image that holds the proxy and no other layer than that tree.
pub(super) fn sealed(home: &Home, image: &Path, lower: &Path) -> Result<()> {
    layout(image, lower, REFERENCE, &format!("/{PROXY}"))?;
    let statement = home.dir.join("work/image.json");
    let mut seal = Command::new(meshseal());
    seal.args(["seal", "--name", "image", "--images"]).arg(image).arg("-o").arg(&statement);
    told(&mut seal)?;
    home.offer("image", &home.sign(&statement, Signer::Trusted)?)
}

pub(super) fn a_proxy_is_sealed_from_its_image() -> Result<()> {
    let scratch = scratch(&places()[0])?;
    let home = Home::new(scratch.path().join("home"))?;
    let lower = scratch.path().join("snapshots/1/fs");
    let proxy = lower.join(PROXY);
    fs::create_dir_all(proxy.parent().context("no parent")?)?;
    for dir in ["proc", "dev"] {
        fs::create_dir_all(lower.join(dir))?;
    }
    fs::copy(SOURCE, &proxy)?;
    sealed(&home, &scratch.path().join("layout"), &lower)?;
    let proxy_in_it = format!("/{PROXY}");
    let container = Container::start("c0ffee", scratch.path(), &lower, &[&proxy_in_it, "sleep", FOR_EVER])?;
    let mut agent = Agent::start(&home, 1)?;
    let (status, code) = agent.status()?;
    ensure!(status["posture"] == "intact" && code == 0, "{} {}", status["posture"], status["reasons"]);
    ensure!(status["objects"]["intact"].as_u64() > Some(0), "{}", status["objects"]);

    let seen = container.bundle.join("rootfs").join(PROXY);
    let is_it = |kind: &str, record: &Value| {
        record["kind"] == kind && record["object"]["path"] == seen.display().to_string().as_str()
    };
    // Straight to the layer, while the proxy runs: through the overlay the kernel would not have it.
    let busy = fs::OpenOptions::new().write(true).open(format!("/proc/{}/root/{PROXY}", container.pid));
    ensure!(busy.is_err(), "a program that runs was opened for writing");
    fs::OpenOptions::new().append(true).open(&proxy)?.write_all(b"TAMPER")?;
    let found = agent.find("the violation", |record| is_it("violation.opened", record))?;
    ensure!(found["violation"] == "content" && found["operation"] == "write", "{}", told_of([&found]));
    ensure!(found["actor"]["tgid"] == std::process::id(), "{}", told_of([&found]));
    let target = &found["target"];
    ensure!(target["pod"] == "cart-7d4b9c6f5b-x2k8q" && target["namespace"] == "shop", "{target}");
    ensure!(target["container"] == "istio-proxy", "{target}");
    drop(container);
    agent.find("the container's end", |record| is_it_resolved(record, &found))?;
    agent.stop()?;
    home.verify_journal()
}

fn is_it_resolved(record: &Value, found: &Value) -> bool {
    record["kind"] == "violation.resolved"
        && record["violation_id"] == found["uid"]
        && record["resolution"] == "redeployed"
}
