//! What profiles say of places, what of a file is refused, and that ours are all there.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::{BUILT_IN, Layout, Nowhere, OnDisk, Place, Profiles, Rate, Status, Surroundings, parse};
use crate::attribution::attack::Role;
use crate::baseline::Publish;
use crate::model::{Class, HostPath, Severity, ViolationKind};

const POD: &str = "/var/lib/kubelet/pods/u-1/volumes";

/// A pod with these containers, whose CSI volumes are all of one driver.
struct Pod(&'static [&'static str], &'static str);

impl Surroundings for Pod {
    fn has_container(&self, _: &str, container: &str) -> bool {
        self.0.contains(&container)
    }

    fn csi_driver(&self, _: &str, _: &str) -> Option<String> {
        Some(self.1.to_owned())
    }
}

/// Profile, class, role and writers of a path.
fn said(path: &str, around: &dyn Surroundings) -> Option<(String, Class, Role, String)> {
    let found = Profiles::built_in().rule_of(&HostPath::from(path), &Layout::default(), around)?;
    let rule = found.rule;
    Some((found.profile.name.clone(), rule.class, rule.role, rule.writers.join(",")))
}

#[test]
fn every_profile_of_ours_is_read_and_named_as_its_file() {
    for (name, text) in BUILT_IN {
        let profile = parse("built-in", text).unwrap();
        assert_eq!(profile.name, *name);
    }
    let names: Vec<&str> = Profiles::built_in().iter().map(|profile| profile.name.as_str()).collect();
    assert_eq!(names.len(), BUILT_IN.len());
    let mut files: Vec<String> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let mut built_in: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    built_in.sort_unstable();
    assert_eq!(files, built_in, "each file is built in");
}

#[test]
fn the_rule_that_names_most_counts() {
    let expect = |path: &str, profile: &str, class, role, writers: &str| {
        let expected = (profile.to_owned(), class, role, writers.to_owned());
        assert_eq!(said(path, &Nowhere), Some(expected), "{path}");
    };
    let volume = |rest: &str| format!("{POD}/{rest}");
    let (sealed, rotated, generated) = (Class::Sealed, Class::Rotated, Class::Generated);
    let of = |rest: &str, profile: &str, class, role, writers: &str| {
        expect(&volume(rest), profile, class, role, writers);
    };
    for rest in
        ["istiod-ca-cert", "istiod-ca-cert/..2026_01/root-cert.pem", "istiod-ca-cert/..data/root-cert.pem"]
    {
        let rest = format!("kubernetes.io~configmap/{rest}");
        of(&rest, "istio-proxy", sealed, Role::TrustRoot, "kubelet");
    }
    of("kubernetes.io~empty-dir/istio-envoy", "istio-proxy", generated, Role::ProxyConfig, "pilot-agent");
    of("kubernetes.io~empty-dir/istio-envoy/XDS", "istio-proxy", Class::Opaque, Role::Socket, "pilot-agent");
    of(
        "kubernetes.io~empty-dir/istio-data/ab/cd.wasm",
        "istio-proxy",
        generated,
        Role::ProxyModule,
        "pilot-agent",
    );
    of("kubernetes.io~empty-dir/istio-data/key.pem", "istio-proxy", rotated, Role::Credential, "pilot-agent");
    of("kubernetes.io~secret/cacerts/..2026/root-cert.pem", "istiod", sealed, Role::TrustRoot, "kubelet");
    of("kubernetes.io~secret/cacerts/..2026/ca-key.pem", "istiod", sealed, Role::Credential, "kubelet");
    of("kubernetes.io~projected/linkerd-identity-token", "linkerd-proxy", rotated, Role::Token, "kubelet");
    of(
        "kubernetes.io~empty-dir/linkerd-proxy-init-xtables-lock",
        "linkerd-proxy",
        generated,
        Role::Other,
        "",
    );
    expect("/etc/cni/net.d/10-x.conflist", "cni", sealed, Role::CniConfig, "");
    expect(
        "/etc/cni/net.d/ZZZ-linkerd-cni-kubeconfig",
        "linkerd-cni",
        rotated,
        Role::Credential,
        "linkerd-cni",
    );
    expect("/opt/cni/bin/istio-cni", "istio-cni", sealed, Role::CniBinary, "istio-cni");
    expect("/run/ztunnel/ztunnel.sock", "istio-ztunnel", Class::Opaque, Role::Socket, "");
    for path in ["/run/ztunnel/other.sock", "/etc/cni/net.d", "/opt/cni/bin2/istio-cni"] {
        assert_eq!(said(path, &Nowhere), None, "{path}");
    }
    // Another kind of volume of that name is not the mesh's.
    assert_eq!(said(&volume("kubernetes.io~secret/istio-envoy"), &Nowhere), None);
}

#[test]
fn names_that_others_use_too_count_with_the_container_only() {
    let path = format!("{POD}/kubernetes.io~configmap/trust-roots/..2026/ca-bundle.crt");
    assert_eq!(said(&path, &Nowhere), None);
    assert_eq!(said(&path, &Pod(&["app"], "")), None);
    let found = said(&path, &Pod(&["identity"], "")).unwrap();
    assert_eq!((found.0.as_str(), found.2), ("linkerd-control-plane", Role::TrustRoot));
}

#[test]
fn csi_volumes_are_told_by_their_driver() {
    let path = format!("{POD}/kubernetes.io~csi/tls/mount/..2026/ca.crt");
    assert_eq!(said(&path, &Pod(&[], "csi.example.org")), None);
    let found = said(&path, &Pod(&[], "csi.cert-manager.io")).unwrap();
    assert_eq!((found.0.as_str(), found.1, found.2), ("cert-manager-csi", Class::Sealed, Role::TrustRoot));
}

#[test]
fn what_the_kubelet_leaves_on_disk_tells_containers_and_drivers() {
    let root = tempfile::tempdir().unwrap();
    let pod = root.path().join("var/lib/kubelet/pods/u-1");
    fs::create_dir_all(pod.join("containers/identity")).unwrap();
    fs::create_dir_all(pod.join("volumes/kubernetes.io~csi/tls")).unwrap();
    let note = pod.join("volumes/kubernetes.io~csi/tls/vol_data.json");
    fs::write(&note, r#"{"driverName": "csi.spiffe.io", "attachmentID": "x"}"#).unwrap();
    let around = OnDisk { host_root: root.path(), kubelet_root: &HostPath::from("/var/lib/kubelet") };
    assert!(around.has_container("u-1", "identity"));
    assert!(!around.has_container("u-1", "app") && !around.has_container("u-2", "identity"));
    assert_eq!(around.csi_driver("u-1", "tls").as_deref(), Some("csi.spiffe.io"));
    fs::write(&note, "{").unwrap();
    assert_eq!(around.csi_driver("u-1", "tls"), None);
}

#[test]
fn volumes_that_meshes_inject_are_told_by_name() {
    let of = |volume: &str| Profiles::built_in().mesh_of_volume(volume);
    assert_eq!(of("istio-envoy"), Some("istio"));
    assert_eq!(of("linkerd-anything"), Some("linkerd"));
    assert_eq!(of("consul-connect-inject-data"), Some("consul"));
    // Anybody's names: of the control plane, and of what is told by its driver.
    for volume in ["trust-roots", "tls", "all", "kube-api-access-x"] {
        assert_eq!(of(volume), None, "{volume}");
    }
    assert!(
        Profiles::built_in().is_image("docker.io/istio/proxyv2:1") && !Profiles::built_in().is_image("app:1")
    );
}

#[test]
fn executables_are_told_by_path_and_then_by_name() {
    let profiles = Profiles::built_in();
    let of = |path: &str| profiles.executable(path.as_bytes()).map(|(profile, _)| profile.name.as_str());
    assert_eq!(of("/usr/local/bin/install-cni"), Some("istio-cni"));
    assert_eq!(of("/install-cni"), Some("kuma-cni"));
    assert_eq!(of("/opt/envoy"), Some("istio-proxy"));
    assert_eq!(of("/usr/bin/kuma-dp"), Some("kuma-sidecar"));
    assert_eq!(of("/controller"), None);
    assert_eq!((of("/ko-app/cmd"), of("/usr/bin/cmd")), (Some("cert-manager-csi"), None));
    assert_eq!(of("/usr/bin/envoyx"), None);
}

const MINE: &str = "apiVersion: meshseal/v1\nprofile: mine\nmesh: mine\nabout: x\nreadFrom: y 1\nstatus: read\n\
                    containers: [proxy]\nexecutables:\n  - { path: /agent, about: a }\nwriters:\n  \
                    - { name: agent, exe: /agent, containers: [proxy] }\n";

#[test]
fn a_profile_is_read_whole() {
    let text = format!(
        "{MINE}files:\n  - path: \"{{EmptyDir|CSI}}/mine-*\"\n    about: b\n    class: generated\n    role: proxy-config\n    \
         writers: [kubelet, agent]\n    rate: 90s\n    publish: redeploy\n    compare: json\n    severity: {{ content: low, self: critical }}\n"
    );
    let profile = parse("/p.yaml", &text).unwrap();
    assert_eq!((profile.status, profile.origin.as_str()), (Status::Read, "/p.yaml"));
    let rule = &profile.files[0];
    assert_eq!(rule.path.to_string(), "{EmptyDir|CSI}/mine-*");
    assert_eq!(
        (rule.class, rule.role, rule.publish),
        (Class::Generated, Role::ProxyConfig, Publish::Redeploy)
    );
    assert_eq!(rule.rate, Rate::Every(std::time::Duration::from_secs(90)));
    assert_eq!(rule.rate.to_string(), "90s");
    let severity = [(ViolationKind::Content, Severity::Low), (ViolationKind::Itself, Severity::Critical)];
    assert_eq!(rule.severity.clone().into_iter().collect::<Vec<_>>(), severity);
    let json = serde_json::to_value(&profile).unwrap();
    assert_eq!(json["files"][0]["severity"]["content"], "low");
    assert_eq!(json["readFrom"], "y 1");
}

#[test]
fn refusals_name_file_line_and_key() {
    let refused = |text: &str| match parse("/p.yaml", text) {
        Ok(profile) => format!("accepted: {profile:?}"),
        Err(error) => error.to_string(),
    };
    let mine = |text: &str| refused(&format!("{MINE}{text}"));
    let file = |rest: &str| {
        mine(&format!("files:\n  - {{ path: /a, about: b, class: sealed, role: other{rest} }}\n"))
    };
    assert_eq!(refused(""), "profile: /p.yaml: is empty, expected 'apiVersion: meshseal/v1' at least");
    assert_eq!(
        refused("apiVersion: meshseal/v1\n"),
        "profile: /p.yaml:1: 'the document': missing key 'profile', expected it to be set"
            .replace("'the document'", "the document")
    );
    assert_eq!(
        refused(&MINE.replace("meshseal/v1", "meshseal/v9")),
        "profile: /p.yaml:1: apiVersion: 'meshseal/v9' is not supported, expected meshseal/v1"
    );
    assert_eq!(
        refused(&MINE.replace("profile: mine", "profile: Mine!")),
        "profile: /p.yaml:2: profile: 'Mine!' is no name, expected 1 to 63 of a to z, 0 to 9 and -"
    );
    assert_eq!(
        refused(&MINE.replace("status: read", "status: guessed")),
        "profile: /p.yaml:6: status: 'guessed' is no valid value, expected one of run, read"
    );
    assert_eq!(
        refused(&MINE.replace("exe: /agent", "exe: /other")),
        "profile: /p.yaml:11: writers[0].exe: '/other' is not in executables"
    );
    assert_eq!(
        refused(&MINE.replace("name: agent", "name: kubelet")),
        "profile: /p.yaml:11: writers[0].name: 'kubelet' is taken, expected another name than kubelet, runtime and those before"
    );
    assert_eq!(
        refused(&MINE.replace("containers: [proxy] }", "containers: [other] }")),
        "profile: /p.yaml:11: writers[0].containers: 'other' is not in the profile's containers"
    );
    assert_eq!(
        mine("onlyWithContainer: sometimes\n"),
        "profile: /p.yaml:12: wrong type at 'onlyWithContainer', expected boolean"
    );
    assert_eq!(
        file(", writers: [pilot]"),
        "profile: /p.yaml:13: files[0].writers[0]: 'pilot' is no writer, expected kubelet, runtime or one of writers"
    );
    assert_eq!(
        file(", rate: sometimes"),
        "profile: /p.yaml:13: files[0].rate: 'sometimes' is no rate, expected never, at-start, on-change or a duration such as 48m"
    );
    assert_eq!(
        file(", severity: { content: bad }"),
        "profile: /p.yaml:13: files[0].severity.content: 'bad' is no severity, expected one of info, low, medium, high, critical"
    );
    assert_eq!(
        file(", severity: { nonsense: low }"),
        "profile: /p.yaml:13: files[0].severity.nonsense: is no kind of violation, expected one such as content or identity"
    );
    assert_eq!(
        mine("files:\n  - { path: \"{Nonsense}/a\", about: b, class: sealed, role: other }\n")
            .split(", expected")
            .next(),
        Some("profile: /p.yaml:13: files[0].path: '{Nonsense}/a' is no place")
    );
    for path in ["a", "/a/../b", "{EmptyDir}", "{EmptyDir/a", "{CSI }/a", "/", "/a//b", "{cni.conf}"] {
        let text =
            mine(&format!("files:\n  - {{ path: \"{path}\", about: b, class: sealed, role: other }}\n"));
        assert!(text.contains("is no place"), "{path}: {text}");
    }
    assert_eq!(
        mine("files:\n  - { path: \"{EmptyDir}/a/b\", about: b, class: sealed, role: other }\n"),
        "profile: /p.yaml:13: files[0].path: lies in a volume without an entry of its own, expected one with the same placeholder"
    );
    let many = "  - { path: /a, about: b }\n".repeat(257);
    let many = MINE.replace("executables:\n", &format!("executables:\n{many}"));
    assert_eq!(refused(&many), "profile: /p.yaml:2: executables: has 258 entries, expected at most 256");
}

#[test]
fn a_file_takes_the_place_of_ours_and_two_of_a_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.yaml"), dir.path().join("two.yaml"));
    let istiod = format!(
        "{}files:\n  - {{ path: \"{{Secret}}/cacerts\", about: b, class: opaque, role: other }}\n",
        MINE.replace("profile: mine", "profile: istiod")
    );
    fs::write(&one, &istiod).unwrap();
    fs::write(&two, &istiod).unwrap();
    let profiles = Profiles::with(std::slice::from_ref(&one)).unwrap();
    assert_eq!(profiles.iter().count(), BUILT_IN.len());
    let path = HostPath::from(format!("{POD}/kubernetes.io~secret/cacerts").as_str());
    let found = profiles.rule_of(&path, &Layout::default(), &Nowhere).unwrap();
    assert_eq!((found.profile.mesh.as_str(), found.rule.class), ("mine", Class::Opaque));
    let both = Profiles::with(&[one.clone(), two.clone()]).unwrap_err().to_string();
    let expected = format!("'istiod' is also in {}, expected it once", one.display());
    assert_eq!(both, format!("profile: {}: profile: {expected}", two.display()));
    assert!(Arc::ptr_eq(Profiles::built_in(), Profiles::built_in()));
}

#[test]
fn places_are_logical() {
    let place = |path: &str| Place::of(&HostPath::from(path), &Layout::default());
    let parts = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
    let volume = |kind, names: &[&str]| Place::Volume { pod_uid: "u-1".into(), kind, parts: parts(names) };
    for (path, expected) in [
        ("kubernetes.io~configmap/v", volume("ConfigMap", &["v"])),
        ("kubernetes.io~configmap/v/..data", volume("ConfigMap", &["v"])),
        ("kubernetes.io~configmap/v/..2026/a/b", volume("ConfigMap", &["v", "a", "b"])),
        ("kubernetes.io~csi/v/mount/..2026/a", volume("CSI", &["v", "a"])),
        ("kubernetes.io~csi/v/vol_data.json", volume("CSI", &["v", "vol_data.json"])),
    ] {
        assert_eq!(place(&format!("{POD}/{path}")), Some(expected), "{path}");
    }
    assert_eq!(place(&format!("{POD}/example.org~x/v")), None);
    assert_eq!(place("/etc/cni/net.d/a"), Some(Place::CniConf(parts(&["a"]))));
    assert_eq!(place("/a/b"), Some(Place::Host(parts(&["a", "b"]))));
}

/// Found by the fuzzer.
#[test]
fn a_key_with_a_line_end_makes_no_second_line() {
    let error = parse("p.yaml", "apiVersion: meshseal/v1\n\"a\\nb\": 1\n").unwrap_err().to_string();
    assert!(error.starts_with(r"profile: p.yaml:2: unknown key 'a\x0ab', expected one of "), "{error}");
    assert!(!error.contains('\n'), "{error}");
}
