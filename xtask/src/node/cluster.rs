//! A real one-node Kubernetes: etcd, API server, controller manager, scheduler, kube-proxy, containerd and kubelet.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::daemon::Identity;
use super::places::{ADDRESS, NODE, Places};
use super::{daemon, down, images, parts, pki};
use crate::cmd::{self, say};
use crate::interrupt;

const CONTAINERD: &str = include_str!("../../assets/node/containerd.toml");
const KUBELET: &str = include_str!("../../assets/node/kubelet.yaml");
const CNI: &str = include_str!("../../assets/node/10-node.conflist");
/// Where the distribution has the plugins that the node's chain is made of, and which those are.
const PLUGINS: (&str, [&str; 3]) = ("/usr/lib/cni", ["ptp", "host-local", "loopback"]);
const PROGRAMS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];

/// A node that runs; taken down when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) places: Places,
    take_down: bool,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A guest is thrown away as it is.
        if self.take_down {
            down::report(down::clean(&self.places.work));
        }
    }
}

impl Cluster {
    /// Starts the node and waits until it is ready, with the images of `images` loaded.
    pub(crate) fn start(localkube: &Path, etcd: &Path, images: &Path, take_down: bool) -> Result<Self> {
        say!("starting the node");
        // From the first trace on, whatever fails is taken down again.
        let cluster = Self { places: Places::choose()?, take_down };
        cluster.network()?;
        cluster.programs(localkube)?;
        pki::make(&cluster.places)?;
        cluster.control_plane(etcd).map_err(|error| cluster.explain(error, "apiserver"))?;
        cluster.runtime().map_err(|error| cluster.explain(error, "containerd"))?;
        cluster.load(images)?;
        cluster.kubelet().map_err(|error| cluster.explain(error, "kubelet"))?;
        say!("the node is ready");
        Ok(cluster)
    }

    fn explain(&self, error: anyhow::Error, daemon: &str) -> anyhow::Error {
        let tail = daemon::log_tail(&self.places.work, daemon);
        error.context(format!("the node did not start; the last words of {daemon}:\n{tail}\n"))
    }

    fn network(&self) -> Result<()> {
        let ip = |args: &[&str]| cmd::output(Command::new("ip").args(args));
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "node0", "type", "bridge"])?;
        ip(&["addr", "replace", &format!("{ADDRESS}/24"), "dev", "node0"])?;
        ip(&["link", "set", "node0", "up"])?;
        ip(&["route", "replace", "default", "dev", "node0"])?;
        // kube-proxy and the pods' network need it; it is the namespace's own setting.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn forwarding on")
    }

    /// The one binary under each of its names; `kubectl` in a directory of its own, for PATH. The kubelet is a file of its own, as on any
    /// node: the agent knows it by its executable.
    fn programs(&self, localkube: &Path) -> Result<()> {
        for (dir, names) in [("bin", PROGRAMS.as_slice()), ("path", &["kubectl"])] {
            let dir = self.places.work.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            for name in names {
                if *name == "kubelet" {
                    parts::install(localkube, &dir.join(name))?;
                    continue;
                }
                symlink(localkube, dir.join(name)).with_context(|| format!("cannot link {name}"))?;
            }
        }
        Ok(())
    }

    fn start_daemon(&self, name: &str, program: impl AsRef<Path>, args: &[String]) -> Result<()> {
        let mut command = Command::new(program.as_ref());
        daemon::start(&self.places.work, name, command.args(args).current_dir(&self.places.work))
    }

    fn control_plane(&self, etcd: &Path) -> Result<()> {
        let work = self.places.work.display();
        let bin = self.places.work.join("bin");
        let args = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        self.start_daemon("etcd", etcd, &args(format!(
            "--data-dir {work}/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
             --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync"
        )))?;
        self.start_daemon("apiserver", bin.join("kube-apiserver"), &args(format!(
            "--etcd-servers=http://127.0.0.1:2379 --bind-address={ADDRESS} --secure-port=6443 --advertise-address={ADDRESS} \
             --allow-privileged=true --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key \
             --client-ca-file=pki/ca.crt --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
             --service-account-key-file=pki/sa.pub --service-account-signing-key-file=pki/sa.key \
             --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=10.96.0.0/16 \
             --kubelet-client-certificate=pki/admin.crt --kubelet-client-key=pki/admin.key \
             --kubelet-preferred-address-types=InternalIP"
        )))?;
        interrupt::until("the API server answers", Duration::from_secs(300), || {
            if daemon::running(&self.places.work, "apiserver").is_none() {
                bail!("it has ended");
            }
            self.kubectl(&["get", "--raw", "/readyz"])
        })?;
        self.start_daemon("kcm", bin.join("kube-controller-manager"), &args(
            "--kubeconfig=kcm.kubeconfig --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt \
             --use-service-account-credentials=true --leader-elect=false".to_owned(),
        ))?;
        self.start_daemon(
            "sched",
            bin.join("kube-scheduler"),
            &args("--kubeconfig=sched.kubeconfig --leader-elect=false".to_owned()),
        )?;
        self.start_daemon("proxy", bin.join("kube-proxy"), &args(format!(
            "--kubeconfig=admin.kubeconfig --proxy-mode=iptables --hostname-override={NODE} --cluster-cidr=10.244.0.0/16 \
             --conntrack-max-per-core=0 --bind-address={ADDRESS}"
        )))
    }

    fn runtime(&self) -> Result<()> {
        self.write_config(&self.places.cni.join("10-node.conflist"), CNI)?;
        let (from, plugins) = PLUGINS;
        for plugin in plugins {
            parts::install(&Path::new(from).join(plugin), &self.places.cni_bin.join(plugin))?;
        }
        self.write_config(&self.places.work.join("containerd.toml"), CONTAINERD)?;
        self.start_daemon("containerd", "containerd", &["-c".to_owned(), "containerd.toml".to_owned()])?;
        interrupt::until("containerd answers", Duration::from_secs(120), || {
            cmd::output(self.ctr().arg("version")).map(drop)
        })
    }

    fn write_config(&self, path: &Path, template: &str) -> Result<()> {
        let text = template
            .replace("@WORK@", &self.places.work.display().to_string())
            .replace("@ROOT@", &self.places.containerd_root.display().to_string())
            .replace("@STATE@", &self.places.containerd_state.display().to_string())
            .replace("@CNI@", &self.places.cni.display().to_string())
            .replace("@CNIBIN@", &self.places.cni_bin.display().to_string())
            .replace("@PAUSE@", &images::name("pause"));
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.places.containerd_socket()).args(["-n", "k8s.io"]);
        command
    }

    /// Loads every image archive of a directory.
    fn load(&self, dir: &Path) -> Result<()> {
        let mut archives: Vec<PathBuf> = fs::read_dir(dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
            .collect();
        archives.sort();
        archives.iter().try_for_each(|archive| self.import(archive))
    }

    /// Loads one image archive.
    pub(crate) fn import(&self, archive: &Path) -> Result<()> {
        interrupt::check()?;
        cmd::output(self.ctr().args(["images", "import"]).arg(archive)).map(drop)
    }

    fn kubelet(&self) -> Result<()> {
        self.write_config(&self.places.work.join("kubelet.yaml"), KUBELET)?;
        self.start_daemon(
            "kubelet",
            self.places.work.join("bin/kubelet"),
            &[
                "--config=kubelet.yaml".to_owned(),
                "--kubeconfig=node.kubeconfig".to_owned(),
                format!("--hostname-override={NODE}"),
                format!("--node-ip={ADDRESS}"),
                format!("--root-dir={}", self.places.kubelet.display()),
            ],
        )?;
        interrupt::until("the node is ready", Duration::from_secs(300), || {
            if daemon::running(&self.places.work, "kubelet").is_none() {
                bail!("the kubelet has ended");
            }
            self.kubectl(&["wait", "--for=condition=Ready", &format!("node/{NODE}"), "--timeout=1s"])
        })?;
        interrupt::until("the default service account is there", Duration::from_secs(60), || {
            self.kubectl(&["get", "serviceaccount", "default"])
        })
        .map(drop)
    }

    /// `kubectl` for this node.
    pub(crate) fn kubectl_command(&self) -> Command {
        let mut command = Command::new(self.places.work.join("bin/kubectl"));
        command.arg("--kubeconfig").arg(self.places.kubeconfig());
        command
    }

    /// The answer of a `kubectl` command.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        cmd::output(self.kubectl_command().args(args))
    }

    /// The process that a container began with, by the id that its pod's status tells.
    pub(crate) fn first_process(&self, id: &str) -> Result<Identity> {
        let id = id.trim().strip_prefix("containerd://").context("not a container of containerd's")?;
        let bundle = self.places.containerd_state.join("io.containerd.runtime.v2.task/k8s.io").join(id);
        let file = bundle.join("init.pid");
        let pid = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Identity::of(pid.trim().parse().context("not a pid")?).context("the container's process has ended")
    }

    /// Applies manifests.
    pub(crate) fn apply(&self, yaml: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new().context("cannot create a temporary file")?;
        fs::write(file.path(), yaml).context("cannot write the manifests")?;
        cmd::output(self.kubectl_command().args(["apply", "-f"]).arg(file.path())).map(drop)
    }
}
