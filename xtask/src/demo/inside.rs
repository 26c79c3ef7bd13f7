//! The story: sealed → lawful → tampered → posture → proof.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::actors;
use super::agent::{Meshseal, Running};
use super::places::{Places, make};
use super::story::{Expected, Story, pause, seq};
use crate::cmd;
use crate::node::parts::install;

const TOOLS: &[&str] = &["dd", "sed", "mv", "cp", "chmod", "ln", "tee", "sh", "cat"];
const BOOTSTRAP: &str = include_str!("bootstrap.json");
const CONFLIST: &str = include_str!("10-mesh.conflist");

/// Title, tool and its arguments; then the violation, its path, operation and actor.
type Act<'a> = (&'static str, &'a str, Vec<&'a str>, &'static str, &'a str, &'static str, &'static str);

struct Node<'a> {
    kit: &'a Path,
    places: Places,
    meshseal: Meshseal,
}

/// Tells the story with the files of `kit`.
pub(super) fn run(kit: &Path, program: &Path, places: Places, rung: &str, keep: bool) -> Result<ExitCode> {
    let socket = places.at("srv/agent.sock");
    let meshseal = Meshseal { program: program.to_owned(), socket };
    let mut node = Node { kit, places, meshseal };
    node.build()?;
    let mut kubelet = node.writer(
        "kubelet",
        &[
            format!("--root-dir={}", node.places.at("var/lib/kubelet").display()),
            "--config=/var/lib/kubelet/config.yaml".to_owned(),
        ],
    )?;
    let mut pilot = node.writer("pilot-agent", &["proxy".to_owned(), "sidecar".to_owned()])?;

    println!("\nSEALED    an Istio sidecar's volumes, its Envoy, the CNI plugin and its configuration");
    node.seal_all()?;
    let mut agent = node.start_agent(rung)?;
    let mut story = Story::default();
    for record in node.meshseal.events(1)? {
        if record.get("kind").and_then(Value::as_str) == Some("baseline.accepted") {
            let part = |key: &str| record.get(key).map(ToString::to_string).unwrap_or_default();
            println!(
                "  #{:<4} baseline {} revision {} accepted: {} objects, signature checked",
                seq(&record),
                part("name").trim_matches('"'),
                part("revision"),
                part("objects")
            );
        }
    }
    node.posture("intact")?;
    node.lawful(&mut story, &mut kubelet, &mut pilot)?;
    node.posture("intact")?;
    node.tampered(&mut story)?;
    node.posture("violated")?;

    let told = story.confirm(&node.meshseal)?;
    println!("\nPROOF     {told} lines confirmed by `meshseal events`, and no violation beside them");
    if keep {
        return node.keep(agent, kubelet, pilot);
    }
    agent.stop();
    let journal = node.places.at("var/lib/meshseal/state/journal");
    let answer = node.meshseal.run(&["journal", "verify", &journal.display().to_string()])?;
    for line in answer.lines() {
        println!("  {line}");
    }
    Ok(ExitCode::SUCCESS)
}

impl Node<'_> {
    fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        self.places.volume(plugin, name)
    }

    fn roots(&self) -> PathBuf {
        self.volume("configmap", "istiod-ca-cert")
    }

    fn envoy_dir(&self) -> PathBuf {
        self.volume("empty-dir", "istio-envoy")
    }

    fn envoy(&self) -> PathBuf {
        self.places.at(
            "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/42/fs/usr/local/bin/envoy",
        )
    }

    fn state(&self, path: &str) -> PathBuf {
        self.places.at("var/lib/meshseal").join(path)
    }

    /// A directory with these files of the kit under these names.
    fn stage(&self, name: &str, files: &[(&str, &str, u32)]) -> Result<PathBuf> {
        let dir = self.places.at("srv").join(name);
        make(&dir)?;
        for (from, to, mode) in files {
            let to = dir.join(to);
            fs::copy(self.kit.join(from), &to).with_context(|| format!("cannot copy {from}"))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(*mode))?;
        }
        Ok(dir)
    }

    /// The node's files as the kubelet, pilot-agent, containerd and the CNI installer leave them.
    fn build(&mut self) -> Result<()> {
        for dir in ["srv/tools", "srv/bin", "opt/cni/bin", "etc/cni/net.d", "var/lib/meshseal/baselines"] {
            make(&self.places.at(dir))?;
        }
        let busybox =
            cmd::find("busybox").context("busybox is missing: the package busybox-static provides it")?;
        for tool in TOOLS {
            symlink(&busybox, self.places.at("srv/tools").join(tool))?;
        }
        let token = self.volume("projected", "istio-token");
        let podinfo = self.volume("downward-api", "istio-podinfo");
        for tmpfs in [&token, &podinfo, &self.envoy_dir()] {
            self.places.tmpfs(tmpfs)?;
        }
        let labels = self.places.at("srv/podinfo");
        make(&labels)?;
        fs::write(labels.join("labels"), "app=\"checkout\"\n")?;
        fs::write(labels.join("annotations"), "sidecar.istio.io/status=\"injected\"\n")?;
        actors::publish_into(&podinfo, &labels)?;
        actors::publish_into(
            &self.roots(),
            &self.stage("roots-1", &[("root-1.pem", "root-cert.pem", 0o644)])?,
        )?;
        let crl = self.stage("crl", &[("ca-crl.pem", "ca-crl.pem", 0o644)])?;
        actors::publish_into(&self.volume("configmap", "istio-ca-crl"), &crl)?;
        actors::publish_into(&token, &self.stage("token-1", &[("token-1", "istio-token", 0o600)])?)?;
        let certs = self.stage(
            "certs-1",
            &[
                ("key-1.pem", "key.pem", 0o600),
                ("cert-1.pem", "cert-chain.pem", 0o644),
                ("root-1.pem", "root-cert.pem", 0o644),
            ],
        )?;
        actors::renew_into(&self.envoy_dir(), &certs)?;
        fs::write(self.envoy_dir().join("envoy-rev.json"), BOOTSTRAP)?;
        let envoy = self.envoy();
        make(envoy.parent().unwrap_or(&envoy))?;
        install(&self.kit.join("envoy"), &envoy)?;
        install(&self.kit.join("bridge"), &self.places.at("opt/cni/bin/bridge"))?;
        fs::write(self.places.at("etc/cni/net.d/10-mesh.conflist"), CONFLIST)?;
        let xtask = std::env::current_exe().context("cannot find this xtask's own executable")?;
        for name in ["kubelet", "pilot-agent"] {
            install(&xtask, &self.places.at("srv/bin").join(name))?;
        }
        Ok(())
    }

    fn writer(&self, name: &str, args: &[String]) -> Result<Running> {
        let program = self.places.at("srv/bin").join(name);
        Running::start(Command::new(program).args(args), &self.places.at("srv").join(format!("{name}.log")))
    }

    /// Seals and signs one baseline, and puts it where the agent looks.
    fn seal(&self, name: &str, revision: &str, paths: &[PathBuf], more: &[String]) -> Result<()> {
        let statement = self.places.at("srv").join(format!("{name}.json")).display().to_string();
        let envelope = self.state("baselines").join(format!("{name}.dsse.json")).display().to_string();
        let key = self.kit.join("release.key").display().to_string();
        let mut words: Vec<String> = vec!["seal".into(), "--name".into(), name.into(), "--revision".into()];
        words.extend([revision.to_owned(), "-o".into(), statement.clone()]);
        words.extend(paths.iter().map(|path| format!("--path={}", path.display())));
        words.extend(more.iter().cloned());
        words.push(format!("--secret-key={}", self.state("secret.key").display()));
        self.meshseal.run(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.meshseal.run(&["sign", "--key", &key, &statement, "-o", &envelope])?;
        Ok(())
    }

    fn seal_all(&self) -> Result<()> {
        let secret = self.state("secret.key");
        let random = fs::File::open("/dev/urandom").and_then(|mut source| {
            let mut bytes = [0_u8; 32];
            std::io::Read::read_exact(&mut source, &mut bytes).map(|()| bytes)
        });
        fs::write(&secret, random.context("cannot read /dev/urandom")?)?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        self.seal("mesh-roots", "1", &[self.roots(), self.volume("configmap", "istio-ca-crl")], &[])?;
        let published =
            [self.volume("projected", "istio-token"), self.volume("downward-api", "istio-podinfo")];
        self.seal("pod-shop-checkout", "1", &published, &[])?;
        let pilot = self.places.at("srv/bin/pilot-agent");
        self.seal(
            "proxy-shop-checkout",
            "1",
            &[self.envoy_dir()],
            &["--class=rotated".to_owned(), format!("--writer=pilot-agent={}", pilot.display())],
        )?;
        let platform = [self.places.at("etc/cni/net.d"), self.places.at("opt/cni/bin"), self.envoy(), pilot];
        self.seal("platform", "1", &platform, &[])
    }

    fn start_agent(&self, rung: &str) -> Result<Running> {
        let key = self.state("release.pub");
        fs::copy(self.kit.join("release.pub"), &key).context("cannot copy release.pub")?;
        let config = self.places.at("srv/config.yaml");
        let text = format!(
            "apiVersion: meshseal/v1\nstateDir: {}\nsocket: {}\nnode: demo\nbaselines:\n  files: [{}]\n  \
             trustedKeys: [{}]\n  secretKey: {}\nsensor: {{ rung: {rung} }}\n",
            self.state("state").display(),
            self.meshseal.socket.display(),
            self.state("baselines").display(),
            key.display(),
            self.state("secret.key").display()
        );
        fs::write(&config, text).context("cannot write the agent's config")?;
        let log = self.places.at("srv/agent.log");
        let mut agent = Running::start(
            Command::new(&self.meshseal.program).arg("agent").arg("--config").arg(config),
            &log,
        )?;
        if agent.line()? != "ready" {
            let log = fs::read_to_string(&log).unwrap_or_default();
            bail!("the agent did not become ready; it said:\n{}", cmd::tail(&log, 20));
        }
        Ok(agent)
    }

    fn posture(&self, wanted: &str) -> Result<()> {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
        loop {
            let status = self.meshseal.status()?;
            let part = |pointer: &str| match status.pointer(pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            let posture = part("/posture");
            if posture == wanted || std::time::Instant::now() > until {
                println!(
                    "  posture {}: {} objects, {} intact, {} violated, {} superseded; {} open violations; sensor {}, coverage {}",
                    posture.to_uppercase(),
                    part("/objects/total"),
                    part("/objects/intact"),
                    part("/objects/violated"),
                    part("/objects/superseded"),
                    part("/violations/open"),
                    part("/sensor/rung"),
                    part("/coverage")
                );
                if posture != wanted {
                    let whole = self.meshseal.ask(&["status"])?;
                    bail!("not confirmed: posture {posture}, expected {wanted}; the agent says:\n{whole}");
                }
                return Ok(());
            }
            pause();
        }
    }

    fn lawful(&self, story: &mut Story, kubelet: &mut Running, pilot: &mut Running) -> Result<()> {
        println!("\nLAWFUL    what changes by design is recorded, and is no violation");
        story.next(&self.meshseal)?;
        let next = self.stage("roots-2", &[("roots-2.pem", "root-cert.pem", 0o644)])?;
        // Sealed from the approved side: a tree that has what is to be published.
        let approved = self.places.at("srv/approved");
        for (volume, staged) in [
            (self.roots(), next.clone()),
            (self.volume("configmap", "istio-ca-crl"), self.places.at("srv/crl")),
        ] {
            let copy = approved.join(volume.strip_prefix("/").unwrap_or(&volume));
            actors::publish_into(&copy, &staged)?;
        }
        let paths = [self.roots(), self.volume("configmap", "istio-ca-crl")];
        self.seal("mesh-roots", "2", &paths, &[format!("--root={}", approved.display())])?;
        let accepted = story.wait(&self.meshseal, "baseline mesh-roots revision 2 accepted", |record| {
            record.get("kind").and_then(Value::as_str) == Some("baseline.accepted")
                && record.get("revision").and_then(Value::as_u64) == Some(2)
        })?;
        println!(
            "  #{:<4} baseline mesh-roots revision 2 accepted: a second root joins the bundle",
            seq(&accepted)
        );
        story.wait(&self.meshseal, "the node verified against revision 2", |record| {
            record.get("kind").and_then(Value::as_str) == Some("object.verified")
                && seq(record) > seq(&accepted)
        })?;
        kubelet.order(&self.roots(), &next)?;
        let lawful = |title, kind, path: PathBuf, comm| Expected {
            title,
            kind,
            violation: "",
            path: path.display().to_string(),
            operation: "rename",
            comm,
        };
        story.tell(
            &self.meshseal,
            lawful("the kubelet publishes the new root bundle", "change.accepted", self.roots(), "kubelet"),
        )?;
        let token = self.volume("projected", "istio-token");
        kubelet.order(&token, &self.stage("token-2", &[("token-2", "istio-token", 0o600)])?)?;
        story.tell(
            &self.meshseal,
            lawful("the kubelet renews the service account token", "rotation.accepted", token, "kubelet"),
        )?;
        let certs = self
            .stage("certs-2", &[("key-2.pem", "key.pem", 0o600), ("cert-2.pem", "cert-chain.pem", 0o644)])?;
        pilot.order(&self.envoy_dir(), &certs)?;
        let chain = self.envoy_dir().join("cert-chain.pem");
        story.tell(
            &self.meshseal,
            lawful(
                "pilot-agent renews the certificate: same SPIFFE name, same root",
                "rotation.accepted",
                chain,
                "pilot-agent",
            ),
        )
    }

    /// Runs one of the tools as a process of its own.
    fn tool(&self, name: &str, words: &[&str]) -> Result<()> {
        cmd::output(Command::new(self.places.at("srv/tools").join(name)).args(words)).map(drop)
    }

    fn tampered(&self, story: &mut Story) -> Result<()> {
        println!("\nTAMPERED  eight acts by as many programs");
        let shown = |path: &Path| path.display().to_string();
        let root = shown(&self.roots().join("root-cert.pem"));
        let bootstrap = shown(&self.envoy_dir().join("envoy-rev.json"));
        let key = shown(&self.envoy_dir().join("key.pem"));
        let (envoy, plugin) = (shown(&self.envoy()), shown(&self.places.at("opt/cni/bin/bridge")));
        let conflist = shown(&self.places.at("etc/cni/net.d/10-mesh.conflist"));
        let dropped = shown(&self.places.at("etc/cni/net.d/00-evil.conflist"));
        let alias = shown(&self.places.at("opt/cni/alias"));
        let patched = shown(&self.places.at("var/lib/containerd/envoy.new"));
        fs::copy(self.kit.join("envoy"), &patched)?;
        fs::OpenOptions::new()
            .append(true)
            .open(&patched)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"patched"))?;
        fs::set_permissions(&patched, fs::Permissions::from_mode(0o755))?;
        // Reading, and a neighbour's coming and going, are nobody's business.
        self.tool("cat", &[&conflist])?;
        self.tool("cp", &[&conflist, &shown(&self.places.at("srv/neighbour"))])?;

        let evil = shown(&self.kit.join("evil.pem"));
        let back = format!("printf X 1<>{conflist}; printf '{{' 1<>{conflist}");
        let add = format!("printf evil | {} -a {alias}", shown(&self.places.at("srv/tools/tee")));
        let into = format!("of={root}");
        let from = format!("if={evil}");
        let acts: [Act<'_>; 8] = [
            (
                "root certificate edited in place",
                "dd",
                vec![&from, &into, "conv=notrunc"],
                "content",
                &root,
                "write",
                "dd",
            ),
            (
                "Envoy's bootstrap rewritten",
                "sed",
                vec!["-i", "s/15000/15999/", &bootstrap],
                "replaced",
                &bootstrap,
                "rename",
                "sed",
            ),
            (
                "proxy binary replaced by rename",
                "mv",
                vec![&patched, &envoy],
                "replaced",
                &envoy,
                "rename",
                "mv",
            ),
            (
                "a file dropped beside the conflist",
                "cp",
                vec![&evil, &dropped],
                "unexpected",
                &dropped,
                "create",
                "cp",
            ),
            (
                "chmod on the workload's private key",
                "chmod",
                vec!["0644", &key],
                "attributes",
                &key,
                "setattr",
                "chmod",
            ),
            ("the CNI plugin gets an alias", "ln", vec![&plugin, &alias], "linked", &plugin, "link", "ln"),
            (
                "the plugin written through its alias",
                "sh",
                vec!["-c", &add],
                "content",
                &plugin,
                "write",
                "tee",
            ),
            (
                "the conflist changed and put back",
                "sh",
                vec!["-c", &back],
                "reverted",
                &conflist,
                "write",
                "sh",
            ),
        ];
        for (title, tool, words, violation, path, operation, comm) in acts {
            story.next(&self.meshseal)?;
            self.tool(tool, &words)?;
            let path = path.to_owned();
            story.tell(
                &self.meshseal,
                Expected { title, kind: "violation.opened", violation, path, operation, comm },
            )?;
        }
        Ok(())
    }

    /// Leaves the agent running.
    fn keep(mut self, mut agent: Running, mut kubelet: Running, mut pilot: Running) -> Result<ExitCode> {
        let (program, socket) = (self.meshseal.program.display(), self.meshseal.socket.display());
        println!("\nThe agent still runs (pid {}). Ask it:", agent.child.id());
        for question in ["status", "violations", "events"] {
            println!("  {program} {question} --socket {socket}");
        }
        if !self.places.is_scratch() {
            println!("`exit` ends the guest.");
            let _status = Command::new("/bin/sh").status().context("cannot start a shell")?;
            return Ok(ExitCode::SUCCESS);
        }
        println!("To end it: kill {}", agent.child.id());
        for running in [&mut agent, &mut kubelet, &mut pilot] {
            running.keep = true;
        }
        self.places.keep = true;
        Ok(ExitCode::SUCCESS)
    }
}
