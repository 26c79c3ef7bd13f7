//! A proxy's program in real containers: sealed from the archive of its image, and tampered with by every way there is to it. Each act
//! is one violation of each container it concerns, however many layers it passes through.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::PATIENCE;
use super::agent::Agent;
use super::sealed::{Sealed, publish};
use crate::node::cluster::Cluster;
use crate::node::images::{self, PROGRAM};
use crate::{cmd, interrupt};

const PROXIES: &str = include_str!("../../../assets/node/proxies.yaml");
const NAMES: [&str; 2] = ["proxy-one", "proxy-two"];
/// Where containerd keeps what its containers live by, on a node that has no other one.
const STATE: &str = "/run/containerd";

/// The containers of both pods.
pub(super) struct Containers<'a> {
    cluster: &'a Cluster,
    agent: &'a Agent<'a>,
    /// The signed baseline.
    pub(super) baseline: PathBuf,
    one: Container,
    two: Container,
}

struct Container {
    pod: &'static str,
    /// Where the host sees its files.
    root: PathBuf,
    /// Its first process.
    pid: u32,
}

/// What is compared of a record: violation, path, operation, actor's name and pod, target's pod.
type Told = (String, String, String, String, Option<String>, Option<String>);

/// Container, path in it; violation, operation, actor's name; the actor's pod.
type Wanted<'w> = (&'w Container, &'w str, [&'w str; 3], Option<&'w str>);

impl<'a> Containers<'a> {
    /// Whether objects of images can be found here.
    pub(super) fn can_be(cluster: &Cluster) -> bool {
        cluster.places.containerd_state == Path::new(STATE)
    }

    /// Seals the image, hands its baseline to the agent, and waits until both containers are known to be intact.
    pub(super) fn new(
        cluster: &'a Cluster,
        package: &Path,
        sealed: &Sealed,
        agent: &'a Agent<'a>,
    ) -> Result<Self> {
        let dir = sealed.scratch.join("image");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let archive = dir.join("proxy.tar");
        fs::write(&archive, images::proxy()?).context("cannot write the image")?;
        cluster.import(&archive)?;

        let meshseal = || Command::new(package.join("meshseal"));
        let (statement, baseline) = (dir.join("proxy.json"), dir.join("proxy.dsse.json"));
        let mut seal = meshseal();
        seal.args(["seal", "--name", "proxy", "--glob", PROGRAM, "--images"]).arg(&archive);
        cmd::output(seal.arg("-o").arg(&statement))?;
        let mut sign = meshseal();
        sign.args(["sign", "--key"]).arg(&sealed.private).arg(&statement);
        cmd::output(sign.arg("-o").arg(&baseline))?;

        cluster.apply(PROXIES)?;
        for pod in NAMES {
            interrupt::until(&format!("{pod} runs"), PATIENCE, || {
                let pod = format!("pod/{pod}");
                cluster.kubectl(&["-n", "plain", "wait", "--for=condition=Ready", &pod, "--timeout=1s"])
            })?;
        }
        publish(cluster, &[&sealed.baseline, &baseline])?;

        let [one, two] = NAMES.map(|pod| Container::of(cluster, pod));
        let containers = Self { cluster, agent, baseline, one: one?, two: two? };
        interrupt::until("both containers are known", PATIENCE, || containers.are_intact())?;
        Ok(containers)
    }

    fn are_intact(&self) -> Result<()> {
        let objects = self.agent.objects()?;
        for container in [&self.one, &self.two] {
            let path = container.path(PROGRAM);
            let object = objects.iter().find(|object| object["path"] == path.as_str());
            let state = object.context("one of the programs is no object")?["state"].clone();
            if state != "intact" {
                bail!("{path} is {state}");
            }
        }
        Ok(())
    }

    /// A program that was copied into the container, executed by the sealed one.
    pub(super) fn execute_what_was_brought_in(&self) -> Result<()> {
        let script = "cp /bin/busybox /tmp/busybox; /tmp/busybox true";
        self.inside(&self.one, &[PROGRAM, "sh", "-c", script])?;
        let one = Some(self.one.pod);
        self.found(&[(&self.one, "/tmp/busybox", ["executed", "execve", "busybox"], one)])
    }

    /// A byte more, straight in the layer that both are made of.
    pub(super) fn write_to_the_layer(&self) -> Result<()> {
        let file = self.one.lower()?;
        let script = r#"printf x >> "$1""#;
        cmd::output(Command::new("sh").args(["-c", script, "sh"]).arg(&file))?;
        let of = |container| (container, PROGRAM, ["content", "write", "sh"], None);
        self.found(&[of(&self.one), of(&self.two)])
    }

    /// Another mode, through /proc/PID/root: the file is copied up.
    pub(super) fn copy_up(&self) -> Result<()> {
        let file = format!("/proc/{}/root{PROGRAM}", self.one.pid);
        cmd::output(Command::new("chmod").args(["0700", &file]))?;
        self.found(&[(&self.one, PROGRAM, ["attributes", "setattr", "chmod"], None)])
    }

    /// Another file renamed over it, by a process of the container. What busybox's shell does itself goes by the shell's name or the
    /// applet's, as it comes.
    pub(super) fn replace_inside(&self) -> Result<()> {
        let script =
            "cp /bin/busybox /tmp/new; cp /bin/busybox /tmp/mv; exec /tmp/mv /tmp/new /usr/local/bin/busybox";
        self.inside(&self.two, &["/bin/sh", "-c", script])?;
        self.found(&[(&self.two, PROGRAM, ["replaced", "rename", "mv"], Some(self.two.pod))])
    }

    /// Nothing was told of these containers but what the acts are.
    pub(super) fn nothing_more(&self, expected: usize) -> Result<()> {
        let told = self.told()?;
        if told.len() != expected {
            bail!("{} violations, expected {expected}: {told:#?}", told.len());
        }
        Ok(())
    }

    fn inside(&self, container: &Container, command: &[&str]) -> Result<()> {
        let exec = ["-n", "plain", "exec", container.pod, "--"];
        self.cluster.kubectl(&[&exec[..], command].concat()).map(drop)
    }

    /// Waits for violations.
    fn found(&self, wanted: &[Wanted<'_>]) -> Result<()> {
        let wanted: BTreeSet<Told> = wanted
            .iter()
            .map(|(container, path, [violation, operation, comm], pod)| {
                let own = |text: &str| text.to_owned();
                let target = Some(own(container.pod));
                let (path, pod) = (container.path(path), pod.map(own));
                (own(violation), path, own(operation), own(comm), pod, target)
            })
            .collect();
        interrupt::until("the violations are opened", PATIENCE, || {
            let told = self.told()?;
            if wanted.is_subset(&told) { Ok(()) } else { bail!("expected {wanted:#?}, told {told:#?}") }
        })
    }

    /// What was told of these containers so far.
    fn told(&self) -> Result<BTreeSet<Told>> {
        let opened = self.agent.violations()?;
        let of_these = |record: &&Value| {
            let path = record["object"]["path"].as_str().unwrap_or_default();
            [&self.one, &self.two].iter().any(|one| Path::new(path).starts_with(&one.root))
        };
        let told = |record: &Value| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let word = |value: &Value| text(value).unwrap_or_default();
            (
                word(&record["violation"]),
                word(&record["object"]["path"]),
                word(&record["operation"]),
                word(&record["actor"]["comm"]),
                text(&record["actor"]["pod"]["name"]),
                text(&record["target"]["pod"]),
            )
        };
        Ok(opened.iter().filter(of_these).map(told).collect())
    }
}

impl Container {
    /// The one container of a pod.
    fn of(cluster: &Cluster, pod: &'static str) -> Result<Self> {
        let id = cluster.kubectl(&[
            "-n",
            "plain",
            "get",
            "pod",
            pod,
            "-o",
            "jsonpath={.status.containerStatuses[0].containerID}",
        ])?;
        let id = id.trim().strip_prefix("containerd://").context("not a container of containerd's")?;
        let bundle = cluster.places.containerd_state.join("io.containerd.runtime.v2.task/k8s.io").join(id);
        let file = bundle.join("init.pid");
        let pid = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self { pod, root: bundle.join("rootfs"), pid: pid.trim().parse().context("not a pid")? })
    }

    /// Where the host sees a path of the container.
    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.root.display())
    }

    /// The program, in the layer of the image.
    fn lower(&self) -> Result<PathBuf> {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid))?;
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root")?;
        let layers = root.split_once("lowerdir=").context("no overlay")?.1;
        let layers = layers.split(',').next().unwrap_or_default().split(':');
        layers
            .map(|layer| Path::new(layer).join(PROGRAM.trim_start_matches('/')))
            .find(|file| file.exists())
            .with_context(|| format!("no layer has {PROGRAM}: {root}"))
    }
}
