//! What befalls a node all day, and is lawful.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::mesh::{CONSUL, INSTALLER, ISTIO, KUMA, LINKERD, MESHES, Source};
use super::node::Node;
use super::{Day, seal};

/// Restarts of the agent in one day, by chance: each takes the kernel's verifier its time.
const RESTARTS: usize = 1;
/// Upgrades of the kubelet in one day.
const KUBELETS: usize = 1;
/// Most volumes that are published before their baseline comes.
const EARLY: usize = 3;
/// Most pods beside those that are there all day.
const EXTRA: usize = 6;
/// Objects of the API that people change, and how a revision of them differs from the one before.
const CHANGEABLE: [(&str, &str); 4] = [
    ("shop", "istio-ca-root-cert"),
    ("shop", "custom-bootstrap"),
    ("web", "linkerd-config"),
    ("pay", "transparent-proxy"),
];

impl Node {
    /// What a resident's agent makes of its own volumes when it starts.
    pub(super) fn fill(&mut self, uid: &str) -> Result<()> {
        let pod = self.pods.iter_mut().find(|pod| pod.uid == uid).context("no such pod")?;
        if pod.mesh == INSTALLER {
            return self.install();
        }
        let module = wasm_dir();
        let words: &[&str] = match pod.mesh {
            ISTIO => &[
                "write /etc/istio/proxy/envoy-rev.json {\"node\":{\"id\":\"sidecar\"}}",
                &format!("mkdir /var/lib/istio/data/{module} 755"),
                &format!("write /var/lib/istio/data/{module}/{module}.wasm asm-module"),
                "renew /var/lib/istio/data /srv/1",
                "socket /var/run/secrets/workload-spiffe-uds/socket",
            ],
            LINKERD => &[
                "copy /srv/key.pem /var/run/linkerd/identity/end-entity/key.p8",
                "write /var/run/linkerd/identity/end-entity/csr.der request",
            ],
            KUMA => &["mkdir /tmp/kuma/kuma-dp-1 755", "write /tmp/kuma/kuma-dp-1/bootstrap.yaml node:{}"],
            CONSUL => &[
                "copy /srv/root.pem /consul/connect-inject/consul-ca.pem",
                "write /consul/connect-inject/proxyid ledger-proxy",
            ],
            _ => &[],
        };
        words.iter().try_for_each(|words| pod.tell(words))
    }
}

/// A WebAssembly module's directory is called by a hash.
pub(super) fn wasm_dir() -> String {
    "5d41402abc4b2a76b9719d911017c592".repeat(2)
}

impl Day {
    /// One lawful act, by chance.
    pub(super) fn lawful(&mut self) -> Result<()> {
        loop {
            let done = match self.chance.below(23) {
                0..4 => self.renews_a_token()?,
                4..7 => self.publishes_what_is_pending()?,
                7 => self.syncs_what_is_current()?,
                8 => self.pod_comes()?,
                9 => self.pod_goes()?,
                10 => self.container_restarts()?,
                11..13 => self.agent_renews_certificates()?,
                13 => self.agent_writes_its_bootstrap()?,
                14 => self.baseline_comes_first()?,
                15 => self.baseline_comes_last()?,
                16 => self.meshseal_restarts()?,
                17 => self.installer_installs_anew()?,
                18 => self.installer_comes_back()?,
                19 => self.installer_is_upgraded()?,
                20 => self.kubelet_is_upgraded()?,
                _ => self.reads_everything()?,
            };
            if done {
                return Ok(());
            }
        }
    }

    /// Published volumes of all pods, but for those that are not as they should be: pod and number.
    pub(super) fn volumes(&self, wanted: impl Fn(Source) -> bool) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (at, pod) in self.node.pods.iter().enumerate() {
            for (number, volume) in pod.published.iter().enumerate() {
                let pending = self.pending.iter().any(|(uid, of)| *uid == pod.uid && *of == number);
                if wanted(volume.source) && !pending && !self.is_dirty(&volume.path) {
                    found.push((at, number));
                }
            }
        }
        found
    }

    pub(super) fn is_dirty(&self, path: &Path) -> bool {
        self.dirty.iter().any(|dirty| path.starts_with(dirty) || dirty.starts_with(path))
    }

    fn renews_a_token(&mut self) -> Result<bool> {
        let tokens = self.volumes(|source| matches!(source, Source::Token(..)));
        let Some((pod, volume)) = self.chance.pick(&tokens) else { return Ok(false) };
        self.begin_act("a token is renewed");
        self.about(pod);
        self.node.sync(pod, volume)?;
        let path = self.node.pods[pod].published[volume].path.clone();
        self.accepted("rotation.accepted", &path)?;
        Ok(true)
    }

    fn publishes_what_is_pending(&mut self) -> Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        self.begin_act("an approved change is published");
        self.publish_one()
    }

    /// A changed object reaches one of its pods: each at another time. `false` if there is none that waits for it.
    pub(super) fn publish_one(&mut self) -> Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let at = self.chance.below(self.pending.len());
        let (uid, volume) = self.pending.swap_remove(at);
        let pod = self.at(&uid)?;
        self.about(pod);
        self.node.sync(pod, volume)?;
        let path = self.node.pods[pod].published[volume].path.clone();
        self.accepted("change.accepted", &path)?;
        Ok(true)
    }

    fn syncs_what_is_current(&mut self) -> Result<bool> {
        let all = self.volumes(|source| !matches!(source, Source::Token(..)));
        let Some((pod, volume)) = self.chance.pick(&all) else { return Ok(false) };
        self.begin_act("a sync finds nothing to do");
        self.about(pod);
        self.node.sync(pod, volume)?;
        Ok(true)
    }

    fn pod_comes(&mut self) -> Result<bool> {
        let usual: usize = MESHES.iter().map(|mesh| mesh.pods).sum();
        if self.node.pods.len() >= usual + EXTRA {
            return Ok(false);
        }
        let (mesh, set) = (self.chance.below(4), self.chance.below(2));
        if self.is_dirty(&self.node.layer(&MESHES[mesh])) {
            return Ok(false);
        }
        self.begin_act("a pod comes");
        let at = self.node.start(mesh, set, &mut self.chance)?;
        self.about(at);
        self.taken_up(at)?;
        Ok(true)
    }

    fn pod_goes(&mut self) -> Result<bool> {
        let usual: usize = MESHES.iter().map(|mesh| mesh.pods).sum();
        let stays = |uid: &String| self.residents.contains(uid);
        let all: Vec<usize> =
            (0..self.node.pods.len()).filter(|at| !stays(&self.node.pods[*at].uid)).collect();
        if self.node.pods.len() + EXTRA <= usual {
            return Ok(false);
        }
        let Some(at) = self.chance.pick(&all) else { return Ok(false) };
        self.begin_act("a pod goes");
        self.about(at);
        let pod = self.node.stop(at)?;
        self.pending.retain(|(uid, _)| *uid != pod.uid);
        self.dirty.retain(|path| !path.starts_with(&pod.dir));
        // What was wrong with it went with it.
        for (path, violation) in self.model.below(&pod.dir) {
            let is_it = |record: &Value| {
                record["kind"] == "violation.resolved"
                    && record["violation"] == violation
                    && record["object"]["path"] == path.as_str()
            };
            self.agent.find(&format!("the end of {violation} of {path}"), is_it)?;
        }
        Ok(true)
    }

    fn container_restarts(&mut self) -> Result<bool> {
        let all: Vec<usize> = (0..self.node.pods.len())
            .filter(|at| !self.residents.contains(&self.node.pods[*at].uid))
            .filter(|at| !self.is_dirty(&self.node.layer(self.node.pods[*at].mesh())))
            .collect();
        let Some(at) = self.chance.pick(&all) else { return Ok(false) };
        self.begin_act("a container restarts");
        self.about(at);
        self.node.run(at, &mut self.chance)?;
        self.taken_up(at)?;
        Ok(true)
    }

    fn resident(&self, mesh: usize) -> Result<usize> {
        self.at(&self.residents[mesh])
    }

    fn agent_renews_certificates(&mut self) -> Result<bool> {
        let at = self.resident(ISTIO)?;
        let dir = self.node.pods[at].scratch("istio-data");
        if self.is_dirty(&dir.join("cert-chain.pem")) {
            return Ok(false);
        }
        self.written += 1;
        let next = 1 + (self.written % 3);
        let now = std::fs::read(dir.join("cert-chain.pem"))?;
        let (_, chain, _) = super::api::LEAVES[usize::try_from(next - 1)?];
        if now == chain.as_bytes() {
            return Ok(false);
        }
        self.begin_act("the agent of a proxy renews its certificate");
        self.node.pods[at].tell(&format!("renew /var/lib/istio/data /srv/{next}"))?;
        // A key keeps no identity of its own: it is who wrote it.
        self.accepted("change.accepted", &dir.join("key.pem"))?;
        self.accepted("rotation.accepted", &dir.join("cert-chain.pem"))?;
        Ok(true)
    }

    fn agent_writes_its_bootstrap(&mut self) -> Result<bool> {
        let at = self.resident(ISTIO)?;
        let file = self.node.pods[at].scratch("istio-envoy").join("envoy-rev.json");
        if self.is_dirty(&file) {
            return Ok(false);
        }
        self.begin_act("the agent of a proxy writes its bootstrap");
        self.written += 1;
        let text = format!("{{\"node\":{{\"id\":\"sidecar-{}\"}}}}", self.written);
        self.node.pods[at].tell(&format!("write /etc/istio/proxy/envoy-rev.json {text}"))?;
        self.accepted("change.accepted", &file)?;
        Ok(true)
    }

    /// Somebody changes an object of which all pods have what is current: the volumes that are to be published.
    fn an_object_changes(&mut self, act: &str) -> Result<Option<Vec<(usize, usize)>>> {
        let Some(name) = self.chance.pick(&CHANGEABLE).filter(|_| self.pending.is_empty()) else {
            return Ok(None);
        };
        let is_it = |source| source == Source::ConfigMap(name.1);
        let all = self.node.pods.iter().flat_map(|pod| &pod.published);
        if all.into_iter().any(|volume| is_it(volume.source) && self.is_dirty(&volume.path)) {
            return Ok(None);
        }
        self.begin_act(act);
        self.changed(name)?;
        Ok(Some(self.volumes(is_it)))
    }

    fn publish_later(&mut self, volumes: &[(usize, usize)]) {
        let of = |&(pod, volume): &(usize, usize)| (self.node.pods[pod].uid.clone(), volume);
        self.pending = volumes.iter().map(of).collect();
    }

    /// A new revision is in force, and what it approves comes later, for each pod at another time.
    fn baseline_comes_first(&mut self) -> Result<bool> {
        let Some(volumes) = self.an_object_changes("a baseline comes, and what it approves later")? else {
            return Ok(false);
        };
        self.approved()?;
        self.publish_later(&volumes);
        Ok(true)
    }

    /// Some pods get what is approved only then, to an agent that awaits it.
    fn baseline_comes_last(&mut self) -> Result<bool> {
        if !self.patient {
            return Ok(false);
        }
        let act = "publishes come before the baseline that approves them";
        let Some(mut volumes) = self.an_object_changes(act)? else { return Ok(false) };
        let count = volumes.len().min(1 + self.chance.below(EARLY));
        let early: Vec<_> =
            (0..count).map(|_| volumes.swap_remove(self.chance.below(volumes.len()))).collect();
        let mut paths = Vec::new();
        for &(pod, volume) in &early {
            self.node.sync(pod, volume)?;
            paths.push(self.node.pods[pod].published[volume].path.clone());
        }
        self.awaited(&paths)?;
        self.approved()?;
        for path in &paths {
            self.accepted("change.accepted", path)?;
        }
        self.publish_later(&volumes);
        Ok(true)
    }

    /// Waits until the agent says that it awaits the baseline of what stands there.
    fn awaited(&self, volumes: &[PathBuf]) -> Result<()> {
        let is_awaited = |object: &Value| {
            volumes.iter().any(|path| object["path"] == path.display().to_string().as_str())
                && object["state"] == "unverified"
        };
        self.agent.until_objects(|objects| {
            let awaited = objects.iter().filter(|object| is_awaited(object)).count();
            (awaited < volumes.len()).then(|| format!("not awaited: {volumes:?}"))
        })?;
        let (status, code) = self.agent.status()?;
        ensure!(code == 3 && status["reasons"] == json!(["approval_awaited"]), "{status}");
        Ok(())
    }

    /// What one pod got already is approved only then: until it is, nobody approved it.
    pub(super) fn baseline_comes_too_late(&mut self) -> Result<()> {
        while self.publish_one()? {}
        self.begin_act("a publish comes before the baseline that approves it");
        let name = ("web", "linkerd-config");
        self.changed(name)?;
        let mut all = self.volumes(|source| source == Source::ConfigMap(name.1));
        let (pod, volume) = self.chance.pick(&all).context("no pod has it")?;
        self.about(pod);
        self.node.sync(pod, volume)?;
        let path = self.node.pods[pod].published[volume].path.join("values");
        self.published_unapproved(pod, &path);
        self.told()?;
        self.approved()?;
        let path = path.display().to_string();
        self.agent.find("the end of the violation", |record| {
            record["kind"] == "violation.resolved"
                && record["resolution"] == "rebaselined"
                && record["object"]["path"] == path.as_str()
        })?;
        all.retain(|one| *one != (pod, volume));
        self.publish_later(&all);
        Ok(())
    }

    /// Meshseal itself is restarted, as by an upgrade: nothing comes anew of it.
    fn meshseal_restarts(&mut self) -> Result<bool> {
        // What a rung does not see, such as a mount over a proxy, another agent may find at its start.
        if self.restarts == RESTARTS || !self.model.unseen.is_empty() {
            return Ok(false);
        }
        self.restarts += 1;
        self.begin_act("Meshseal restarts");
        self.agent.restart(&self.home)?;
        for at in 0..self.node.pods.len() {
            self.taken_up(at)?;
        }
        Ok(true)
    }

    /// Another kubelet goes on with what the one before did, at once.
    fn kubelet_is_upgraded(&mut self) -> Result<bool> {
        if self.model.kubelets == KUBELETS {
            return Ok(false);
        }
        self.begin_act("the kubelet is upgraded");
        self.node.upgrade_kubelet()?;
        self.model.kubelets += 1;
        let upgrades = self.model.kubelets;
        self.renews_a_token()?;
        self.agent.wait("the record of another kubelet", |seen| {
            seen.iter().filter(|record| record["kind"] == "writer.changed").count() == upgrades
        })?;
        Ok(true)
    }

    /// Somebody changes an object in the manifests.
    pub(super) fn changed(&mut self, name: (&'static str, &'static str)) -> Result<()> {
        let next = self.revision + 1;
        let (a, b) = (super::api::ROOT_A, super::api::ROOT_B);
        self.node.api.change(name, |text| {
            // Old and new root together, and then one of them.
            if text == a || text == b {
                format!("{a}{b}")
            } else if text.starts_with("-----BEGIN CERTIFICATE") {
                b.to_owned()
            } else {
                match text.rfind('r').filter(|at| text[at + 1..].starts_with(|c: char| c.is_ascii_digit())) {
                    Some(at) => {
                        let rest = text[at + 1..].trim_start_matches(|c: char| c.is_ascii_digit());
                        format!("{}r{next}{rest}", &text[..at])
                    }
                    None => format!("{text}r{next}\n"),
                }
            }
        })
    }

    /// It is sealed and signed, and the agent takes it.
    pub(super) fn approved(&mut self) -> Result<()> {
        self.revision += 1;
        seal::manifests(&self.home, &self.node, self.revision)?;
        self.in_force(seal::WORKLOADS, self.revision)
    }

    /// The agent takes a baseline that is there.
    pub(super) fn in_force(&mut self, name: &str, revision: u64) -> Result<()> {
        self.agent.reload()?;
        let accepted = self.agent.find("acceptance", |record| {
            record["kind"] == "baseline.accepted" && record["name"] == name && record["revision"] == revision
        })?;
        // What is published before everything was looked at under it is taken in without a word. A record that all was verified may be of
        // another sweep, which was under way; and when an object was verified is kept in whole seconds.
        self.agent.find("that all was verified", |record| {
            record["kind"] == "object.verified" && record["seq"].as_u64() > accepted["seq"].as_u64()
        })?;
        let since = accepted["time"].as_str().and_then(|time| time.get(..19)).context("no time")?;
        let looked_at = |object: &Value| {
            let verified = object["last_verified"].as_str().is_some_and(|at| at >= since);
            object["revision"] == revision && (verified || object["state"] == "unverified")
        };
        self.agent.until_objects(|objects| {
            let left = objects.iter().find(|object| object["baseline"] == name && !looked_at(object));
            left.map(|object| format!("not looked at under {name} revision {revision}: {object}"))
        })
    }

    /// Proxies and people read all day.
    fn reads_everything(&mut self) -> Result<bool> {
        self.begin_act("everything is read");
        let files: Vec<PathBuf> =
            self.node.pods.iter().flat_map(|pod| pod.published.iter().map(|one| one.path.clone())).collect();
        for file in files {
            for entry in std::fs::read_dir(file.join("..data"))? {
                std::fs::read(entry?.path())?;
            }
        }
        Ok(true)
    }
}
