//! Baselines from manifests: sealed by the binary, compared with what a kubelet lays down (`kubelet/`, written
//! independently), intact as it was laid down and told apart after any single change.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside their functions")]

mod agent;
mod bench;
mod kubelet;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use agent::Agent;
use kubelet::{Node, Pod};
use monitor::baseline::verify::verify;
use monitor::baseline::{Context, Root, SealedObject, TrustedKey, dsse, secret::SecretKey, statement};
use monitor::inventory::pods;
use monitor::inventory::workloads::{Expect, resolve};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const SECRET_KEY: [u8; 32] = [7; 32];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/manifests").join(name)
}

fn documents(file: &Path) -> Vec<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(&fs::read_to_string(file).unwrap(), options).unwrap()
}

/// Files belong to root on a node; another user cannot make them so.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("passed over: only root can lay down files of other owners");
    }
    root
}

/// A cluster's manifests, a node, and the pods on it.
struct Cluster {
    dir: tempfile::TempDir,
    node: Node,
    pods: Vec<(String, String, String, Value)>,
}

impl Cluster {
    /// One pod of each workload of these manifests.
    fn of(file: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::new(&dir.path().join("node"), &documents(file));
        let mut pods = Vec::new();
        for (object, at) in node.objects().zip(1..) {
            let text = |at: &str| object.pointer(at).and_then(Value::as_str);
            let (kind, name) = (text("/kind").unwrap(), text("/metadata/name").unwrap_or_default());
            let (mut made_from, suffix) = match kind {
                "Pod" => (object.clone(), ""),
                "Deployment" => (object["spec"]["template"].clone(), "-7d9f8b6c5d-x7k2p"),
                "StatefulSet" => (object["spec"]["template"].clone(), "-0"),
                "DaemonSet" | "Job" => (object["spec"]["template"].clone(), "-x7k2p"),
                "CronJob" => (object["spec"]["jobTemplate"]["spec"]["template"].clone(), "-29384756-x7k2p"),
                _ => continue,
            };
            if kind != "Pod" {
                made_from["metadata"]["labels"]["pod-template-hash"] = "7d9f8b6c5d".into();
            }
            let namespace = text("/metadata/namespace").unwrap_or("default").to_owned();
            let uid = format!("0123abcd-4567-89ab-cdef-{at:012}");
            pods.push((namespace, format!("{name}{suffix}"), uid, made_from));
        }
        bench::keys(dir.path());
        fs::write(dir.path().join("secret"), SECRET_KEY).unwrap();
        Self { dir, node, pods }
    }

    fn each(&self) -> impl Iterator<Item = Pod<'_>> {
        self.pods.iter().map(|(namespace, name, uid, made_from)| Pod { namespace, name, uid, made_from })
    }

    fn start(self) -> Self {
        self.each().for_each(|pod| self.node.start(&pod));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        bench::run(self.dir.path(), args)
    }

    /// Seals and signs; returns what stderr says.
    fn seal(&self, manifests: &Path) -> String {
        let manifests = manifests.to_str().unwrap();
        let args = ["seal", "--manifests", manifests, "--secret-key", "secret", "-o", "s.json"];
        let (status, _, stderr) = self.run(&args);
        assert_eq!(status, 0, "{stderr}");
        let (status, _, signing) = self.run(&["sign", "--key", "key.pem", "s.json", "-o", "b.json"]);
        assert_eq!(status, 0, "{signing}");
        stderr
    }

    fn verify(&self) -> (i32, Value) {
        let (status, stdout, stderr) = self.run(&[
            "verify",
            "--baseline",
            "b.json",
            "--trusted-key",
            "key.pub",
            "--secret-key",
            "secret",
            "--root",
            "node",
            "--format",
            "json",
        ]);
        assert!(stdout.starts_with('{'), "{stderr}");
        (status, serde_json::from_str(&stdout).unwrap())
    }

    /// Verifies, expects differences, and tells them: aspect, entry, place (below the pod's directory), source.
    fn differences(&self) -> Vec<(String, String, String, String)> {
        let (status, answer) = self.verify();
        assert_eq!((status, answer["verdict"].as_str()), (1, Some("differs")), "{answer:#}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let below = |path: String| path.split("/pods/").nth(1).unwrap_or_default()[36..].to_owned();
        let of = |line: &Value| {
            (text(&line["aspect"]), text(&line["entry"]), below(text(&line["path"])), text(&line["detail"]))
        };
        answer["differences"].as_array().unwrap().iter().map(of).collect()
    }
}

fn statement(cluster: &Cluster) -> Value {
    serde_json::from_slice(&fs::read(cluster.path("s.json")).unwrap()).unwrap()
}

#[test]
fn what_the_kubelet_lays_down_is_as_the_manifests_say() {
    if !is_root() {
        return;
    }
    let file = fixture("every-kind.yaml");
    let cluster = Cluster::of(&file).start();
    let web = cluster.each().find(|pod| pod.name.starts_with("web-")).unwrap();
    cluster.node.token_volume(&web);
    let notes = cluster.seal(&file);
    assert_eq!(
        notes,
        "meshseal: note: ConfigMap shop/nowhere is optional and not in the manifests: sealed as absent in \
         shop/Deployment/web: volume missing\n\
         meshseal: note: ConfigMap shop/plain belongs to a mesh and is not `immutable: true`\n\
         meshseal: note: tokens of any issuer are taken: --token-issuer URL fixes it\n\
         meshseal: not sealed: shop/Deployment/web: volume all: pod/labels: labels: the controller adds its own\n\
         meshseal: not sealed: shop/Deployment/web: volume idle: no container mounts it: the kubelet does not set it up\n\
         meshseal: not sealed: shop/Deployment/web: volume scratch: emptyDir: filled by the pod itself\n\
         meshseal: not sealed: shop/Pod/alone: volume info: labels: labels: the API server adds zone and region\n"
    );
    let (status, answer) = cluster.verify();
    assert_eq!((status, &answer["verdict"]), (0, &json!("intact")), "{answer:#}");
    assert_eq!(answer["workloads"]["uncovered"], json!([]));
    assert_eq!(answer["workloads"]["absent_workloads"], json!([]));
    let told: Vec<_> = answer["workloads"]["pods"].as_array().unwrap().iter().collect();
    let told: Vec<_> = told.iter().map(|pod| (&pod["workload"], &pod["told_by"], &pod["objects"])).collect();
    assert_eq!(
        told,
        [
            (&json!("shop/Deployment/web"), &json!("logs"), &json!(12)),
            (&json!("shop/Pod/alone"), &json!("logs"), &json!(1)),
            (&json!("shop/StatefulSet/store"), &json!("logs"), &json!(1)),
        ]
    );
}

#[test]
fn a_change_is_told_with_its_workload_and_its_key() {
    if !is_root() {
        return;
    }
    let file = fixture("every-kind.yaml");
    let cluster = Cluster::of(&file).start();
    cluster.seal(&file);
    let web = cluster.each().find(|pod| pod.name.starts_with("web-")).unwrap();
    let volumes = cluster.node.pod_dir(web.uid).join("volumes");
    let row = |aspect: &str, entry: &str, place: &str, detail: &str| {
        (aspect.to_owned(), entry.to_owned(), place.to_owned(), detail.to_owned())
    };

    let key = volumes.join("kubernetes.io~projected/all/secret/password");
    fs::write(&key, "hunter3").unwrap();
    let all = "/volumes/kubernetes.io~projected/all";
    assert_eq!(cluster.differences(), [row("content", "secret/password", all, "from Secret/keys:password")]);
    let (_, answer) = cluster.verify();
    assert_eq!(
        answer["differences"][0]["of"], "shop/Deployment/web, seen at main:/etc/all",
        "a secret tells no more than that it differs"
    );
    assert_eq!(answer["differences"][0]["expected"], json!({"content": "equal"}));
    fs::write(&key, "hunter2").unwrap();

    // The inode that a subPath mount stays on is the volume's own.
    let plain = volumes.join("kubernetes.io~configmap/plain");
    fs::set_permissions(plain.join("one"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        cluster.differences(),
        [
            row("attributes", "", "/volume-subpaths/plain/main/1", ""),
            row("attributes", "one", "/volumes/kubernetes.io~configmap/plain", "from ConfigMap/plain:one"),
        ]
    );
    fs::set_permissions(plain.join("one"), fs::Permissions::from_mode(0o440)).unwrap();

    fs::remove_file(plain.join("blob")).unwrap();
    fs::write(plain.join("blob"), [0, 1, 2, 255]).unwrap();
    assert_eq!(
        cluster.differences(),
        [row("structure", "blob", "/volumes/kubernetes.io~configmap/plain", "")]
    );
    fs::remove_file(plain.join("blob")).unwrap();
    symlink("..data/blob", plain.join("blob")).unwrap();

    // An optional ConfigMap that was not approved appears.
    let missing = volumes.join("kubernetes.io~configmap/missing");
    let payload = [("istiod.pem".to_owned(), (b"x".to_vec(), 0o644, None))].into();
    kubelet::publish(&missing, &payload, Some(1337), "..2026_11_25_09_00_00.1");
    assert_eq!(
        cluster.differences(),
        [row("names", "istiod.pem", "/volumes/kubernetes.io~configmap/missing", "")]
    );
    fs::remove_dir_all(&missing).unwrap();
    assert_eq!(cluster.differences(), [row("missing", "", "/volumes/kubernetes.io~configmap/missing", "")]);
}

#[test]
fn injected_workloads_of_every_mesh_are_intact() {
    if !is_root() {
        return;
    }
    let mut workloads = 0;
    for mesh in ["istio", "linkerd", "kuma"] {
        for entry in fs::read_dir(fixture(mesh)).unwrap() {
            let file = entry.unwrap().path();
            let cluster = Cluster::of(&file).start();
            cluster.seal(&file);
            let (status, answer) = cluster.verify();
            let pods = answer["workloads"]["pods"].as_array().map_or(0, Vec::len);
            workloads += pods;
            assert_eq!((status, &answer["verdict"]), (0, &json!("intact")), "{}: {answer:#}", file.display());
            assert_eq!(pods, cluster.pods.len(), "{}: {answer:#}", file.display());
        }
    }
    assert_eq!(workloads, 25);
}

#[test]
fn no_secret_stands_in_a_statement_as_a_plain_hash() {
    let file = fixture("linkerd/install_default.yaml");
    let cluster = Cluster::of(&file);
    cluster.seal(&file);
    let text = fs::read_to_string(cluster.path("s.json")).unwrap();
    let mut secrets = 0;
    for object in cluster.node.objects().filter(|object| object["kind"] == "Secret") {
        for value in object["data"].as_object().into_iter().flatten().map(|(_, value)| value) {
            use base64::Engine as _;
            let value = value.as_str().unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(value).unwrap();
            assert!(!text.contains(&hex::encode(Sha256::digest(&bytes))) && !text.contains(value));
            secrets += 1;
        }
    }
    assert!(secrets > 0);
    let objects = statement(&cluster)["predicate"]["objects"].as_array().unwrap().clone();
    let issuer = objects
        .iter()
        .find(|object| object["path"] == "/volumes/kubernetes.io~secret/identity-issuer")
        .unwrap();
    assert!(
        issuer["files"]["key.pem"]["publicKey"].is_string() && issuer["files"]["crt.pem"]["hmac"].is_string()
    );
}

#[test]
fn without_the_clusters_key_a_secret_is_listed_and_its_name_still_sealed() {
    let file = fixture("every-kind.yaml");
    let cluster = Cluster::of(&file);
    let (status, _, stderr) = cluster.run(&["seal", "--manifests", file.to_str().unwrap(), "-o", "s.json"]);
    assert_eq!(status, 0);
    assert!(
        stderr.contains("volume secret: password: a secret: its content is sealed only with --secret-key")
    );
    let statement = statement(&cluster);
    let objects = statement["predicate"]["objects"].as_array().unwrap();
    let secret =
        objects.iter().find(|object| object["path"] == "/volumes/kubernetes.io~secret/secret").unwrap();
    assert_eq!(secret["files"]["password"]["class"], "opaque");
    let unresolved = statement["predicate"]["unresolved"].as_array().unwrap();
    assert!(unresolved.iter().any(|one| one["place"] == "shop/Deployment/web: volume secret: password"));
}

#[test]
fn a_review_sees_which_objects_of_which_workload_change() {
    let cluster = Cluster::of(&fixture("every-kind.yaml"));
    let seal = |text: &str, output: &str| {
        fs::write(cluster.path("m.yaml"), text).unwrap();
        let (status, _, stderr) = cluster.run(&["seal", "--manifests", "m.yaml", "-o", output]);
        assert_eq!(status, 0, "{stderr}");
    };
    let text = fs::read_to_string(fixture("every-kind.yaml")).unwrap();
    seal(&text, "a.json");
    seal(&text.replace("listen = 15001", "listen = 666"), "b.json");
    let (status, stdout, _) = cluster.run(&["baseline", "diff", "a.json", "b.json", "--format", "json"]);
    let diff: Value = serde_json::from_str(&stdout).unwrap();
    let changed = [
        "pod:shop/Deployment/web:/volume-subpaths/plain/main/3",
        "pod:shop/Deployment/web:/volumes/kubernetes.io~configmap/plain",
        "pod:shop/Deployment/web:/volumes/kubernetes.io~projected/all",
        "pod:shop/StatefulSet/store:/volumes/kubernetes.io~configmap/conf",
    ];
    assert_eq!((status, &diff["changed"]), (1, &json!(changed)), "{diff:#}");
    assert_eq!((&diff["added"], &diff["removed"]), (&json!([]), &json!([])));
}

#[test]
fn pods_are_told_apart_by_what_the_tree_offers() {
    if !is_root() {
        return;
    }
    let file = fixture("every-kind.yaml");
    let cluster = Cluster::of(&file).start();
    cluster.seal(&file);
    let told = |answer: &Value| -> Vec<String> {
        let pods = answer["workloads"]["pods"].as_array().unwrap().iter();
        pods.map(|pod| format!("{} {}", pod["workload"].as_str().unwrap(), pod["told_by"].as_str().unwrap()))
            .collect()
    };
    let logs = cluster.path("node/var/log/pods");
    fs::rename(&logs, cluster.path("logs")).unwrap();
    let (status, answer) = cluster.verify();
    let expected = ["shop/Deployment/web token", "shop/Pod/alone hosts", "shop/StatefulSet/store hosts"];
    assert_eq!((status, told(&answer)), (0, expected.map(str::to_owned).to_vec()), "{answer:#}");

    for pod in cluster.each() {
        fs::remove_file(cluster.node.pod_dir(pod.uid).join("etc-hosts")).unwrap();
    }
    let (status, answer) = cluster.verify();
    let expected = ["shop/Deployment/web token", "shop/Pod/alone volumes", "shop/StatefulSet/store volumes"];
    assert_eq!((status, told(&answer)), (0, expected.map(str::to_owned).to_vec()), "{answer:#}");

    // A forged log directory does not make the pod another one's, and does not pass.
    let web = cluster.each().find(|pod| pod.name.starts_with("web-")).unwrap();
    fs::create_dir_all(logs.join(format!("other_innocent_{}", web.uid))).unwrap();
    let (status, answer) = cluster.verify();
    assert_eq!(status, 2, "{answer:#}");
    assert_eq!(
        answer["workloads"]["unknown_pods"],
        json!([{"uid": web.uid, "reason": "its log directory and its token name two pods"}])
    );

    fs::remove_dir_all(cluster.path("node/var/lib/kubelet/pods")).unwrap();
    let (status, answer) = cluster.verify();
    assert_eq!((status, &answer["verdict"]), (2, &json!("unknown")), "nothing there is not intact");
}

#[test]
fn bad_manifests_are_refused_in_one_line_and_leave_nothing() {
    let cluster = Cluster::of(&fixture("every-kind.yaml"));
    let bomb = {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for at in 1..12 {
            let before = format!("*a{}", at - 1);
            text += &format!("a{at}: &a{at} [{}]\n", [before.as_str(); 9].join(","));
        }
        text
    };
    let twice = "kind: ConfigMap\nmetadata: {name: a}\ndata: {k: one}\n---\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: two}\n";
    let cases = [
        ("alias bomb", bomb, "YAML"),
        ("deep", "[".repeat(100_000), "YAML"),
        ("deep in blocks", (0..2000).map(|at| format!("{}a:\n", " ".repeat(at))).collect(), "YAML"),
        ("key twice", "kind: ConfigMap\nmetadata: {name: a}\ndata: {k: v, k: w}\n".into(), "YAML"),
        ("key twice in JSON", r#"{"kind": "ConfigMap", "kind": "Secret"}"#.into(), "key `kind` twice"),
        ("object twice", twice.into(), "ConfigMap default/a once"),
        ("not an object", "- a\n- b\n".into(), "a Kubernetes object"),
        ("no kind", "metadata: {name: a}\n".into(), "an object with `kind`"),
        ("bad base64", "kind: Secret\nmetadata: {name: a}\ndata: {k: '%'}\n---\nkind: Pod\nmetadata: {name: p}\nspec: {volumes: [{name: v, secret: {secretName: a}}]}\n".into(), "base64"),
        ("number as text", "kind: ConfigMap\nmetadata: {name: a}\ndata: {k: 1}\n".into(), "string"),
        ("hostile name", "kind: ConfigMap\nmetadata: {name: \"../a\\nb\"}\n".into(), "a name in lower-case"),
        ("no text", "\u{0}".into(), "without NUL"),
        ("half a file", "kind: ConfigMap\nmetadata: {name: \"a\n".into(), "YAML"),
        ("self reference", "a: &a [*a]\n".into(), "YAML"),
    ];
    for (what, text, expected) in cases {
        fs::write(cluster.path("m.yaml"), text).unwrap();
        let (status, stdout, stderr) = cluster.run(&["seal", "--manifests", "m.yaml", "-o", "none.json"]);
        assert_eq!((status, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{what}: {stderr}");
        assert!(stderr.starts_with("meshseal: bad manifest: m.yaml"), "{what}: {stderr}");
        assert!(stderr.contains(expected), "{what}: {stderr}");
        assert!(!cluster.path("none.json").exists(), "{what}");
    }
    fs::create_dir(cluster.path("empty")).unwrap();
    let (status, _, stderr) = cluster.run(&["seal", "--manifests", "empty", "-o", "none.json"]);
    assert_eq!((status, stderr.lines().count()), (2, 1), "{stderr}");
}

#[test]
fn a_running_agent_judges_every_pod_of_a_workload() {
    if !is_root() {
        return;
    }
    let file = fixture("every-kind.yaml");
    let cluster = Cluster::of(&file);
    cluster.seal(&file);
    let pod = |name: &str| cluster.each().find(|pod| pod.name.starts_with(name)).unwrap();
    cluster.node.start(&pod("web-"));
    let mut agent = Agent::start(cluster.dir.path());
    agent.verified(11);
    let status = agent.status();
    assert_eq!(
        (&status["posture"], &status["objects"]["total"]),
        (&json!("intact"), &json!(11)),
        "{status:#}"
    );

    // A pod of which nothing tells yet what it is, as each is for a moment, makes no doubt.
    fs::create_dir_all(cluster.node.pod_dir("0123abcd-4567-89ab-cdef-dddddddddddd").join("volumes")).unwrap();
    // A pod that comes while the agent runs, another of the same workload among them.
    cluster.node.start(&pod("alone"));
    agent.verified(1);
    assert_eq!(agent.status()["posture"], "intact");
    let second =
        Pod { name: "web-7d9f8b6c5d-z9z9z", uid: "0123abcd-4567-89ab-cdef-ffffffffffff", ..pod("web-") };
    cluster.node.start(&second);
    agent.verified(11);
    let dir = cluster.node.pod_dir(second.uid);
    let key = "volumes/kubernetes.io~configmap/plain/one";
    fs::write(dir.join(key), "changed").unwrap();
    let opened = agent.violation("content", &format!("{}/{key}", second.uid));
    assert_eq!(opened["object"]["baseline"], "node", "{opened:#}");
    let target = &opened["target"];
    let told = ["pod", "service_account", "container"].map(|key| &target[key]);
    assert_eq!(told, [&json!(second.name), &json!("web"), &Value::Null], "two containers see it: {opened:#}");
    let status = agent.status();
    assert_eq!(
        (&status["posture"], &status["objects"]["total"]),
        (&json!("violated"), &json!(23)),
        "{status:#}"
    );

    // Nobody's pod is judged by it: the name of another workload, in the same namespace.
    let other = Pod {
        name: "web-admin-7d9f8b6c5d-z9z9z",
        uid: "0123abcd-4567-89ab-cdef-eeeeeeeeeeee",
        ..pod("web-")
    };
    cluster.node.start(&other);
    // It goes away as a whole. This rung does not tell that no kubelet took it.
    fs::remove_dir_all(cluster.node.pod_dir(pod("alone").uid)).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let status = loop {
        let status = agent.status();
        if status["objects"]["total"] == 22 {
            break status;
        }
        assert!(std::time::Instant::now() < until, "its objects are still there: {status:#}");
        std::thread::yield_now();
    };
    assert_eq!(status["violations"]["open"], 1, "{status:#}");
    let told = agent
        .seen
        .iter()
        .any(|record| record["object"]["path"].as_str().unwrap_or_default().contains(other.uid));
    assert!(!told, "{:#?}", agent.seen);
}

/// A single change somewhere in the volumes of a tree; what it changed, or nothing if it does not apply.
fn mutate(path: &Path, how: u8) -> Option<&'static str> {
    let meta = fs::symlink_metadata(path).unwrap();
    let mode = meta.permissions().mode() & 0o7777;
    Some(match how % 7 {
        0 if meta.is_file() && meta.len() > 0 => {
            let mut bytes = fs::read(path).unwrap();
            bytes[0] ^= 1;
            fs::write(path, bytes).unwrap();
            "byte"
        }
        1 if meta.is_file() => {
            let mut bytes = fs::read(path).unwrap();
            bytes.push(b'\n');
            fs::write(path, bytes).unwrap();
            "length"
        }
        2 if !meta.is_symlink() => {
            fs::set_permissions(path, fs::Permissions::from_mode(mode ^ 0o001)).unwrap();
            "mode"
        }
        3 if !meta.is_symlink() => {
            chown(path, Some(meta.uid() + 1), None).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            "owner"
        }
        4 if !meta.is_symlink() => {
            lchown(path, None, Some(meta.gid() + 1)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            "group"
        }
        5 if meta.is_symlink() => {
            let target = fs::read_link(path).unwrap();
            fs::remove_file(path).unwrap();
            symlink(target.join("x"), path).unwrap();
            "target"
        }
        6 if meta.is_dir() => {
            fs::write(path.join("dropped"), "x").unwrap();
            "name"
        }
        _ => return None,
    })
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        out.push(path.clone());
        if !path.is_symlink() && path.is_dir() {
            walk(&path, out);
        }
    }
}

/// Everything that lies in published volumes of the tree, volumes' own directories among it.
fn published(node: &Node) -> Vec<PathBuf> {
    let mut all = Vec::new();
    walk(&node.root.join("var/lib/kubelet/pods"), &mut all);
    all.retain(|path| {
        let text = path.to_str().unwrap();
        let inside = text.split("/volumes/kubernetes.io~").nth(1).is_some_and(|rest| rest.contains('/'));
        inside && !text.contains("empty-dir")
    });
    all.sort();
    all
}

/// What a baseline on its way through text, signature and parser says of this tree: how many objects, and which differ.
fn judge(cluster: &Cluster) -> (usize, Vec<String>) {
    let trusted = TrustedKey::read_all(&[cluster.path("key.pub")]).unwrap();
    let envelope = fs::read(cluster.path("b.json")).unwrap();
    let baseline = statement::parse(&dsse::verify(&envelope, &trusted, 1).unwrap().payload).unwrap();
    let root = Root::open(&cluster.node.root).unwrap();
    let pods = pods::read(&root, &pods::kubelet_root(&root).unwrap());
    let objects: Vec<SealedObject> = resolve(&root, &baseline.objects, &pods, Expect::All).objects;
    let secret_key = Some(SecretKey::new(SECRET_KEY.to_vec()).unwrap().into());
    let outcome = verify(&root, &objects, &Context { secret_key, ..Context::default() });
    assert_eq!(outcome.unknown, []);
    (objects.len(), outcome.differs.iter().map(|it| objects[it.at].path.to_string()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, ..ProptestConfig::default() })]
    #[test]
    fn any_single_mutation_is_found(pick in any::<prop::sample::Index>(), how in any::<u8>()) {
        if !is_root() {
            return Ok(());
        }
        let file = fixture("every-kind.yaml");
        let cluster = Cluster::of(&file).start();
        cluster.seal(&file);
        let (objects, differing) = judge(&cluster);
        prop_assert_eq!((objects, differing), (13, Vec::new()));
        let all = published(&cluster.node);
        let path = pick.get(&all);
        // A token may be any of the same identity, and labels are others' to write, too: their bytes are not sealed.
        let open = ["token", "labels"].iter().any(|name| path.ends_with(name));
        let by_bytes = matches!(how % 7, 0 | 1);
        if !(open && by_bytes) && let Some(what) = mutate(path, how) {
            let (_, differing) = judge(&cluster);
            prop_assert!(!differing.is_empty(), "{} of {}", what, path.display());
        }
    }
}
