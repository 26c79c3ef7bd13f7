//! Istio's CNI installer, as it runs on the node: it puts its plugin there, and its entry into a chain that is another's file; renews both;
//! takes them away when it ends; and comes back, as it was or in another version.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::mesh::{INSTALLER, MESHES};
use super::node::{CNI_BIN, CNI_CONF, CNI_RUN, Node};
use super::{Day, seal};
use crate::pods::container::BUNDLES;

/// Upgrades in one day.
const UPGRADES: u64 = 1;
/// The chain without the mesh, as whoever set up the network left it.
const CHAIN: &str = r#"{"cniVersion":"1.0.0","name":"node","plugins":[{"type":"bridge"}]}"#;
const BRIDGE: &str = "another plugin";
/// In the image.
const PLUGIN: &str = "/srv/istio-cni";
const ENTRY: &str = "/srv/entry.json";

/// What it keeps on the node.
pub(super) fn plugin() -> PathBuf {
    Path::new(CNI_BIN).join("istio-cni")
}

pub(super) fn chain() -> PathBuf {
    Path::new(CNI_CONF).join("10-node.conflist")
}

pub(super) fn kubeconfig() -> PathBuf {
    Path::new(CNI_RUN).join("istio-cni-kubeconfig")
}

impl Node {
    /// The host's part of the network, before any mesh.
    pub(super) fn network(&self) -> Result<()> {
        fs::write(chain(), CHAIN)?;
        Ok(fs::write(Path::new(CNI_BIN).join("bridge"), BRIDGE)?)
    }

    /// What the image of the version that is current brings beside its program, which is another with each version.
    pub(super) fn installer_is_in_its_image(&self) -> Result<()> {
        let (mesh, version) = (&MESHES[INSTALLER], self.version);
        let layer = self.layer(mesh);
        let at = |path: &str| layer.join(path.trim_start_matches('/'));
        fs::write(at(PLUGIN), format!("plugin of version {version}"))?;
        let entry = json!({ "type": "istio-cni", "log_level": format!("v{version}"),
            "kubernetes": { "exclude_namespaces": ["kube-system"] } });
        fs::write(at(ENTRY), entry.to_string())?;
        // What is behind its last segment is not loaded.
        let mut exe = fs::OpenOptions::new().append(true).open(at(mesh.exe))?;
        Ok(std::io::Write::write_all(&mut exe, format!("version {version}").as_bytes())?)
    }

    /// Its image is there, and whoever comes from now on runs that.
    fn next_version(&mut self) -> Result<()> {
        self.version += 1;
        self.image(&MESHES[INSTALLER])?;
        self.installer_is_in_its_image()
    }

    fn installer(&self) -> Result<usize> {
        self.pods.iter().position(|pod| pod.mesh == INSTALLER).context("no installer")
    }

    /// The plugin by a temporary name, which is the other's own name then, and the kubeconfig with another token; the entry where it is missing.
    pub(super) fn install(&mut self) -> Result<()> {
        self.serial += 1;
        let (at, token) = (self.installer()?, self.serial);
        let pod = &mut self.pods[at];
        pod.tell(&format!("put {PLUGIN} /host/opt/cni/bin/istio-cni 755"))?;
        pod.tell(&format!("swap /var/run/istio-cni/istio-cni-kubeconfig token:{token}"))?;
        pod.tell(&format!("chain /host/etc/cni/net.d/10-node.conflist istio-cni {ENTRY}"))
    }

    /// As it does when it is told to end.
    fn uninstall(&mut self) -> Result<()> {
        let at = self.installer()?;
        let pod = &mut self.pods[at];
        pod.tell("chain /host/etc/cni/net.d/10-node.conflist istio-cni -")?;
        pod.tell("remove /var/run/istio-cni/istio-cni-kubeconfig")?;
        pod.tell("remove /host/opt/cni/bin/istio-cni")
    }

    /// Another node, which has the version that is current here since a while: its host's part of the mesh, and its runtime's notes.
    fn canary(&self) -> Result<PathBuf> {
        let mesh = &MESHES[INSTALLER];
        let (root, layer) = (self.dir.join(format!("canary-{}", self.version)), self.layer(mesh));
        let at = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let within = |path: &str| layer.join(path.trim_start_matches('/'));
        for dir in [CNI_BIN, CNI_CONF, CNI_RUN] {
            fs::create_dir_all(at(Path::new(dir)))?;
        }
        fs::write(at(&Path::new(CNI_BIN).join("bridge")), BRIDGE)?;
        fs::copy(within(PLUGIN), at(&plugin()))?;
        fs::set_permissions(at(&plugin()), fs::Permissions::from_mode(0o755))?;
        fs::write(at(&chain()), CHAIN)?;
        crate::pods::verbs::act(&[
            "chain",
            at(&chain()).to_str().context("not UTF-8")?,
            "istio-cni",
            within(ENTRY).to_str().context("not UTF-8")?,
        ])?;
        fs::write(at(&kubeconfig()), "token:0")?;
        let bundle = at(&Path::new(BUNDLES).join("c".repeat(64)));
        let exe = bundle.join("rootfs").join(mesh.exe.trim_start_matches('/'));
        fs::create_dir_all(exe.parent().context("no directory")?)?;
        fs::copy(within(mesh.exe), exe)?;
        let config = json!({ "root": { "path": "rootfs" }, "annotations": {
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": mesh.container,
            "io.kubernetes.cri.sandbox-uid": "5f6a7b80-0000-4000-8000-00000000000c", "io.kubernetes.cri.image-name": mesh.image,
            "io.kubernetes.cri.sandbox-namespace": mesh.namespace, "io.kubernetes.cri.sandbox-name": "canary" } });
        fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(root)
    }
}

impl Day {
    /// Nobody but the installer has written what is the installer's.
    fn only_the_installer_wrote(&self) -> bool {
        [plugin(), chain(), kubeconfig()].iter().all(|file| !self.is_dirty(file))
    }

    /// Waits until these objects are in that state.
    fn are(&self, wanted: &[PathBuf], state: &str) -> Result<()> {
        let wanted: Vec<String> = wanted.iter().map(|path| path.display().to_string()).collect();
        self.agent.until_objects(|objects| {
            let state_of = |path: &String| {
                let object = objects.iter().find(|one| one["path"] == path.as_str());
                object.and_then(|one| one["state"].as_str()).unwrap_or("unknown").to_owned()
            };
            let states: Vec<String> = wanted.iter().map(state_of).collect();
            let other = states.iter().any(|now| now != state);
            other.then(|| format!("not {state}: of {wanted:?} {states:?}"))
        })
    }

    /// Waits until all that it installed is watched, and as sealed.
    pub(super) fn installed(&self) -> Result<()> {
        self.are(&[plugin(), chain(), kubeconfig()], "intact")
    }

    /// A renewal: the same bytes in another inode, and another token.
    pub(super) fn installer_installs_anew(&mut self) -> Result<bool> {
        if !self.only_the_installer_wrote() {
            return Ok(false);
        }
        self.begin_act("an installer installs the same anew");
        self.node.install()?;
        self.accepted("change.accepted", &kubeconfig())?;
        self.installed()?;
        Ok(true)
    }

    /// It ends, and takes away what it installed; it comes back in the same pod, or in another.
    pub(super) fn installer_comes_back(&mut self) -> Result<bool> {
        if !self.only_the_installer_wrote() {
            return Ok(false);
        }
        let same = self.chance.below(2) == 0;
        let act = if same { "an installer restarts" } else { "an installer's pod is replaced" };
        self.begin_act(act);
        self.uninstalls()?;
        if same {
            let at = self.node.installer()?;
            self.about(at);
            self.node.run(at, &mut self.chance)?;
        } else {
            self.another_installer()?;
        }
        self.is_back()
    }

    /// Its next version is sealed, where it runs already; it comes to this node after that.
    pub(super) fn installer_is_upgraded(&mut self) -> Result<bool> {
        if !self.only_the_installer_wrote() || self.node.version > UPGRADES {
            return Ok(false);
        }
        self.begin_act("an installer is upgraded under a new baseline");
        self.node.next_version()?;
        seal::cni(&self.home, &self.node.canary()?, self.node.version)?;
        self.in_force(seal::CNI, self.node.version)?;
        // Until then the old one is the installer of what it installed.
        self.uninstalls()?;
        self.another_installer()?;
        self.is_back()?;
        self.accepted("change.accepted", &plugin())?;
        self.accepted("change.accepted", &chain())?;
        Ok(true)
    }

    /// It takes everything away, and has a while to put it back.
    fn uninstalls(&mut self) -> Result<()> {
        self.node.uninstall()?;
        if self.model.on_hooks() {
            return Ok(());
        }
        // Who acted is asked after the act: of one that ends at once nobody knows.
        self.are(&[plugin(), chain()], "unverified")
    }

    fn another_installer(&mut self) -> Result<()> {
        let at = self.node.installer()?;
        self.about(at);
        self.node.stop(at)?;
        let at = self.node.start(INSTALLER, 0, &mut self.chance)?;
        self.residents[INSTALLER].clone_from(&self.node.pods[at].uid);
        self.about(at);
        Ok(())
    }

    fn is_back(&mut self) -> Result<bool> {
        self.node.install()?;
        self.accepted("change.accepted", &kubeconfig())?;
        self.installed()?;
        let at = self.node.installer()?;
        self.taken_up(at)?;
        Ok(true)
    }
}
