//! What the API server would hold: objects, and the manifests they and the workloads are rendered to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::mesh::{CLUSTER_ROOT, ISSUER, MESHES, Mesh, Source};

/// By openssl, in tests/fixtures/day.
macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../fixtures/day/", $name))
    };
}
pub(super) const ROOT_A: &str = fixture!("root-a.pem");
pub(super) const ROOT_B: &str = fixture!("root-b.pem");
pub(super) const ROGUE: &str = fixture!("rogue.pem");
pub(super) const CA_KEY: &str = fixture!("ca-key.pem");
/// Certificates of one identity, with their keys; the last ends in a root that nobody sealed.
pub(super) const LEAVES: [(&str, &str, &str); 4] = [
    ("1", fixture!("leaf-1.pem"), fixture!("leaf-1.key")),
    ("2", fixture!("leaf-2.pem"), fixture!("leaf-2.key")),
    ("3", fixture!("leaf-3.pem"), fixture!("leaf-3.key")),
    ("rogue", fixture!("leaf-rogue.pem"), fixture!("leaf-rogue.key")),
];
pub(super) const OTHER_KEY: &str = fixture!("other-key.pem");

/// Namespace and name.
pub(super) type Name = (&'static str, &'static str);

/// `ConfigMap`s and `Secret`s, by key.
#[derive(Debug, Clone)]
pub(super) struct Api {
    objects: BTreeMap<Name, (bool, BTreeMap<&'static str, String>)>,
}

impl Api {
    pub(super) fn new() -> Self {
        let mut api = Self { objects: BTreeMap::new() };
        let mut add = |name: Name, secret: bool, keys: &[(&'static str, &str)]| {
            let keys = keys.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
            api.objects.insert(name, (secret, keys));
        };
        for mesh in &MESHES {
            add((mesh.namespace, CLUSTER_ROOT), false, &[("ca.crt", ROOT_A)]);
        }
        add(("shop", "istio-ca-root-cert"), false, &[("root-cert.pem", ROOT_A)]);
        add(
            ("shop", "custom-bootstrap"),
            false,
            &[("custom_bootstrap.json", "{\"layered_runtime\":{\"layers\":[{\"name\":\"r0\"}]}}")],
        );
        add(("web", "linkerd-config"), false, &[("values", "proxy:\n  logLevel: warn # r0\n")]);
        add(("pay", "transparent-proxy"), false, &[("config.yaml", "redirect:\n  inbound: 15006 # r0\n")]);
        let cacerts = [("ca-key.pem", CA_KEY), ("root-cert.pem", ROOT_A)];
        add(("istio-system", "cacerts"), true, &cacerts);
        api
    }

    /// What the object holds.
    pub(super) fn keys(&self, name: Name) -> Result<&BTreeMap<&'static str, String>> {
        Ok(&self.objects.get(&name).with_context(|| format!("no object {name:?}"))?.1)
    }

    /// An approved change: another of everything that `edit` makes of the text.
    pub(super) fn change(&mut self, name: Name, edit: impl Fn(&str) -> String) -> Result<()> {
        let (_, keys) = self.objects.get_mut(&name).with_context(|| format!("no object {name:?}"))?;
        for text in keys.values_mut() {
            *text = edit(text);
        }
        Ok(())
    }

    /// Renders objects and workloads into a directory.
    pub(super) fn render(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        let mut items = Vec::new();
        for ((namespace, name), (secret, keys)) in &self.objects {
            let metadata = json!({ "namespace": namespace, "name": name });
            items.push(if *secret {
                let data: BTreeMap<_, _> =
                    keys.iter().map(|(key, text)| (key, base64(text.as_bytes(), STANDARD))).collect();
                json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data })
            } else {
                json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": keys })
            });
        }
        items.extend(MESHES.iter().map(workload));
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        Ok(fs::write(dir.join("all.json"), list.to_string())?)
    }
}

fn workload(mesh: &Mesh) -> Value {
    let volumes: Vec<Value> =
        mesh.volumes
            .iter()
            .map(|volume| {
                let mut one = json!({ "name": volume.name });
                match volume.source {
                    Source::ConfigMap(object) => one["configMap"] = json!({ "name": object }),
                    Source::Secret(object) => one["secret"] = json!({ "secretName": object }),
                    Source::Token(audience, path) => {
                        let token = json!({ "audience": audience, "expirationSeconds": 43200, "path": path });
                        one["projected"] = json!({ "sources": [{ "serviceAccountToken": token }] });
                    }
                }
                one
            })
            .chain(mesh.scratch.iter().map(|scratch| {
                let medium = if scratch.memory { "Memory" } else { "" };
                json!({ "name": scratch.name, "emptyDir": { "medium": medium } })
            }))
            .chain(
                mesh.host.iter().enumerate().map(
                    |(at, (path, _))| json!({ "name": format!("host-{at}"), "hostPath": { "path": path } }),
                ),
            )
            .collect();
    let mounted = mesh.volumes.iter().map(|volume| (volume.name, volume.at));
    let mounts: Vec<Value> = mounted
        .chain(mesh.scratch.iter().map(|scratch| (scratch.name, scratch.at)))
        .map(|(name, at)| json!({ "name": name, "mountPath": at }))
        .chain(
            mesh.host
                .iter()
                .enumerate()
                .map(|(at, (_, to))| json!({ "name": format!("host-{at}"), "mountPath": to })),
        )
        .collect();
    let containers = json!([
        { "name": "app", "image": "docker.io/library/app:1" },
        { "name": mesh.container, "image": mesh.image, "volumeMounts": mounts },
    ]);
    let mut spec =
        json!({ "serviceAccountName": mesh.workload, "containers": containers, "volumes": volumes });
    if let Some(group) = mesh.group {
        spec["securityContext"] = json!({ "fsGroup": group });
    }
    let kind = if mesh.host.is_empty() { "Deployment" } else { "DaemonSet" };
    json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": { "namespace": mesh.namespace, "name": mesh.workload },
        "spec": { "template": { "metadata": { "labels": { "app": mesh.workload } }, "spec": spec } },
    })
}

/// A service account token as the API server makes them, but for its signature: that is not checked on a node.
pub(super) fn token(mesh: &Mesh, (pod, uid): (&str, &str), audience: &str, serial: u64) -> String {
    let account = mesh.workload;
    let claims = json!({
        "iss": ISSUER, "sub": format!("system:serviceaccount:{}:{account}", mesh.namespace),
        "aud": [audience], "iat": 1_760_000_000 + serial, "exp": 1_900_000_000 + serial, "jti": serial.to_string(),
        "kubernetes.io": { "namespace": mesh.namespace, "pod": { "name": pod, "uid": uid },
            "serviceaccount": { "name": account, "uid": "5f6a7b80-0000-4000-8000-000000000001" } },
    });
    let part = |value: &Value| base64(value.to_string().as_bytes(), URL);
    format!("{}.{}.{}", part(&json!({ "alg": "RS256", "kid": "day" })), part(&claims), base64(&[7; 64], URL))
}

/// The last two letters, and what a text is filled up with.
type Alphabet = (&'static [u8; 2], &'static str);
const STANDARD: Alphabet = (b"+/", "=");
const URL: Alphabet = (b"-_", "");

/// RFC 4648.
fn base64(bytes: &[u8], (last, fill): Alphabet) -> String {
    let letter = |six: u32| match six {
        0..26 => b'A' + six as u8,
        26..52 => b'a' + (six - 26) as u8,
        52..62 => b'0' + (six - 52) as u8,
        _ => last[six as usize - 62],
    };
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let word =
            part.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for at in 0..=part.len() {
            text.push(char::from(letter(word >> (18 - 6 * at) & 63)));
        }
        text.push_str(&fill.repeat(3 - part.len()));
    }
    text
}
