//! The Kubernetes API and the agent: what it adds to records, and that nothing it does keeps the agent from its work.
//!
//! The kubelet is this program under that name, with a directory of its own; the API server is one of the test's own.

#[path = "../../../monitor/src/inventory/api/tests/server.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with unit tests, which use all of it, and may panic"
)]
mod server;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::server::{Mode, Server, pod};
use crate::agent::{self, Agent, Home, PATIENCE, Signer, pause, told_of};

const POD: &str = "01234567-89ab-cdef-0123-456789abcdef";
/// Set among processes of its own.
const INSIDE: &str = "MESHSEAL_TESTS_INSIDE";
/// An answer that takes longer is none that somebody waits for.
const AT_ONCE: Duration = Duration::from_secs(5);

/// What a test program's `main` returns.
pub fn main() -> ExitCode {
    crate::corpus::rung::at_most("fanotify");
    if std::env::args().any(|one| one.starts_with("--root-dir=")) {
        // The kubelet of these tests: it is there until its stdin ends.
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(INSIDE).is_none() {
        return inside();
    }
    crate::main(crate::cases![
        without_the_api_it_is_ready_and_with_it_records_tell_more,
        whatever_the_api_does_a_change_is_told,
        a_scope_is_met_once_the_api_tells_and_from_then_on,
    ])
}

/// This program again, among processes of its own: a real kubelet of this machine must not be taken for the one of these tests.
fn inside() -> ExitCode {
    let again = || -> Result<std::process::ExitStatus> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
        Ok(command.status()?)
    };
    match again() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAIL a process namespace: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A node: a kubelet with one pod, an API server that knows it, and an agent.
struct Node {
    server: Server,
    _kubelet: Kubelet,
    volume: PathBuf,
    home: Home,
    agent: Agent,
    _scratch: tempfile::TempDir,
}

struct Kubelet(Child);

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _gone = (self.0.kill(), self.0.wait());
    }
}

impl Node {
    /// With `files` sealed; the server behaves like that from the start.
    fn start(files: &[&str], mode: Mode) -> Result<Self> {
        let place = if Path::new("/data").is_dir() { "/data" } else { "/var/tmp" };
        let scratch = tempfile::Builder::new().prefix("kubernetes-").tempdir_in(place)?;
        let root = scratch.path().join("kubelet-root");
        let volume = root.join("pods").join(POD).join("volumes/kubernetes.io~configmap/conf");
        fs::create_dir_all(&volume)?;
        for file in files {
            fs::write(volume.join(file), "as sealed")?;
        }
        let exe = scratch.path().join("kubelet");
        fs::copy(std::env::current_exe()?, &exe)?;
        let kubelet = Command::new(&exe)
            .arg0("kubelet")
            .arg(format!("--root-dir={}", root.display()))
            .stdin(Stdio::piped())
            .spawn()?;
        let _kubelet = Kubelet(kubelet);
        let server = Server::start();
        server.token("node");
        server.put(told());
        let owner = json!([{"kind": "Deployment", "name": "web", "uid": "d1", "controller": true}]);
        server.object(
            "/apis/apps/v1/namespaces/shop/replicasets/web-7d",
            &json!({"uid": "rs1", "ownerReferences": owner}),
        );
        server.object("/api/v1/nodes/corpus", &json!({"uid": "n", "labels": {"pool": "edge"}}));
        server.behave(mode);
        let home = Home::new(scratch.path().join("home"))?;
        let (token, kubeconfig) = (home.dir.join("token"), home.dir.join("kubeconfig"));
        fs::write(&token, "node\n")?;
        fs::write(&kubeconfig, server.kubeconfig(&token))?;
        home.configure(&format!("kubernetes: {{ kubeconfig: {} }}\n", kubeconfig.display()))?;
        let sealed: Vec<PathBuf> = files.iter().map(|file| volume.join(file)).collect();
        home.baseline("conf", 1, &sealed.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        let agent = Agent::start(&home, 1)?;
        Ok(Self { server, _kubelet, volume, home, agent, _scratch: scratch })
    }

    /// Waits until the pod is listed without an owner: connected again, the agent may still have to hear what changed.
    fn hears_of_no_owner(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut pods = Command::new(crate::meshseal());
            pods.args(["pods", "--format", "json", "--socket"]).arg(self.home.socket());
            let pods: Value = serde_json::from_slice(&agent::told(&mut pods)?)?;
            let pod = pods.as_array().into_iter().flatten().find(|pod| pod["uid"] == POD);
            if pod.is_some_and(|pod| pod["owner"].is_null()) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "it still has an owner: {pods}");
            pause(Duration::from_millis(50));
        }
    }

    /// Waits until status says that of the API; each answer must come at once.
    fn api_is(&self, state: &str, fault: Option<&str>) -> Result<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = Instant::now();
            let (status, _) = self.agent.status()?;
            ensure!(asked.elapsed() < AT_ONCE, "status took {:?}", asked.elapsed());
            let api = &status["kubernetes"];
            if api["state"] == state && fault.is_none_or(|fault| api["fault"]["kind"] == fault) {
                return Ok(status);
            }
            ensure!(Instant::now() < until, "expected {state} {fault:?}, status says {api}");
            std::thread::yield_now();
        }
    }

    /// What `meshseal doctor` says of the API.
    fn doctor(&self) -> Result<(bool, String)> {
        let mut command = Command::new(crate::meshseal());
        let out =
            command.args(["doctor", "--format", "json", "--config"]).arg(self.home.config()).output()?;
        let report: Value = serde_json::from_slice(&out.stdout)?;
        let check =
            report["checks"].as_array().into_iter().flatten().find(|one| one["name"] == "kubernetes.api");
        let check = check.context("no check of the API")?;
        Ok((check["ok"] == true, check["detail"].as_str().unwrap_or_default().to_owned()))
    }

    /// Changes a file; the answer is the target of the one violation that tells.
    fn tamper(&mut self, file: &str) -> Result<Value> {
        let path = self.volume.join(file);
        fs::write(&path, "TAMPER")?;
        let path = path.display().to_string();
        let about = |record: &Value| {
            record["kind"] == "violation.opened" && record["object"]["path"] == path.as_str()
        };
        let record = self.agent.find(&format!("violation of {file}"), about)?;
        ensure!(record["violation"] == "content", "{}", told_of([&record]));
        Ok(record["target"].clone())
    }
}

/// The pod as the API tells it.
fn told() -> Value {
    let mut pod = pod("shop", "web-7d-x", POD);
    pod["metadata"]["ownerReferences"] =
        json!([{"kind": "ReplicaSet", "name": "web-7d", "uid": "rs1", "controller": true}]);
    pod["spec"]["serviceAccountName"] = json!("web");
    pod["spec"]["volumes"] = json!([{"name": "conf", "configMap": {"name": "web-config"}}]);
    pod["spec"]["containers"] =
        json!([{"name": "app", "image": "r.example/app:1", "volumeMounts": [{"name": "conf"}]}]);
    pod["status"]["containerStatuses"] =
        json!([{"name": "app", "containerID": "containerd://1", "imageID": "r.example/app@sha256:00"}]);
    pod
}

/// What the node alone tells of a file's target.
fn by_the_node() -> Value {
    json!({
        "namespace": null, "pod": null, "pod_uid": POD, "container": null, "service_account": null, "mesh": null,
        "image": null, "volume": "conf",
        "source": {"kind": "ConfigMap", "namespace": null, "name": null, "uid": null, "resourceVersion": null},
    })
}

/// And with the API.
fn by_both() -> Value {
    json!({
        "namespace": "shop", "pod": "web-7d-x", "pod_uid": POD, "container": "app", "service_account": "web",
        "owner": {"kind": "Deployment", "name": "web"}, "mesh": null,
        "image": "r.example/app:1", "image_digest": "r.example/app@sha256:00", "volume": "conf",
        "source": {"kind": "ConfigMap", "namespace": "shop", "name": "web-config", "uid": null, "resourceVersion": null},
    })
}

fn without_the_api_it_is_ready_and_with_it_records_tell_more() -> Result<()> {
    // It takes connections and says nothing, from before the agent starts: `start` waits for `ready`.
    let mut node = Node::start(&["early", "late"], Mode::Hang)?;
    let (status, code) = node.agent.status()?;
    ensure!(code == 0, "posture {} {}", status["posture"], status["reasons"]);
    let target = node.tamper("early")?;
    ensure!(target == by_the_node(), "without the API the target is {target}");
    let status = node.api_is("lost", Some("silent"))?;
    let unknown = json!([
        "owners, images by digest and sources of volumes of all pods",
        "uid of the cluster",
        "labels of the node"
    ]);
    ensure!(status["kubernetes"]["unknown"] == unknown, "{}", status["kubernetes"]);

    node.server.behave(Mode::Well);
    let status = node.api_is("connected", None)?;
    ensure!(status["kubernetes"]["unknown"] == json!([]), "{}", status["kubernetes"]);
    ensure!(status["kubernetes"]["cluster_uid"] == "cluster-1", "{}", status["kubernetes"]);
    let target = node.tamper("late")?;
    ensure!(target == by_both(), "with the API the target is {target}");

    let (ok, detail) = node.doctor()?;
    ensure!(ok && detail.ends_with("pods of node corpus can be listed"), "doctor: {detail}");
    node.server.behave(Mode::Refuse("/api/v1/nodes", 403));
    let (ok, detail) = node.doctor()?;
    ensure!(!ok && detail.contains("labels of the node: not allowed (403)"), "doctor: {detail}");
    node.server.behave(Mode::Hang);
    let (ok, detail) = node.doctor()?;
    ensure!(!ok && detail.starts_with("silent: "), "doctor: {detail}");
    Ok(())
}

fn whatever_the_api_does_a_change_is_told() -> Result<()> {
    let files = ["gone", "refused", "nonsense", "broken", "hung", "lied", "token"];
    let mut node = Node::start(&files, Mode::Well)?;
    node.api_is("connected", None)?;

    // The pod is deleted in the API, and still on disk: what was told of it stays.
    node.server.delete(POD);
    let target = node.tamper("gone")?;
    ensure!(target == by_both(), "the target of a pod that the API dropped is {target}");
    for (file, mode, fault) in [
        ("refused", Mode::Refuse("/api", 403), "forbidden"),
        ("nonsense", Mode::Say("[]"), "malformed"),
        ("broken", Mode::Break, "unreachable"),
    ] {
        node.server.behave(mode);
        // A position that has expired: all must be listed anew.
        node.server.compact();
        node.server.end_watches(true);
        node.api_is("lost", Some(fault))?;
        let target = node.tamper(file)?;
        ensure!(target == by_both(), "{fault}: the target is {target}");
    }
    node.server.behave(Mode::Well);
    node.api_is("connected", None)?;
    node.server.behave(Mode::Hang);
    node.server.end_watches(true);
    let target = node.tamper("hung")?;
    ensure!(target == by_both(), "while the API hangs the target is {target}");
    node.api_is("lost", Some("silent"))?;

    // It comes back, and tells of that pod what is not so: another volume, no owner. It is believed as far as nothing contradicts
    // it, and the change is told all the same.
    let mut lie = pod("shop", "web-7d-x", POD);
    lie["spec"]["volumes"] = json!([{"name": "conf", "secret": {"secretName": "x"}}]);
    node.server.put(lie);
    node.server.behave(Mode::Well);
    node.api_is("connected", None)?;
    node.hears_of_no_owner()?;
    let target = node.tamper("lied")?;
    ensure!(
        target["pod_uid"] == POD && target["source"] == by_the_node()["source"],
        "the target is {target}"
    );

    // The token counts no more; the one that takes its place is found without a restart.
    node.server.token("renewed");
    node.server.end_watches(true);
    node.api_is("lost", Some("unauthorized"))?;
    node.tamper("token")?;
    let seen = node.agent.seen.iter().filter(|record| record["kind"] == "violation.opened").count();
    ensure!(seen == files.len(), "{seen} violations; {}", told_of(&node.agent.seen));
    Ok(())
}

fn a_scope_is_met_once_the_api_tells_and_from_then_on() -> Result<()> {
    let mut node = Node::start(&["plain"], Mode::Hang)?;
    for (name, scope, told) in [
        ("by-cluster", json!({"cluster": "cluster-1"}), "is for cluster cluster-1, and this one is unknown"),
        ("by-label", json!({"nodes": {"labels": {"pool": "edge"}}}), "is for nodes with label pool=edge"),
    ] {
        let file = node.volume.join(name);
        fs::write(&file, "as sealed")?;
        let statement = node.home.seal(name, 1, &[&file], &[])?;
        let mut text: Value = serde_json::from_slice(&fs::read(&statement)?)?;
        text["predicate"]["scope"] = scope;
        fs::write(&statement, text.to_string())?;
        let envelope = node.home.sign(&statement, Signer::Trusted)?;
        node.home.offer(name, &envelope)?;
        node.agent.reload()?;
        let refused = |record: &Value| record["kind"] == "baseline.rejected" && record["name"] == name;
        let record = node.agent.find("refusal", refused)?;
        ensure!(record["reason"].as_str().is_some_and(|why| why.contains(told)), "{record}");
    }
    node.server.behave(Mode::Well);
    for name in ["by-cluster", "by-label"] {
        let accepted = |record: &Value| record["kind"] == "baseline.accepted" && record["name"] == name;
        node.agent.find("acceptance", accepted)?;
    }
    node.tamper("by-cluster")?;
    node.agent.stop()?;

    // An agent that cannot reach the API knows what the one before it was told.
    node.server.behave(Mode::Hang);
    node.agent = Agent::start(&node.home, 1)?;
    let (status, _) = node.agent.status()?;
    let in_force: Vec<&str> =
        status["baseline"].as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect();
    ensure!(in_force == ["by-cluster", "by-label", "conf"], "in force are {in_force:?}");
    let doubt = json!([
        "owners, images by digest and sources of volumes of all pods",
        "uid of the cluster, but for what was told before",
        "labels of the node, but for what was told before",
    ]);
    ensure!(status["kubernetes"]["unknown"] == doubt, "{}", status["kubernetes"]);
    node.tamper("by-label").map(drop)
}
