//! `cargo xtask node test`: the DaemonSet as packaged on a real node with Istio, from its first hour without a baseline to an attacker's scenarios,
//! natively and in a guest. One line a check.

mod agent;
mod api;
mod beside;
mod blind;
mod cni;
mod containers;
mod lawful;
mod manifests;
mod proxied;
mod rotation;
mod scenarios;
mod sealed;
mod tamper;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::cluster::Cluster;
use super::{Options, Work};
use crate::interrupt;
use crate::vm::{DEFAULT_LSM, kernel::Series};
use agent::Agent;
use beside::Beside;
use containers::Containers;
use manifests::Judged;
use rotation::Certificate;
use sealed::Sealed;

const PODS: &str = include_str!("../../../assets/node/test.yaml");
const ATTACKED: &str = include_str!("../../../assets/node/scenarios.yaml");
const TAMPER: &str = include_str!("../../../assets/node/tamper.yaml");
/// For whatever the kubelet (10 s between its rounds) and the agent need to take something up, on an emulated machine too.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where: default is natively and, at the same time, in a guest with 6.12
    #[arg(long, value_enum, value_name = "WHERE")]
    only: Vec<Where>,
    /// Without Istio: the sealed volume is that of a pod that looks like an injected one
    #[arg(long)]
    plain: bool,
    /// In a guest too, all that is looked at natively: manifests, images in containers, a standstill of the API server, a proxy's
    /// certificate, istio-cni, the mesh's own keys and sockets, blinding the agent. Takes three times as long there
    #[arg(long)]
    whole: bool,
    /// The optimised build, rather than the one that the lanes use
    #[arg(long)]
    release: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Where {
    Native,
    #[value(name = "6.12")]
    Guest612,
    #[value(name = "7.2")]
    Guest72,
}

/// The verb; 0 when every check passed everywhere.
pub(super) fn run(args: &Args) -> Result<u8> {
    let options = |guest| Options {
        guest,
        lsm: DEFAULT_LSM.to_owned(),
        memory: None,
        mesh: !args.plain,
        bare: false,
        release: args.release,
        with: Vec::new(),
        // An emulated machine takes three times as long for all of it.
        timeout: if args.whole { 4500 } else { 2000 },
        inside: args.inside,
    };
    let work = Work::Test { whole: args.whole };
    if args.inside || super::namespaces::inside()?.is_some() {
        return super::start(&options(None), &work);
    }
    let places = if args.only.is_empty() { vec![Where::Native, Where::Guest612] } else { args.only.clone() };
    let (natively, guests): (Vec<Where>, Vec<Where>) =
        places.into_iter().partition(|place| *place == Where::Native);
    let (here, elsewhere) = if natively.is_empty() { (guests, Vec::new()) } else { (natively, guests) };
    let beside = (!elsewhere.is_empty()).then(|| Beside::start(args, &elsewhere)).transpose()?;
    let worst: Result<u8> = here.into_iter().try_fold(0, |worst: u8, place| {
        interrupt::check()?;
        let (name, guest) = match place {
            Where::Native => ("natively", None),
            Where::Guest612 => ("in a guest with 6.12", Some(Series::V6_12)),
            Where::Guest72 => ("in a guest with 7.2", Some(Series::V7_2)),
        };
        println!("node test {name}");
        let status = super::start(&options(guest), &work).unwrap_or_else(|error| {
            println!("FAIL the node {name}: {error:#}");
            1
        });
        Ok(worst.max(status))
    });
    let beside = beside.map_or(Ok(0), Beside::finish);
    Ok(worst?.max(beside?))
}

/// Counts, and prints a line for each.
#[derive(Debug, Default)]
struct Checks {
    passed: u32,
    failed: u32,
}

impl Checks {
    fn check<T>(&mut self, what: &str, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => {
                println!("ok   {what}");
                self.passed += 1;
                Some(value)
            }
            Err(error) => {
                println!("FAIL {what}: {error:#}");
                self.failed += 1;
                None
            }
        }
    }

    fn finish(&self) -> u8 {
        println!("{} passed, {} failed", self.passed, self.failed);
        u8::from(self.failed > 0)
    }
}

/// A node where the DaemonSet is ready.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) cluster: &'a Cluster,
    /// What was deployed.
    pub(super) package: &'a Path,
    /// Istio is there.
    pub(super) mesh: bool,
    pub(super) rung: &'a str,
    /// All checks, those too that take long in a guest.
    pub(super) whole: bool,
}

impl Ground<'_> {
    /// The rung sees mounts, what a process makes its code, and who reaches into one.
    fn on_hooks(&self) -> bool {
        matches!(self.rung, "lsm" | "fentry")
    }
}

/// All checks.
pub(super) fn on(ground: &Ground<'_>) -> Result<u8> {
    let mut checks = Checks::default();
    let agent = Agent { cluster: ground.cluster };
    if all(ground, &agent, &mut checks).is_none() || checks.failed > 0 {
        agent.explain();
    }
    Ok(checks.finish())
}

/// `None` where a check failed that the others build upon.
fn all(ground: &Ground<'_>, agent: &Agent<'_>, checks: &mut Checks) -> Option<()> {
    let Ground { cluster, package, mesh, rung, whole } = *ground;
    checks.check("the DaemonSet is ready", Ok(()));
    checks.check("no baseline: uncertain (no_baseline), and the agent runs", first_hour(agent));
    checks.check(&format!("the rung is {rung}"), rung_is(agent, rung));
    checks.check("the API server tells it cluster, labels, owners and pods", api::connected(cluster, agent));
    checks.check("its own pod is known by disk and API, with owner and service account", {
        interrupt::until("it is listed", PATIENCE, || api::listed(agent))
    });
    let mut sealed = checks.check(
        "volumes, a configuration, binaries and a bootstrap are sealed and signed",
        sealed::seal(cluster, package, mesh, mesh && whole),
    )?;
    checks.check(
        "baseline, trusted key and the cluster's key applied: intact, without a restart",
        take_up(cluster, agent, &sealed),
    )?;
    checks.check("the kubelet publishes, a pod goes and comes: no violation", {
        lawful::kubelet(cluster, "two").and_then(|()| none_yet(agent))
    });
    if mesh {
        checks.check("pilot-agent renews its certificate: no violation", {
            lawful::renewal(cluster, &sealed.pod).and_then(|()| none_yet(agent))
        });
    }
    if let Some(installed) = &mut sealed.installed {
        checks.check("istio-cni's installer goes and comes, with what it installs: no violation", {
            installed.restarts(cluster).and_then(|()| {
                let intact = interrupt::until("intact", PATIENCE, || agent.status()?.is("intact"));
                // Which ones there are says more than that there are any.
                none_yet(agent).and(intact)
            })
        });
    }
    if whole {
        manifests(ground, &sealed, checks);
    }
    let scenarios = scenarios::all(cluster, &sealed, ground.on_hooks());
    if !ground.on_hooks() {
        println!("note: mounts over an object and reaching into a process are not seen on {rung}");
    }
    let on_plugin = sealed.installed.iter().flat_map(|installed| installed.attacks(cluster));
    let on_mesh = sealed.proxied.iter().flat_map(|proxied| proxied.attacks(cluster));
    let all: Vec<_> =
        scenarios.into_iter().chain(on_mesh).chain(on_plugin).chain(tamper::all(cluster, &sealed)).collect();
    for tampering in &all {
        let outcome = (tampering.act)().and_then(|()| tamper::found(agent, tampering));
        checks.check(tampering.what, outcome);
    }
    if let Some(installed) = &sealed.installed {
        checks.check("that it is a way around the mesh is said", installed.bypass_is_told(agent));
    }
    checks.check(
        &format!("violated, and after more lawful work still these {} violations and no more", all.len()),
        lawful::kubelet(cluster, "three").and_then(|()| no_more(agent, all.len())),
    );
    checks.check(
        "service account, container, image by digest and ConfigMap are on the record, as the API server has them",
        api::target(cluster, agent, &sealed),
    );
    if !whole {
        println!(
            "note: not looked at here, for the time it takes (--whole): manifests, images in containers, a standstill of the API server, a \
             proxy's certificate, istio-cni, the mesh's own keys and sockets, blinding the agent"
        );
        return Some(());
    }
    blinded(ground, agent, &sealed, checks);
    checks.check(
        "the API server stands still: status answers, and a change is told",
        api::outage(cluster, package, &sealed),
    );
    if !Containers::can_be(cluster) {
        println!(
            "note: another containerd has its files in the usual place; what is found by those files is not looked at"
        );
        return Some(());
    }
    let image = in_containers(ground, agent, &sealed, checks);
    if mesh {
        let others: Vec<&Path> = std::iter::once(&*sealed.baseline).chain(image.as_deref()).collect();
        let certificate = checks.check(
            "a proxy's certificate is sealed by its identity, with pilot-agent as its writer",
            Certificate::new(cluster, package, &sealed, agent, &others),
        )?;
        checks.check("pilot-agent's renewal of it is a rotation, by pilot-agent", certificate.is_renewed());
        checks.check("another one in its place is a violation", certificate.is_replaced());
    }
    Some(())
}

/// The real kubelet as judge of what was sealed from manifests.
fn manifests(ground: &Ground<'_>, sealed: &Sealed, checks: &mut Checks) {
    let judged = Judged::new(ground.cluster, ground.package, sealed);
    let every_kind = checks.check(
        "manifests sealed before they are applied: the kubelet lays down what was sealed, every file of it",
        judged.every_kind(),
    );
    if every_kind.is_some() {
        checks.check("one byte, one mode, one link, one key: each is found", judged.single_changes());
    }
    if ground.mesh {
        checks.check("Istio's manifests and the injected pods are as sealed", judged.mesh());
    }
}

/// The agent is ended, by a shell of the host, and what is done meanwhile is told all the same.
fn blinded(ground: &Ground<'_>, agent: &Agent<'_>, sealed: &Sealed, checks: &mut Checks) {
    let [first, second] = &sealed.blind;
    let killed = |file, seen| blind::killed(ground.cluster, agent, file, seen);
    if !ground.on_hooks() {
        let what = "the agent is killed: it comes again, and tells what was changed meanwhile";
        checks.check(what, killed(first, false));
        return;
    }
    checks.check("the agent is killed: what is changed meanwhile is told, and by whom", killed(first, true));
    checks.check(
        "its pins are taken away and it is killed: it comes again, and tells what was changed meanwhile",
        blind::unpin().and_then(|()| killed(second, false)),
    );
}

/// The program of an image, in the containers of two pods. The answer is its signed baseline.
fn in_containers(
    ground: &Ground<'_>,
    agent: &Agent<'_>,
    sealed: &Sealed,
    checks: &mut Checks,
) -> Option<PathBuf> {
    let containers = checks.check(
        "an image is sealed from its archive: its program is intact in the containers of two pods",
        Containers::new(ground.cluster, ground.package, sealed, agent),
    )?;
    if ground.on_hooks() {
        checks.check(
            "it executes a program that was copied into its container",
            containers.execute_what_was_brought_in(),
        );
    }
    checks.check(
        "a write straight to the layer is a violation of each container",
        containers.write_to_the_layer(),
    );
    checks.check("a chmod through /proc/PID/root is one of that container", containers.copy_up());
    checks.check("a rename over it in the container is one of that container", containers.replace_inside());
    checks.check(
        "of the two containers these violations and no more",
        containers.nothing_more(if ground.on_hooks() { 5 } else { 4 }),
    );
    Some(containers.baseline)
}

fn first_hour(agent: &Agent<'_>) -> Result<()> {
    let answer = agent.status()?;
    answer.is("uncertain")?;
    let reasons = answer.status["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !reasons.iter().any(|reason| reason.as_str().is_some_and(|reason| reason.starts_with("no_baseline"))) {
        bail!("the reasons are {}; expected no_baseline among them", answer.status["reasons"]);
    }
    Ok(())
}

fn rung_is(agent: &Agent<'_>, rung: &str) -> Result<()> {
    let status = agent.status()?.status;
    if status["sensor"]["rung"] != rung {
        bail!("the rung is {}", status["sensor"]["rung"]);
    }
    Ok(())
}

fn take_up(cluster: &Cluster, agent: &Agent<'_>, sealed: &Sealed) -> Result<()> {
    let restarts = || {
        cluster.kubectl(&[
            "-n",
            "meshseal",
            "get",
            "pods",
            "-o",
            "jsonpath={.items[*].metadata.uid} {.items[*].status.containerStatuses[*].restartCount}",
        ])
    };
    let before = restarts()?;
    for (name, file) in [("meshseal-trusted-keys", &sealed.key), ("meshseal-baselines", &sealed.baseline)] {
        let from = format!("--from-file={}", file.display());
        cluster.kubectl(&["-n", "meshseal", "create", "configmap", name, &from])?;
    }
    let from = format!("--from-file={}", sealed.cluster_key.display());
    cluster.kubectl(&["-n", "meshseal", "create", "secret", "generic", "meshseal-cluster-key", &from])?;
    interrupt::until("the baseline is in force", PATIENCE, || agent.status()?.is("intact"))?;
    let after = restarts()?;
    if before != after {
        bail!("the agent was restarted: {before} before, {after} after");
    }
    Ok(())
}

fn none_yet(agent: &Agent<'_>) -> Result<()> {
    match agent.violations()?.as_slice() {
        [] => agent.status()?.is("intact"),
        some => bail!("violations: {some:#?}; {}", agent.strangers()),
    }
}

fn no_more(agent: &Agent<'_>, expected: usize) -> Result<()> {
    agent.status()?.is("violated")?;
    let opened = agent.violations()?;
    if opened.len() != expected {
        bail!("{} violations were opened: {opened:#?}", opened.len());
    }
    Ok(())
}
