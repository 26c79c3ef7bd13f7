//! The scenarios of an attacker on the node, numbered as the catalogue they are from has them: each once, on a pod that chance picks, and
//! what must be told of it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::lawful::wasm_dir;
use super::mesh::{CONSUL, INSTALLER, ISTIO, ISTIOD, KUMA, LINKERD, MESHES, Source, TOOL};
use super::model::{By, Expected, Of};
use super::node::{CNI_BIN, CNI_CONF};
use super::{Day, api, installer};
use crate::pods::container::{NO_CGROUP, join, with_host_path};
use crate::process::Process;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) act: fn(&mut Day) -> Result<()>,
}

macro_rules! scenarios {
    ($($name:ident)+) => {
        /// All of them, in their order.
        pub(super) fn all() -> Vec<Scenario> {
            vec![$(Scenario { name: stringify!($name), act: $name }),+]
        }
    };
}

scenarios! {
    s01_root_is_swapped_in_place s02_visible_link_is_replaced s02_data_points_elsewhere s03_signing_key_is_swapped
    s04_bootstrap_is_rewritten s05_unapproved_bytes_are_published s06_module_is_swapped s07_proxy_is_replaced
    s08_layer_is_written_to s09_plugin_is_replaced s09_plugin_is_removed_as_the_installer s10_chain_is_edited s10_chain_is_preceded s11_token_is_swapped
    s11_token_is_read s12_written_through_proc s13_pod_with_host_path_writes s14_mounted_over s15_socket_is_replaced
    s16_credentials_are_dropped s17_key_is_opened_to_all s17_module_gets_another_time s18_agent_is_traced
    s19_preload_is_dropped s20_baseline_is_taken_away s21_exec_edits s21_exec_writes_as_the_installer identity_is_anothers
}

/// What is changed where it counts for the mesh's trust, and what it is called in ATT&CK.
const ROOT: &[&str] = &["T1553.004", "T1565.001", "T1557"];
const CREDENTIAL: &[&str] = &["T1649", "T1565.001"];
const CONFIG: &[&str] = &["T1574", "T1565.001", "T1557"];
const CHAIN: &[&str] = &["T1562.001", "T1562.004"];
const BINARY: &[&str] = &["T1554", "T1036.005"];
const IDENTITY: &[&str] = &["T1649", "T1557"];

impl Day {
    fn host(&self) -> Result<By> {
        let exe = std::env::current_exe()?.display().to_string();
        Ok(By { comm: "intruder".to_owned(), exe, pod: None })
    }

    /// A process that runs what the agent of a pod runs, in that pod's cgroup or in none.
    fn inside(&self, at: usize, in_cgroup: bool) -> By {
        self.inside_as(at, self.node.pods[at].mesh().exe, in_cgroup)
    }

    /// A process that runs this in a container.
    fn inside_as(&self, at: usize, exe: &str, in_cgroup: bool) -> By {
        let pod = &self.node.pods[at];
        // The kernel has room for 15 bytes.
        let comm = exe.rsplit('/').next().unwrap_or(exe);
        let comm = comm[..comm.len().min(15)].to_owned();
        By { comm, exe: exe.to_owned(), pod: in_cgroup.then(|| pod.uid.clone()) }
    }

    /// An object in a pod's volumes; `container` where the baseline knows that only that one has it.
    fn of(&self, at: usize, container: bool) -> Of {
        let pod = &self.node.pods[at];
        Of {
            pod: Some(pod.uid.clone()),
            mesh: Some(pod.mesh().name),
            container: container.then(|| pod.mesh().container),
        }
    }

    fn expect(
        &mut self,
        violation: &'static str,
        path: &Path,
        operation: &str,
        (by, of): (By, Of),
        attack: &[&'static str],
    ) {
        let one = Expected {
            act: self.act,
            violation,
            path: path.display().to_string(),
            operation: operation.to_owned(),
            by,
            of,
            attack: attack.to_vec(),
        };
        self.model.expect(one);
    }

    /// A pod of that mesh whose volume of that source nobody has touched: pod and number of the volume.
    fn victim(&mut self, mesh: usize, source: impl Fn(Source) -> bool) -> Result<(usize, usize)> {
        loop {
            let all = self.volumes(&source);
            // What was tampered with and healed stays one violation: another of its kind would be an update of that.
            let calm = |one: &(usize, usize)| self.model.below(&self.path(*one)).is_empty();
            let of_mesh = |(pod, _): &(usize, usize)| self.node.pods[*pod].mesh == mesh;
            let all: Vec<_> = all.into_iter().filter(of_mesh).filter(calm).collect();
            match self.chance.pick(&all) {
                Some(victim) => return Ok(victim),
                // All of them may be waiting for a change.
                None => ensure!(self.publish_one()?, "no pod is left to tamper with"),
            }
        }
    }

    fn path(&self, (pod, volume): (usize, usize)) -> PathBuf {
        self.node.pods[pod].published[volume].path.clone()
    }

    fn resident_at(&self, mesh: usize) -> Result<usize> {
        self.at(&self.residents[mesh])
    }

    /// Ends a process whose act has been told of: some sensors ask who it was after the act.
    fn judged(&mut self, process: Process) -> Result<()> {
        self.told()?;
        process.end()
    }

    /// The kubelet laid down there what no baseline approves.
    pub(super) fn published_unapproved(&mut self, pod: usize, path: &Path) {
        let exe = self.node.dir.join("bin/kubelet").display().to_string();
        let kubelet = By { comm: "kubelet".to_owned(), exe, pod: None };
        let who = (kubelet, self.of(pod, true));
        self.expect("content", path, "rename", who, CONFIG);
    }

    fn unseen(&mut self, why: &str) {
        self.model.unseen.push(format!("act {} ({}): {why}", self.act, self.name));
    }
}

/// 1: the mesh's root in another's favour, where it lies.
fn s01_root_is_swapped_in_place(day: &mut Day) -> Result<()> {
    let victim = day.victim(ISTIO, |source| source == Source::ConfigMap("istio-ca-root-cert"))?;
    let volume = day.path(victim);
    let stage = day.node.stage(&[("root-cert.pem", api::ROGUE)])?;
    day.intruder
        .tell(&format!("copy {stage}/root-cert.pem {}", volume.join("..data/root-cert.pem").display()))?;
    let who = (day.host()?, day.of(victim.0, true));
    day.expect("content", &volume.join("root-cert.pem"), "write", who, ROOT);
    day.told()?;
    // At its next sync the kubelet finds that it is not what it laid down, and lays it down anew.
    day.node.sync(victim.0, victim.1)?;
    day.accepted("change.accepted", &volume)
}

/// 2: what a container opens is no link of the kubelet's any more; it is never healed.
fn s02_visible_link_is_replaced(day: &mut Day) -> Result<()> {
    let victim = day.victim(LINKERD, |source| source == Source::ConfigMap("linkerd-config"))?;
    let volume = day.path(victim);
    let stage = day.node.stage(&[("values", "proxy: {}")])?;
    day.intruder.tell(&format!("replace {} {stage}/values", volume.join("values").display()))?;
    let who = (day.host()?, day.of(victim.0, true));
    day.expect("structure", &volume.join("values"), "unlink", who, CONFIG);
    day.dirty.push(volume);
    Ok(())
}

/// 2: the kubelet's pointer, to a directory of somebody else's.
fn s02_data_points_elsewhere(day: &mut Day) -> Result<()> {
    let victim = day.victim(KUMA, |source| source == Source::ConfigMap("transparent-proxy"))?;
    let volume = day.path(victim);
    let stage = day.node.stage(&[("config.yaml", "redirect: {}")])?;
    day.intruder.tell(&format!("swing {} config.yaml {stage}/config.yaml", volume.display()))?;
    let who = (day.host()?, day.of(victim.0, true));
    day.expect("content", &volume.join("config.yaml"), "rename", who, CONFIG);
    day.dirty.push(volume);
    Ok(())
}

/// 3: istiod takes up another signing key at once.
fn s03_signing_key_is_swapped(day: &mut Day) -> Result<()> {
    let victim = day.victim(ISTIOD, |source| matches!(source, Source::Secret(_)))?;
    let volume = day.path(victim);
    let stage = day.node.stage(&[("key", api::OTHER_KEY)])?;
    day.intruder.tell(&format!("copy {stage}/key {}", volume.join("..data/ca-key.pem").display()))?;
    let who = (day.host()?, day.of(victim.0, true));
    day.expect("content", &volume.join("ca-key.pem"), "write", who, CREDENTIAL);
    day.dirty.push(volume);
    Ok(())
}

/// 4: by somebody who entered the container's mounts, and nothing else of it.
fn s04_bootstrap_is_rewritten(day: &mut Day) -> Result<()> {
    let at = day.resident_at(ISTIO)?;
    let pod = &day.node.pods[at];
    let file = pod.scratch("istio-envoy").join("envoy-rev.json");
    let mut entered = join(pod.pid()?, NO_CGROUP, pod.mesh().exe)?;
    entered.tell("write /etc/istio/proxy/envoy-rev.json {\"admin\":{}}")?;
    let who = (day.inside(at, false), day.of(at, false));
    day.expect("content", &file, "write", who, CONFIG);
    day.dirty.push(file);
    day.judged(entered)
}

/// 5: `kubectl edit`: the kubelet itself publishes what nobody approved.
fn s05_unapproved_bytes_are_published(day: &mut Day) -> Result<()> {
    let victim = day.victim(ISTIO, |source| source == Source::ConfigMap("custom-bootstrap"))?;
    let volume = day.path(victim);
    let stage = day.node.stage(&[("custom_bootstrap.json", "{\"admin\":{\"address\":{}}}")])?;
    day.node.publish(victim.0, victim.1, &stage)?;
    day.published_unapproved(victim.0, &volume.join("custom_bootstrap.json"));
    day.dirty.push(volume);
    Ok(())
}

/// 6: code that runs in the proxy.
fn s06_module_is_swapped(day: &mut Day) -> Result<()> {
    let at = day.resident_at(ISTIO)?;
    let module = wasm_dir();
    let file = day.node.pods[at].scratch("istio-data").join(&module).join(format!("{module}.wasm"));
    day.intruder.tell(&format!("write {} evil", file.display()))?;
    let who = (day.host()?, day.of(at, false));
    day.expect("content", &file, "write", who, &["T1554", "T1574"]);
    day.dirty.push(file);
    Ok(())
}

/// 7: another file in the container's own layer, in place of its proxy.
fn s07_proxy_is_replaced(day: &mut Day) -> Result<()> {
    let all: Vec<usize> = (0..day.node.pods.len())
        .filter(|at| day.node.pods[*at].mesh == ISTIO && !day.residents.contains(&day.node.pods[*at].uid))
        .collect();
    let at = day.chance.pick(&all).context("no pod")?;
    let exe = day.node.pods[at].mesh().exe;
    let mut exec = day.node.pods[at].exec(TOOL)?;
    exec.tell("write /tmp/new program")?;
    exec.tell(&format!("rename /tmp/new {exe}"))?;
    let path = day.node.pods[at].root()?.join(exe.trim_start_matches('/'));
    let who = (day.inside_as(at, TOOL, true), container_of(day, at));
    day.expect("replaced", &path, "rename", who, BINARY);
    day.judged(exec)
}

/// Whose the files of a container are: the image's; which mesh that is, the container's name tells.
fn container_of(day: &Day, at: usize) -> Of {
    let pod = &day.node.pods[at];
    Of { pod: Some(pod.uid.clone()), mesh: Some(pod.mesh().name), container: Some(pod.mesh().container) }
}

/// 8: what all containers of an image run, at once.
fn s08_layer_is_written_to(day: &mut Day) -> Result<()> {
    let mesh = &MESHES[CONSUL];
    let layer = day.node.layer(mesh);
    let exe = mesh.exe.trim_start_matches('/');
    day.intruder.tell(&format!("append {} evil", layer.join(exe).display()))?;
    let all: Vec<usize> = (0..day.node.pods.len()).filter(|at| day.node.pods[*at].mesh == CONSUL).collect();
    for at in all {
        let path = day.node.pods[at].root()?.join(exe);
        let who = (day.host()?, container_of(day, at));
        // What is not on the host runs it too, but only of a pod's own act is it an escape.
        day.expect("content", &path, "write", who, BINARY);
    }
    day.dirty.push(layer);
    Ok(())
}

/// 9: the runtime runs it as root for each new pod.
fn s09_plugin_is_replaced(day: &mut Day) -> Result<()> {
    let file = installer::plugin();
    day.intruder.tell(&format!("write {} evil", file.display()))?;
    let who = (day.host()?, Of::default());
    day.expect("content", &file, "write", who, &["T1554", "T1543"]);
    day.dirty.push(file);
    Ok(())
}

/// 9: by a pod that was given the host's files, is called as the installer is, and is not the installer.
fn s09_plugin_is_removed_as_the_installer(day: &mut Day) -> Result<()> {
    let file = Path::new(CNI_BIN).join("bridge");
    let others: Vec<usize> =
        (0..day.node.pods.len()).filter(|at| day.node.pods[*at].mesh == CONSUL).collect();
    let from = day.chance.pick(&others).context("no pod")?;
    let mut other = with_host_path(&day.node.pods[from].running()?.cgroup, "install-cni")?;
    other.tell(&format!("remove {}", file.display()))?;
    let pod = Some(day.node.pods[from].uid.clone());
    let by = By { comm: "install-cni".to_owned(), pod, ..day.host()? };
    day.expect("removed", &file, "unlink", (by, Of::default()), &["T1562.001", "T1562.004", "T1611"]);
    day.judged(other)
}

/// 10: new pods are no longer in the mesh.
fn s10_chain_is_edited(day: &mut Day) -> Result<()> {
    let file = installer::chain();
    let without = r#"{"cniVersion":"1.0.0","name":"node","plugins":[{"type":"bridge"}]}"#;
    day.intruder.tell(&format!("write {} {without}", file.display()))?;
    let who = (day.host()?, Of::default());
    day.expect("content", &file, "write", who, CHAIN);
    day.dirty.push(file);
    Ok(())
}

/// 10: the runtime takes the first.
fn s10_chain_is_preceded(day: &mut Day) -> Result<()> {
    let file = Path::new(CNI_CONF).join("00-first.conflist");
    let other = r#"{"cniVersion":"1.0.0","name":"first","plugins":[{"type":"bridge"}]}"#;
    day.intruder.tell(&format!("write {} {other}", file.display()))?;
    let who = (day.host()?, Of::default());
    day.expect("unexpected", &file, "create", who, CHAIN);
    Ok(())
}

/// The last act of a run: as the one above.
pub(super) fn sentinel(day: &mut Day, file: &Path) -> Result<()> {
    day.intruder.tell(&format!("write {} {{}}", file.display()))?;
    let who = (day.host()?, Of::default());
    day.expect("unexpected", file, "create", who, CHAIN);
    Ok(())
}

/// 11: another's token.
fn s11_token_is_swapped(day: &mut Day) -> Result<()> {
    let victim = day.victim(ISTIO, |source| source == Source::Token("istio-ca", "istio-token"))?;
    let volume = day.path(victim);
    let token = api::token(&MESHES[KUMA], ("pay-0", "0"), "istio-ca", 1);
    day.intruder.tell(&format!("write {} {token}", volume.join("..data/istio-token").display()))?;
    let who = (day.host()?, day.of(victim.0, true));
    day.expect("identity", &volume.join("istio-token"), "write", who, IDENTITY);
    day.dirty.push(volume);
    Ok(())
}

/// 11: stolen, which leaves no trace on it.
fn s11_token_is_read(day: &mut Day) -> Result<()> {
    let (pod, volume) = day.victim(ISTIO, |source| matches!(source, Source::Token(..)))?;
    let token = day.path((pod, volume));
    let name = if token.ends_with("istio-token") { "istio-token" } else { "token" };
    day.intruder.tell(&format!("read {}", token.join(name).display()))?;
    day.unseen("who reads is not told");
    Ok(())
}

/// 12: from the host, by way of the process.
fn s12_written_through_proc(day: &mut Day) -> Result<()> {
    let at = day.resident_at(CONSUL)?;
    let pid = day.node.pods[at].pid()?;
    let stage = day.node.stage(&[("ca", api::ROGUE)])?;
    day.intruder.tell(&format!("copy {stage}/ca /proc/{pid}/root/consul/connect-inject/consul-ca.pem"))?;
    let file = day.node.pods[at].scratch("consul-connect-inject-data").join("consul-ca.pem");
    let who = (day.host()?, day.of(at, false));
    day.expect("content", &file, "write", who, ROOT);
    day.dirty.push(file);
    Ok(())
}

/// 13: a pod that was given the host's files writes to another pod's.
fn s13_pod_with_host_path_writes(day: &mut Day) -> Result<()> {
    let victim = day.victim(ISTIO, |source| source == Source::ConfigMap("istio-ca-root-cert"))?;
    let volume = day.path(victim);
    let others: Vec<usize> =
        (0..day.node.pods.len()).filter(|at| day.node.pods[*at].mesh == LINKERD).collect();
    let from = day.chance.pick(&others).context("no pod")?;
    let mut miner = with_host_path(&day.node.pods[from].running()?.cgroup, "miner")?;
    let stage = day.node.stage(&[("root-cert.pem", api::ROGUE)])?;
    miner.tell(&format!("copy {stage}/root-cert.pem {}", volume.join("..data/root-cert.pem").display()))?;
    let pod = Some(day.node.pods[from].uid.clone());
    let by = By { comm: "miner".to_owned(), pod, ..day.host()? };
    let who = (by, day.of(victim.0, true));
    day.expect("content", &volume.join("root-cert.pem"), "write", who, &[ROOT, &["T1611"]].concat());
    day.dirty.push(volume);
    day.judged(miner)
}

/// 14: the agent's own directory is another, for its container only.
fn s14_mounted_over(day: &mut Day) -> Result<()> {
    let at = day.resident_at(KUMA)?;
    let pod = &day.node.pods[at];
    let dir = pod.scratch("kuma-sidecar-tmp");
    let mut entered = join(pod.pid()?, NO_CGROUP, pod.mesh().exe)?;
    entered.tell("cover /tmp/kuma")?;
    if !day.model.on_hooks() {
        day.unseen("mounts are seen by hooks only");
        return entered.end();
    }
    // All that is sealed in it is another.
    for covered in [dir.clone(), dir.join("kuma-dp-1"), dir.join("kuma-dp-1/bootstrap.yaml")] {
        let who = (day.inside(at, false), day.of(at, false));
        day.expect("mounted_over", &covered, "mount", who, &["T1564.013"]);
    }
    day.judged(entered)
}

/// 15: who listens there gives the proxy its identity.
fn s15_socket_is_replaced(day: &mut Day) -> Result<()> {
    let at = day.resident_at(ISTIO)?;
    let socket = day.node.pods[at].scratch("workload-socket").join("socket");
    day.intruder.tell(&format!("socket {}", socket.display()))?;
    let who = (day.host()?, day.of(at, false));
    day.expect("replaced", &socket, "mknod", who, &["T1557", "T1556"]);
    Ok(())
}

/// 16: what lies there the agent serves.
fn s16_credentials_are_dropped(day: &mut Day) -> Result<()> {
    let at = day.resident_at(ISTIO)?;
    let file = day.node.pods[at].scratch("workload-certs").join("key.pem");
    let stage = day.node.stage(&[("key", api::OTHER_KEY)])?;
    day.intruder.tell(&format!("copy {stage}/key {}", file.display()))?;
    let who = (day.host()?, day.of(at, false));
    day.expect("unexpected", &file, "create", who, CREDENTIAL);
    Ok(())
}

/// 17: for everybody to read.
fn s17_key_is_opened_to_all(day: &mut Day) -> Result<()> {
    let at = day.resident_at(LINKERD)?;
    let file = day.node.pods[at].scratch("linkerd-identity-end-entity").join("key.p8");
    day.intruder.tell(&format!("chmod {} 666", file.display()))?;
    let who = (day.host()?, day.of(at, false));
    day.expect("attributes", &file, "setattr", who, &["T1222.002"]);
    Ok(())
}

/// 17: as if it had always been there.
fn s17_module_gets_another_time(day: &mut Day) -> Result<()> {
    let at = day.resident_at(CONSUL)?;
    let file = day.node.pods[at].scratch("consul-connect-inject-data").join("proxyid");
    day.intruder.tell(&format!("touch {}", file.display()))?;
    let who = (day.host()?, day.of(at, false));
    day.expect("attributes", &file, "setattr", who, &["T1222.002"]);
    Ok(())
}

/// 18: the agent's memory is somebody else's.
fn s18_agent_is_traced(day: &mut Day) -> Result<()> {
    let at = day.resident_at(ISTIO)?;
    let pod = &day.node.pods[at];
    let (pid, exe) = (pod.pid()?, pod.root()?.join(pod.mesh().exe.trim_start_matches('/')));
    day.intruder.tell(&format!("attach {pid}"))?;
    if !day.model.on_hooks() {
        day.unseen("attaching to a process is seen by hooks only");
        return Ok(());
    }
    let who = (day.host()?, container_of(day, at));
    day.expect("memory", &exe, "ptrace", who, &["T1055.008"]);
    Ok(())
}

/// 19: a name that the image does not have.
fn s19_preload_is_dropped(day: &mut Day) -> Result<()> {
    let all: Vec<usize> = (0..day.node.pods.len()).filter(|at| day.node.pods[*at].mesh == ISTIO).collect();
    let at = day.chance.pick(&all).context("no pod")?;
    let mut exec = day.node.pods[at].exec(TOOL)?;
    exec.tell("write /etc/ld.so.preload /tmp/evil.so")?;
    exec.end()?;
    day.unseen("a file that is added to a container's root is in no baseline");
    Ok(())
}

/// 20: a baseline that is taken away stays in force.
fn s20_baseline_is_taken_away(day: &mut Day) -> Result<()> {
    let file = day.home.dir.join(format!("baselines/{}.dsse.json", super::seal::RESIDENTS));
    let bytes = std::fs::read(&file)?;
    day.intruder.tell(&format!("remove {}", file.display()))?;
    // What the agent says after another baseline has come it says without this one.
    day.approved()?;
    let status = day.agent.status()?.0;
    let names: Vec<&str> = status["baseline"]
        .as_array()
        .context("no baselines")?
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    ensure!(names.contains(&super::seal::RESIDENTS), "in force are {names:?}");
    Ok(std::fs::write(file, bytes)?)
}

/// 21: `kubectl exec` into the proxy's container.
fn s21_exec_edits(day: &mut Day) -> Result<()> {
    let at = day.resident_at(LINKERD)?;
    let file = day.node.pods[at].scratch("linkerd-identity-end-entity").join("csr.der");
    let mut exec = day.node.pods[at].exec(day.node.pods[at].mesh().exe)?;
    exec.tell("write /var/run/linkerd/identity/end-entity/csr.der another")?;
    let who = (day.inside(at, true), day.of(at, false));
    day.expect("content", &file, "write", who, CREDENTIAL);
    day.judged(exec)
}

/// 21: into the installer's container, to write what the installer alone may.
fn s21_exec_writes_as_the_installer(day: &mut Day) -> Result<()> {
    let at = day.resident_at(INSTALLER)?;
    let file = installer::kubeconfig();
    let mut exec = day.node.pods[at].exec(day.node.pods[at].mesh().exe)?;
    exec.tell("write /var/run/istio-cni/istio-cni-kubeconfig another")?;
    let who = (day.inside(at, true), Of::default());
    day.expect("content", &file, "write", who, &[CREDENTIAL, &["T1611"]].concat());
    day.dirty.push(file);
    day.judged(exec)
}

/// A certificate that another root signed, by somebody who is not the agent.
fn identity_is_anothers(day: &mut Day) -> Result<()> {
    let at = day.resident_at(ISTIO)?;
    let file = day.node.pods[at].scratch("istio-data").join("cert-chain.pem");
    let (_, chain, _) = api::LEAVES[3];
    let stage = day.node.stage(&[("chain", chain)])?;
    day.intruder.tell(&format!("copy {stage}/chain {}", file.display()))?;
    let who = (day.host()?, day.of(at, false));
    day.expect("identity", &file, "write", who, IDENTITY);
    day.dirty.push(file);
    Ok(())
}
