//! `cargo xtask node`: a command beside a real one-node Kubernetes (kubelet, containerd, API server) on which the DaemonSet of `cargo xtask
//! package` runs, with a real Istio on request. Natively on this machine, in a network of its own, or in a guest whose kernel allows
//! BPF LSM. Whatever happens, all of it is taken down again.

mod cluster;
mod command;
mod daemon;
mod down;
mod guest;
mod images;
mod janitor;
mod mesh;
mod namespaces;
pub(crate) mod parts;
mod pki;
mod places;
mod test;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::build::Profile;
use crate::cache::Cache;
use crate::cmd::{self, say};
use crate::interrupt;
use crate::package::{self, oci};
use crate::vm::kernel::Series;
use crate::{setup, workspace};
use cluster::Cluster;
use parts::Parts;
use places::WORK;

/// The lane itself failed, not the command.
const LANE_FAILED: u8 = 125;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    options: Options,
    /// What to run beside the node, as root
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// The DaemonSet's own end-to-end tests, natively and in a guest
    Test(test::Args),
    /// Takes the node down when the run that started this is gone
    #[command(hide = true)]
    Janitor,
}

#[derive(Debug, Clone, clap::Args)]
struct Options {
    /// Runs all of it in a guest with this kernel: 6.12 or 7.2
    #[arg(long, value_name = "KERNEL")]
    guest: Option<Series>,
    /// The list of LSMs that the guest's kernel starts with
    #[arg(long, value_name = "LIST", requires = "guest", default_value = crate::vm::DEFAULT_LSM)]
    lsm: String,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", requires = "guest")]
    memory: Option<u32>,
    /// With Istio and two injected pods
    #[arg(long)]
    mesh: bool,
    /// Without the DaemonSet: the node alone
    #[arg(long)]
    bare: bool,
    /// The optimised build in the image, rather than the one that the lanes use
    #[arg(long)]
    release: bool,
    /// A file to put at $WITH/NAME
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// Seconds after which the command is ended (exit status 124)
    #[arg(long, value_name = "S", default_value_t = 1800)]
    timeout: u64,
    /// This process is in the guest already
    #[arg(long, hide = true)]
    inside: bool,
}

/// What runs once the node is ready.
enum Work<'a> {
    Command(&'a [OsString]),
    /// The DaemonSet's tests; whole: those too that take long in a guest.
    Test {
        whole: bool,
    },
}

/// What was packaged, and the node's parts: everything that is the same natively and in a guest.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Supplies {
    localkube: PathBuf,
    etcd: PathBuf,
    istioctl: Option<PathBuf>,
    images: PathBuf,
    /// `cargo xtask package`'s output; `None` for the node alone.
    package: Option<PathBuf>,
}

/// The verb.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    interrupt::catch();
    let status = match args.action {
        Some(Action::Test(test)) => test::run(&test),
        Some(Action::Janitor) => janitor::run().map(|()| 0),
        None if args.command.is_empty() => {
            bail!("nothing to run: cargo xtask node [--guest 6.12|7.2] [--mesh] -- CMD [ARG...]")
        }
        None => start(&args.options, &Work::Command(&args.command)),
    };
    match status {
        Ok(status) => Ok(ExitCode::from(status)),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            Ok(ExitCode::from(
                interrupt::signal().and_then(|s| u8::try_from(128 + s).ok()).unwrap_or(LANE_FAILED),
            ))
        }
    }
}

/// Provides what is needed and starts the node where it was asked for.
fn start(options: &Options, work: &Work<'_>) -> Result<u8> {
    if options.inside {
        return inside(options, work);
    }
    if let Some(supplies) = namespaces::inside()? {
        namespaces::furnish()?;
        return on_node(options, &supplies, true, work);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("a node needs root: run it as root");
    }
    let parts = Parts::provide(options.mesh)?;
    interrupt::check()?;
    let images = images::provide(&parts)?;
    let package = if options.bare { None } else { Some(provide_package(options)?) };
    let supplies = Supplies {
        localkube: parts.localkube.clone(),
        etcd: parts.etcd.clone(),
        istioctl: parts.mesh.as_ref().map(|mesh| mesh.istio.join("istioctl")),
        images,
        package,
    };
    match options.guest {
        Some(series) => guest::run(series, options, &supplies, work),
        None => {
            setup::packages(parts::NEEDS)?;
            let _one_at_a_time = Cache::open()?.lock("node-run")?;
            down::clean(Path::new(WORK)).context("an earlier run left a node that cannot be removed")?;
            let janitor = janitor::Janitor::start()?;
            let status = namespaces::run(&supplies);
            // Where the inner program was killed.
            down::clean(Path::new(WORK)).context("the node was not taken down completely")?;
            janitor.dismiss();
            status
        }
    }
}

/// Packages what the node is to run. Never `target/package`, which belongs to the verb of that name.
fn provide_package(options: &Options) -> Result<PathBuf> {
    let (profile, name) =
        if options.release { (Profile::Release, "node-release") } else { (Profile::Lane, "node") };
    let out = workspace::target().join(name);
    package::package(profile, &out)?;
    Ok(out)
}

/// In the guest everything is on the disks.
fn inside(options: &Options, work: &Work<'_>) -> Result<u8> {
    let parts = Path::new(guest::PARTS);
    let with = Path::new(guest::WITH);
    let package = Path::new("/run/meshseal-package");
    fs::create_dir_all(package).context("cannot create the package's directory")?;
    for name in guest::PACKAGED.iter().filter(|_| !options.bare) {
        let from = with.join(format!(".node-{name}"));
        std::os::unix::fs::symlink(&from, package.join(name))
            .with_context(|| format!("cannot link {name}"))?;
    }
    let supplies = Supplies {
        localkube: parts.join("localkube"),
        etcd: parts.join("etcd"),
        istioctl: options.mesh.then(|| parts.join("istioctl")),
        images: parts.join("images"),
        package: (!options.bare).then(|| package.to_path_buf()),
    };
    on_node(options, &supplies, false, work)
}

/// Starts the node here, deploys, works, and takes it down.
fn on_node(options: &Options, supplies: &Supplies, native: bool, work: &Work<'_>) -> Result<u8> {
    let cluster = Cluster::start(&supplies.localkube, &supplies.etcd, &supplies.images, native)?;
    if let Some(istioctl) = &supplies.istioctl {
        // An emulated guest has its plugin on request only: it is one more program of 80 MB for each pod that starts.
        let cni = native || !matches!(work, Work::Test { whole: false });
        let installer = cni.then(|| supplies.images.join(images::LATER).join("install-cni.tar"));
        mesh::start(&cluster, istioctl, installer.as_deref())?;
    }
    if let Some(package) = &supplies.package {
        if !native {
            be_patient(&cluster)?;
        }
        deploy(&cluster, package)?;
    }
    match work {
        Work::Command(command) => {
            let with = if native {
                gather(&cluster.places.work.join("with"), &options.with)?
            } else {
                PathBuf::from(guest::WITH)
            };
            command::run(&cluster, command, &with, Duration::from_secs(options.timeout))
        }
        Work::Test { whole } => {
            let package = supplies.package.as_deref().context("the tests need the DaemonSet")?;
            let (rung, whole) = if native { ("fanotify", true) } else { ("lsm", *whole) };
            test::on(&test::Ground { cluster: &cluster, package, mesh: options.mesh, rung, whole })
        }
    }
}

/// The configuration of agents in an emulated guest, where an installer takes minutes to put back what it took away.
fn be_patient(cluster: &Cluster) -> Result<()> {
    const IMAGE: &str = include_str!("../../../deploy/image/default.yaml");
    let lines: String =
        IMAGE.lines().filter(|line| !line.starts_with('#')).map(|line| format!("    {line}\n")).collect();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: meshseal}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: meshseal-config, namespace: meshseal}}\n\
         data:\n  config.yaml: |\n{lines}      awaitInstaller: 10m\n"
    ))
}

/// Loads the image, applies the manifests, waits for the DaemonSet.
fn deploy(cluster: &Cluster, package: &Path) -> Result<()> {
    say!("deploying the DaemonSet");
    cluster.import(&package.join("meshseal-image.tar"))?;
    let manifests = package.join("meshseal.yaml");
    cmd::output(cluster.kubectl_command().args(["apply", "-f"]).arg(&manifests))?;
    mesh::rollout(cluster, "meshseal", "daemonset/meshseal")?;
    say!("the DaemonSet is ready");
    Ok(())
}

/// Puts the `--with` files into one directory, executable bits kept.
fn gather(dir: &Path, files: &[PathBuf]) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for file in files {
        let name =
            file.file_name().with_context(|| format!("--with {}: a file is expected", file.display()))?;
        let to = dir.join(name);
        if to.exists() {
            bail!("--with {}: another file of that name is given too", file.display());
        }
        fs::copy(file, &to).with_context(|| format!("--with {}: cannot be copied", file.display()))?;
    }
    Ok(dir.to_path_buf())
}

/// A short key for what a cached thing was made of.
fn key(parts: &[String]) -> String {
    oci::sha256(parts.join("\n").as_bytes()).chars().take(12).collect()
}
