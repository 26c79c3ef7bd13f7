//! Baselines from images: layouts and archives written by code of the test's own, sealed by the binary, compared with
//! the tree a runtime makes of them; and archives that mean harm.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside their functions")]

#[path = "../agent/mod.rs"]
mod agent;
mod archive;
#[path = "../bench/mod.rs"]
mod bench;
mod hostile;
mod layout;
mod runtime;
mod sparse;
mod tools;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Value, json};

use self::agent::Agent;
use self::archive::{CAPABILITY, sha256};
use self::layout::{Bench, LONG, image, paths, rootfs};

#[test]
fn what_a_runtime_unpacks_is_as_the_image_says() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: only root can make files with capabilities");
        return;
    }
    let bench = Bench::new();
    let digest = image().layout(&bench.path("layout"));
    rootfs(&bench.path("rootfs"));
    let objects = bench.seal("layout", &["/**"]);
    let all = [
        "/d/2",
        "/escape",
        "/etc/a",
        "/lib",
        "/o/new",
        "/o/x.so",
        "/run",
        "/usr/bin/envoy",
        "/usr/bin/envoy-again",
        "/usr/lib/x.so",
        "/usr/lib/y.so",
        &format!("/{LONG}/name"),
    ];
    assert_eq!(paths(&objects), all);
    assert!(objects.iter().all(|object| object["image"]["digest"] == *digest));
    assert_eq!(bench.verify(&digest), (0, Vec::new()));
    assert_eq!(bench.verify("istio/proxyv2:1"), (0, Vec::new()), "by the name a pod uses");

    let at = |path: &str| bench.path("rootfs").join(path);
    rustix::fs::removexattr(at("usr/bin/envoy"), "security.capability").unwrap();
    let both =
        ["/usr/bin/envoy", "/usr/bin/envoy-again"].map(|path| (path.to_owned(), "attributes".to_owned()));
    assert_eq!(bench.verify(&digest), (1, both.to_vec()));
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("usr/bin/envoy"), "security.capability", &CAPABILITY, flags).unwrap();

    fs::write(at("usr/lib/y.so"), "z").unwrap();
    fs::remove_file(at("run")).unwrap();
    symlink("/usr/bin/evil", at("run")).unwrap();
    fs::remove_file(at("d/2")).unwrap();
    let expected = [("/d/2", "missing"), ("/run", "target"), ("/usr/lib/y.so", "content")];
    assert_eq!(bench.verify(&digest), (1, expected.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec()));
}

/// A mesh that no profile of ours knows.
const PROFILE: &str = "apiVersion: meshseal/v1
profile: ours
mesh: ours
about: a mesh of our own
readFrom: nowhere
status: read
containers: [ours]
executables:
  - { path: /usr/lib/x.so, about: a part of it }
files:
  - { path: \"{ConfigMap}/ours\", about: its configuration, class: sealed, role: proxy-config }
";

#[test]
fn profiles_of_ones_own_say_what_an_image_has_of_a_mesh() {
    let bench = Bench::new();
    image().layout(&bench.path("layout"));
    fs::write(bench.path("ours.yaml"), PROFILE).unwrap();
    let seal = |more: &[&str]| {
        let (status, _, stderr) =
            bench.run(&[&["seal", "--images", "layout", "-o", "s.json"], more].concat());
        assert_eq!(status, 0, "{stderr}");
        let statement: Value = serde_json::from_slice(&fs::read(bench.path("s.json")).unwrap()).unwrap();
        let objects = statement["predicate"]["objects"].as_array().unwrap().clone();
        objects.iter().map(|object| object["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(seal(&[]), ["/usr/bin/envoy"]);
    // A file of that name is it wherever it lies.
    let all = ["/o/x.so", "/usr/bin/envoy", "/usr/lib/x.so"];
    assert_eq!(seal(&["--profiles", "ours.yaml"]), all);
}

#[test]
fn profiles_of_ones_own_say_which_volumes_are_of_a_mesh() {
    let bench = Bench::new();
    fs::write(bench.path("ours.yaml"), PROFILE).unwrap();
    let pod = "kind: ConfigMap\nmetadata: {name: settings}\ndata: {k: v}\n---\nkind: Pod\nmetadata: {name: p}\n\
               spec: {volumes: [{name: ours, configMap: {name: settings}}], \
               containers: [{name: c, image: i, volumeMounts: [{name: ours, mountPath: /m}]}]}\n";
    fs::write(bench.path("m.yaml"), pod).unwrap();
    let told = |more: &[&str]| {
        let (status, _, stderr) =
            bench.run(&[&["seal", "--manifests", "m.yaml", "-o", "s.json"], more].concat());
        assert_eq!(status, 0, "{stderr}");
        stderr.lines().filter(|line| line.contains("mesh and")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told(&[]), [""; 0]);
    let note = "meshseal: note: ConfigMap default/settings belongs to a mesh and is not `immutable: true`";
    assert_eq!(told(&["--profiles", "ours.yaml"]), [note]);
}

#[test]
fn a_running_agent_judges_every_container_of_an_image() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: only root can make files with capabilities");
        return;
    }
    let bench = Bench::new();
    image().layout(&bench.path("layout"));
    fs::write(bench.path("secret"), [7; 32]).unwrap();
    bench.seal("layout", &["/**"]);
    let tasks = "node/run/containerd/io.containerd.runtime.v2.task/k8s.io";
    let container = |id: &str| {
        let bundle = bench.path(tasks).join(id);
        rootfs(&bundle.join("rootfs"));
        let config = json!({"root": {"path": "rootfs"}, "annotations": {
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "istio-proxy",
            "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": id,
            "io.kubernetes.cri.sandbox-uid": "u", "io.kubernetes.cri.image-name": "docker.io/istio/proxyv2:1"}});
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    };
    let first = container("first");
    let mut agent = Agent::start(bench.dir.path());
    agent.verified(12);
    assert_eq!(agent.status()["posture"], "intact");
    let second = container("second");
    agent.verified(12);
    fs::write(second.join("rootfs/usr/lib/y.so"), "z").unwrap();
    let opened = agent.violation("content", "/second/rootfs/usr/lib/y.so");
    let target = &opened["target"];
    let told = ["namespace", "pod", "pod_uid", "container", "image"].map(|key| target[key].as_str().unwrap());
    assert_eq!(told, ["shop", "second", "u", "istio-proxy", "docker.io/istio/proxyv2:1"]);

    // A container ends: first its root is gone, then what it lives by. What was violated in it ends with it.
    fs::remove_dir_all(second.join("rootfs")).unwrap();
    fs::remove_dir_all(&second).unwrap();
    agent.wait("resolution", |record| {
        record["kind"] == "violation.resolved" && record["resolution"] == "redeployed"
    });
    // Its root alone is no end.
    fs::remove_dir_all(first.join("rootfs/usr")).unwrap();
    agent.violation("removed", "/first/rootfs/usr/bin/envoy");
    let of_second = |record: &&Value| {
        let path = record["object"]["path"].as_str().unwrap_or_default();
        record["kind"] == "violation.opened" && path.contains("/second/")
    };
    assert_eq!(agent.seen.iter().filter(of_second).count(), 1, "{:#?}", agent.seen);
}

#[test]
fn archives_say_the_same_as_the_layout() {
    let bench = Bench::new();
    let digest = image().layout(&bench.path("layout"));
    let of = |objects: &[Value]| {
        let strip = |object: &Value| {
            let mut object = object.clone();
            object["image"] = Value::Null;
            object
        };
        objects.iter().map(strip).collect::<Vec<_>>()
    };
    let directory = bench.seal("layout", &["/**"]);

    let tar = Command::new("tar")
        .args(["-cf", "layout.tar", "-C", "layout", "."])
        .current_dir(bench.dir.path())
        .status();
    assert!(tar.unwrap().success());
    let archive = bench.seal("layout.tar", &["/**"]);
    assert_eq!(archive, directory);

    fs::write(bench.path("saved.tar"), image().saved()).unwrap();
    let saved = bench.seal("saved.tar", &["/**"]);
    assert_eq!(of(&saved), of(&directory));
    assert_eq!(saved[0]["image"]["names"], json!(["istio/proxyv2:1"]));
    assert_ne!(saved[0]["image"]["digest"], *digest, "docker knows an image by its configuration");

    // Without patterns: what it runs, and what meshes call their executables. A link brings what it leads to.
    assert_eq!(paths(&bench.seal("layout", &[])), ["/usr/bin/envoy"]);
    assert_eq!(paths(&bench.seal("layout", &["/lib"])), ["/lib"]);
    assert_eq!(paths(&bench.seal("layout", &["/run"])), ["/run", "/usr/bin/envoy"]);
    // The same image from two places is one, by all its names.
    let (status, _, stderr) = bench.run(&[
        "seal",
        "--images",
        "layout",
        "layout.tar",
        "--image-name",
        "r.example/p:2",
        "-o",
        "s.json",
    ]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let statement: Value = serde_json::from_slice(&fs::read(bench.path("s.json")).unwrap()).unwrap();
    let objects = statement["predicate"]["objects"].as_array().unwrap();
    assert_eq!((objects.len(), objects[0]["image"]["digest"].as_str()), (1, Some(digest.as_str())));
    let names = objects[0]["image"]["names"].as_array().unwrap();
    assert!(names.contains(&json!("docker.io/istio/proxyv2:1")) && names.contains(&json!("r.example/p:2")));
    let two = bench.run(&["seal", "--images", "layout", "saved.tar", "--image-name", "a:1", "-o", "s.json"]);
    assert_eq!((two.0, two.2.as_str()), (2, "meshseal: bad image: a:1: one image to be named so, not 2\n"));
    let (status, _, stderr) =
        bench.run(&["seal", "--images", "layout", "--glob", "/nowhere/*", "-o", "s.json"]);
    assert_eq!(
        (status, stderr.as_str()),
        (
            0,
            "meshseal: not sealed: image docker.io/istio/proxyv2:1: /nowhere/*: no file of the image is so called\n"
        )
    );
    let refused = bench.run(&["seal", "--images", "layout", "--platform", "linux/s390x", "-o", "s.json"]);
    assert_eq!(
        (refused.0, refused.2.as_str()),
        (2, "meshseal: bad image: layout: an image for linux/s390x\n")
    );
}

/// Signatures, bills of materials and attestations lie beside images in a layout; they are none.
#[test]
fn what_lies_beside_an_image_is_passed_over() {
    let bench = Bench::new();
    image().layout(&bench.path("layout"));
    let alone = bench.seal("layout", &["/**"]);
    let put = |bytes: &[u8], kind: &str| {
        fs::write(bench.path("layout/blobs/sha256").join(sha256(bytes)), bytes).unwrap();
        json!({"digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len(), "mediaType": kind})
    };
    let manifest = |config: &[u8], kind: &str| {
        let layer = put(b"{\"signed\": true}", "application/vnd.in-toto+json");
        let manifest = json!({"schemaVersion": 2, "config": put(config, kind), "layers": [layer]});
        put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json")
    };
    let empty = manifest(b"{}", "application/vnd.oci.empty.v1+json");
    let chart = manifest(b"name: chart\n", "application/vnd.cncf.helm.config.v1+json");
    let mut attestation = manifest(
        br#"{"os": "unknown", "architecture": "unknown", "rootfs": {"type": "layers", "diff_ids": ["sha256:0"]}}"#,
        "application/vnd.oci.image.config.v1+json",
    );
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = put(
        json!({"schemaVersion": 2, "manifests": [empty.clone(), attestation]}).to_string().as_bytes(),
        "x",
    );
    let index = bench.path("layout/index.json");
    let whole: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let with = |more: Vec<Value>| {
        let mut all = whole.clone();
        all["manifests"].as_array_mut().unwrap().extend(more);
        fs::write(&index, all.to_string()).unwrap();
    };
    with(vec![empty.clone(), chart, inner]);
    assert_eq!(bench.seal("layout", &["/**"]), alone);
    // An image whose configuration cannot be read is no such thing.
    with(vec![manifest(b"{}", "application/vnd.oci.image.config.v1+json")]);
    let said = bench.refused("a configuration without layers", "layout");
    assert!(said.contains("missing field `rootfs`"), "{said}");
    fs::write(&index, json!({"schemaVersion": 2, "manifests": [empty]}).to_string()).unwrap();
    assert!(bench.refused("no image", "layout").contains("an image for linux/amd64"));
}
