//! MITRE ATT&CK Enterprise (v18.1) technique ids for a violation, by what was done and what it was done to.

use serde::Serialize;

use crate::model::{HostPath, ViolationKind};

/// What an object is to the mesh: as its profile says, or else as far as its path tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A trust anchor or trust bundle.
    TrustRoot,
    /// A private key, certificate or signing CA.
    Credential,
    /// A service account token.
    Token,
    /// Configuration a proxy starts from.
    ProxyConfig,
    /// A module a proxy loads.
    ProxyModule,
    /// An executable of the mesh: proxy, agent.
    Binary,
    /// An executable the runtime calls as root on the host for each pod.
    CniBinary,
    /// The plugin chain for new pods.
    CniConfig,
    /// A socket through which a proxy gets identity or configuration.
    Socket,
    /// A file of a container image's layers in the node's store.
    ImageLayer,
    /// Nothing known.
    Other,
}

impl Role {
    /// The words of profiles.
    pub const WORDS: [(&'static str, Self); 11] = [
        ("trust-root", Self::TrustRoot),
        ("credential", Self::Credential),
        ("token", Self::Token),
        ("proxy-config", Self::ProxyConfig),
        ("proxy-module", Self::ProxyModule),
        ("binary", Self::Binary),
        ("cni-binary", Self::CniBinary),
        ("cni-config", Self::CniConfig),
        ("socket", Self::Socket),
        ("image-layer", Self::ImageLayer),
        ("other", Self::Other),
    ];

    /// Whether it is part of an image on the node.
    #[must_use]
    pub const fn is_layer(self) -> bool {
        matches!(self, Self::ImageLayer)
    }

    /// By path alone, where no profile says it: as kubelet and container runtimes lay files out, and by what files of
    /// that kind are called everywhere.
    #[must_use]
    pub fn of(path: &HostPath) -> Self {
        let text = String::from_utf8_lossy(path.as_bytes());
        let name = String::from_utf8_lossy(path.name());
        let has = |part: &str| text.contains(part);
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        if has("/io.containerd.snapshotter.") || has("/containers/storage/overlay/") {
            return Self::ImageLayer;
        }
        if has("/cni/net.d/") || text.ends_with("/cni/net.d") {
            return Self::CniConfig;
        }
        if has("/cni/bin/") || has("/kubernetes/bin/") {
            return Self::CniBinary;
        }
        if name.ends_with(".sock") {
            return Self::Socket;
        }
        let roots = ["root-cert", "ca-bundle", "trust-bundle"].iter().any(|roots| name.starts_with(roots));
        if roots || name == "ca.crt" {
            return Self::TrustRoot;
        }
        if name == "token" || name.ends_with("-token") {
            return Self::Token;
        }
        if matches!(extension, "key" | "crt" | "pem" | "p8" | "p12" | "csr") {
            return Self::Credential;
        }
        if extension == "wasm" || extension == "so" {
            return Self::ProxyModule;
        }
        if matches!(extension, "json" | "yaml" | "yml" | "conf") {
            return Self::ProxyConfig;
        }
        if has("/bin/") {
            return Self::Binary;
        }
        if has("/kubernetes.io~secret/") {
            return Self::Credential;
        }
        Self::Other
    }
}

/// Technique ids, most specific first. `from_container` says that the actor runs in a pod and the object does not
/// belong to that pod.
#[must_use]
pub fn techniques(kind: ViolationKind, role: Role, from_container: bool) -> Vec<String> {
    use ViolationKind as V;
    let mut ids: Vec<&str> = match kind {
        V::Attributes => attributes(role),
        V::MountedOver => vec!["T1564.013"],
        V::Memory => vec!["T1055.008"],
        V::Executed => vec!["T1574.006", "T1036.005"],
        V::Itself => vec!["T1562.001"],
        V::Identity => vec!["T1649", "T1557"],
        V::Removed | V::Renamed if role == Role::Other => vec!["T1565.001"],
        V::Removed | V::Renamed => removed(role),
        V::Content | V::Replaced | V::Reverted | V::Unexpected | V::Linked | V::Structure | V::HeldHandle => {
            changed(role)
        }
    };
    if from_container {
        ids.push("T1611");
    }
    ids.into_iter().map(str::to_owned).collect()
}

fn attributes(role: Role) -> Vec<&'static str> {
    match role {
        Role::Binary | Role::CniBinary => vec!["T1222.002", "T1548.001"],
        _ => vec!["T1222.002"],
    }
}

fn removed(role: Role) -> Vec<&'static str> {
    match role {
        Role::CniConfig | Role::CniBinary => vec!["T1562.001", "T1562.004"],
        Role::Socket => vec!["T1557", "T1556"],
        _ => vec!["T1562.001", "T1565.001"],
    }
}

fn changed(role: Role) -> Vec<&'static str> {
    match role {
        Role::TrustRoot => vec!["T1553.004", "T1565.001", "T1557"],
        Role::Credential => vec!["T1649", "T1565.001"],
        Role::Token => vec!["T1528", "T1550.001"],
        Role::ProxyConfig => vec!["T1574", "T1565.001", "T1557"],
        Role::ProxyModule => vec!["T1554", "T1574"],
        Role::Binary => vec!["T1554", "T1036.005"],
        Role::CniBinary => vec!["T1554", "T1543"],
        Role::CniConfig => vec!["T1562.001", "T1562.004"],
        Role::Socket => vec!["T1557", "T1556"],
        Role::ImageLayer => vec!["T1525", "T1554"],
        Role::Other => vec!["T1565.001"],
    }
}

#[cfg(test)]
mod tests {
    use super::{Role, techniques};
    use crate::model::{HostPath, ViolationKind};

    #[test]
    fn words_are_those_of_records() {
        for (word, role) in Role::WORDS {
            assert_eq!(serde_json::to_value(role).unwrap(), word);
        }
    }

    #[test]
    fn roles_by_path() {
        let profiles = crate::profile::Profiles::built_in();
        let role_of = |path: &HostPath| {
            profiles.role_of(path, &crate::profile::Layout::default(), &crate::profile::Nowhere)
        };
        let pods = "/var/lib/kubelet/pods/u/volumes";
        let cases = [
            (format!("{pods}/kubernetes.io~configmap/istiod-ca-cert/..2026/root-cert.pem"), Role::TrustRoot),
            (format!("{pods}/kubernetes.io~secret/cacerts/..2026/ca-key.pem"), Role::Credential),
            (format!("{pods}/kubernetes.io~projected/istio-token/..2026/istio-token"), Role::Token),
            (format!("{pods}/kubernetes.io~empty-dir/istio-envoy/envoy-rev.json"), Role::ProxyConfig),
            (format!("{pods}/kubernetes.io~empty-dir/istio-data/a/b.wasm"), Role::ProxyModule),
            ("/opt/cni/bin/istio-cni".into(), Role::CniBinary),
            ("/etc/cni/net.d/10-x.conflist".into(), Role::CniConfig),
            ("/etc/cni/net.d".into(), Role::CniConfig),
            ("/usr/local/bin/envoy".into(), Role::Binary),
            ("/var/run/ztunnel/ztunnel.sock".into(), Role::Socket),
            ("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/3/fs/usr/local/bin/envoy".into(), Role::ImageLayer),
            ("/data/x".into(), Role::Other),
        ];
        for (path, role) in cases {
            assert_eq!(role_of(&HostPath::from(path.as_str())), role, "{path}");
        }
    }

    #[test]
    fn techniques_by_act() {
        assert_eq!(
            techniques(ViolationKind::Content, Role::TrustRoot, true),
            ["T1553.004", "T1565.001", "T1557", "T1611"]
        );
        assert_eq!(techniques(ViolationKind::Replaced, Role::Binary, false), ["T1554", "T1036.005"]);
        assert_eq!(techniques(ViolationKind::Attributes, Role::Credential, false), ["T1222.002"]);
        assert_eq!(techniques(ViolationKind::MountedOver, Role::Other, false), ["T1564.013"]);
    }
}
