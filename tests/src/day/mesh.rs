//! The meshes of the day, as their injectors and charts lay them out; what profiles say of them is not asked.

use super::node::{CNI_BIN, CNI_CONF, CNI_RUN};

/// What a pod of a mesh is made of.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) name: &'static str,
    pub(super) namespace: &'static str,
    /// Its Deployment, and its service account.
    pub(super) workload: &'static str,
    /// The container of its agent, and what that runs.
    pub(super) container: &'static str,
    pub(super) exe: &'static str,
    pub(super) image: &'static str,
    /// What the kubelet publishes into its pods.
    pub(super) volumes: &'static [Volume],
    /// What its agent fills.
    pub(super) scratch: &'static [Scratch],
    /// Directories of the host, and where they are mounted. A pod that has any is a `DaemonSet`'s.
    pub(super) host: &'static [(&'static str, &'static str)],
    pub(super) pods: usize,
    /// Its pods' fsGroup.
    pub(super) group: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) name: &'static str,
    pub(super) at: &'static str,
    pub(super) source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The object of that name.
    ConfigMap(&'static str),
    Secret(&'static str),
    /// A token for this audience, in this file.
    Token(&'static str, &'static str),
}

#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) name: &'static str,
    pub(super) at: &'static str,
    pub(super) memory: bool,
}

const fn volume(name: &'static str, at: &'static str, source: Source) -> Volume {
    Volume { name, at, source }
}

const fn disk(name: &'static str, at: &'static str) -> Scratch {
    Scratch { name, at, memory: false }
}

const fn memory(name: &'static str, at: &'static str) -> Scratch {
    Scratch { name, at, memory: true }
}

pub(super) const ISTIO: usize = 0;
pub(super) const LINKERD: usize = 1;
pub(super) const KUMA: usize = 2;
pub(super) const CONSUL: usize = 3;
pub(super) const ISTIOD: usize = 4;
pub(super) const INSTALLER: usize = 5;

/// Four data planes, a control plane for the key it signs with, and an installer of what the host has of a mesh: 30 pods.
pub(super) static MESHES: [Mesh; 6] = [
    Mesh {
        name: "istio",
        namespace: "shop",
        workload: "cart",
        container: "istio-proxy",
        exe: "/usr/local/bin/pilot-agent",
        image: "docker.io/istio/proxyv2:1",
        volumes: &[
            volume("istiod-ca-cert", "/var/run/secrets/istio", Source::ConfigMap("istio-ca-root-cert")),
            volume("istio-token", "/var/run/secrets/tokens", Source::Token("istio-ca", "istio-token")),
            volume(
                "custom-bootstrap-volume",
                "/etc/istio/custom-bootstrap",
                Source::ConfigMap("custom-bootstrap"),
            ),
        ],
        scratch: &[
            memory("istio-envoy", "/etc/istio/proxy"),
            disk("istio-data", "/var/lib/istio/data"),
            disk("workload-certs", "/var/run/secrets/workload-spiffe-credentials"),
            disk("workload-socket", "/var/run/secrets/workload-spiffe-uds"),
        ],
        host: &[],
        pods: 9,
        group: None,
    },
    Mesh {
        name: "linkerd",
        namespace: "web",
        workload: "web",
        container: "linkerd-proxy",
        exe: "/usr/lib/linkerd/linkerd2-proxy-identity",
        image: "docker.io/linkerd/proxy:1",
        volumes: &[
            volume("linkerd-config", "/var/run/linkerd/config", Source::ConfigMap("linkerd-config")),
            volume(
                "linkerd-identity-token",
                "/var/run/secrets/tokens",
                Source::Token("identity.l5d.io", "linkerd-identity-token"),
            ),
        ],
        scratch: &[memory("linkerd-identity-end-entity", "/var/run/linkerd/identity/end-entity")],
        host: &[],
        pods: 7,
        group: None,
    },
    Mesh {
        name: "kuma",
        namespace: "pay",
        workload: "pay",
        container: "kuma-sidecar",
        exe: "/usr/bin/kuma-dp",
        image: "docker.io/kumahq/kuma-dp:1",
        volumes: &[volume(
            "transparent-proxy-custom",
            "/tmp/transparent-proxy/custom",
            Source::ConfigMap("transparent-proxy"),
        )],
        scratch: &[disk("kuma-sidecar-tmp", "/tmp/kuma")],
        host: &[],
        pods: 6,
        group: Some(1337),
    },
    Mesh {
        name: "consul",
        namespace: "ledger",
        workload: "ledger",
        container: "consul-dataplane",
        exe: "/usr/local/bin/consul-dataplane",
        image: "docker.io/hashicorp/consul-dataplane:1",
        volumes: &[],
        scratch: &[memory("consul-connect-inject-data", "/consul/connect-inject")],
        host: &[],
        pods: 6,
        group: None,
    },
    Mesh {
        name: "istio",
        namespace: "istio-system",
        workload: "istiod",
        container: "discovery",
        exe: "/usr/local/bin/pilot-discovery",
        image: "docker.io/istio/pilot:1",
        volumes: &[volume("cacerts", "/etc/cacerts", Source::Secret("cacerts"))],
        scratch: &[],
        host: &[],
        pods: 1,
        group: None,
    },
    Mesh {
        name: "istio",
        namespace: "istio-system",
        workload: "istio-cni-node",
        container: "install-cni",
        exe: "/usr/local/bin/install-cni",
        image: "docker.io/istio/install-cni:1",
        volumes: &[],
        scratch: &[],
        host: &[
            (CNI_BIN, "/host/opt/cni/bin"),
            (CNI_CONF, "/host/etc/cni/net.d"),
            (CNI_RUN, "/var/run/istio-cni"),
        ],
        pods: 1,
        group: None,
    },
];

/// What else an image has: for whoever comes by `kubectl exec`.
pub(super) const TOOL: &str = "/usr/bin/tool";

/// Where the API server mounts the token it adds, and what it calls the volume, with five letters more.
pub(super) const TOKEN_AT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
pub(super) const TOKEN_VOLUME: &str = "kube-api-access-";
/// The `ConfigMap` beside that token.
pub(super) const CLUSTER_ROOT: &str = "kube-root-ca.crt";
pub(super) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
