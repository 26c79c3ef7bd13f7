//! What an attacker does by way of the API server, from within a pod, from a privileged one, and by a shell of the host.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::sealed::Sealed;
use super::tamper::Tampering;
use crate::cmd::{self, Killed};
use crate::node::cluster::Cluster;

/// Each of them is one violation. `hooks`: the rung sees mounts, and who reaches into a process.
pub(super) fn all<'a>(cluster: &'a Cluster, sealed: &'a Sealed, hooks: bool) -> Vec<Tampering<'a>> {
    let pod = Some((&*sealed.attacked.namespace, &*sealed.attacked.name));
    let mut all = vec![
        Tampering {
            what: "kubectl edits a policy that nobody approved: content, laid down by the kubelet",
            act: Box::new(move || {
                let patch = r#"{"data":{"policy.yaml":"action: ALLOW\n"}}"#;
                let edit = ["-n", "plain", "patch", "configmap", "mesh-policy", "--patch", patch];
                cluster.kubectl(&edit).map(drop)
            }),
            violation: "content",
            operation: "rename",
            path: sealed.policy.clone(),
            comm: "kubelet",
            actor: None,
            target: pod,
        },
        Tampering {
            what: "kubectl exec into a proxy rewrites its bootstrap",
            act: Box::new(move || {
                let script = "echo '{\"admin\":1}' > /etc/mesh/bootstrap.json";
                let exec = ["-n", "plain", "exec", "attacked", "-c", "proxy", "--", "sh", "-c", script];
                cluster.kubectl(&exec).map(drop)
            }),
            violation: "content",
            operation: "write",
            path: sealed.bootstrap.clone(),
            comm: "sh",
            actor: Some(("plain", "attacked")),
            target: pod,
        },
        Tampering {
            what: "a shell of the host points a bundle's name elsewhere",
            act: Box::new(move || {
                let link = Command::new("ln").args(["-sf", "/etc/hostname"]).arg(&sealed.bundle).output();
                link.map(drop).context("cannot start ln")
            }),
            violation: "structure",
            operation: "rename",
            path: sealed.bundle.clone(),
            comm: "ln",
            actor: None,
            target: pod,
        },
        Tampering {
            what: "a shell of the host opens a key to everybody",
            act: Box::new(move || {
                cmd::output(Command::new("chmod").arg("0666").arg(&sealed.ca_key)).map(drop)
            }),
            violation: "attributes",
            operation: "setattr",
            path: sealed.ca_key.clone(),
            comm: "chmod",
            actor: None,
            target: pod,
        },
    ];
    if hooks {
        all.push(Tampering {
            what: "a privileged pod enters the host and mounts a file over a binary",
            act: Box::new(move || {
                let [plugin, other] = [&sealed.plugin, &sealed.key].map(|file| file.display().to_string());
                let exec = [
                    "-n",
                    "plain",
                    "exec",
                    "privileged",
                    "--",
                    "/bin/busybox",
                    "nsenter",
                    "-t",
                    "1",
                    "-m",
                    "--",
                ];
                cluster.kubectl(&[&exec[..], &["mount", "--bind", &other, &plugin]].concat()).map(drop)
            }),
            violation: "mounted_over",
            operation: "mount",
            path: sealed.plugin.clone(),
            comm: "mount",
            actor: Some(("plain", "privileged")),
            target: None,
        });
        all.push(Tampering {
            what: "a shell of the host reaches into the memory of a process that runs a sealed binary",
            act: Box::new(move || reach_into(sealed)),
            violation: "memory",
            operation: "ptrace",
            path: sealed.binary.clone(),
            comm: "dd",
            actor: None,
            target: None,
        });
    }
    all
}

fn reach_into(sealed: &Sealed) -> Result<()> {
    let mut sleeper = Command::new(&sealed.binary);
    let sleeper = sleeper.arg0("sleep").arg("600").spawn().context("cannot start the sealed binary")?;
    let running = Killed(sleeper);
    let memory = format!("of=/proc/{}/mem", running.0.id());
    cmd::output(Command::new("dd").args(["if=/dev/null", &memory, "conv=notrunc", "status=none"])).map(drop)
}
