//! What is accepted and what is refused, with each refusal's full text.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{
    Baselines, Compression, Config, Endpoint, Enforce, Journal, Kubernetes, LogLevel, Mode, OnAgentLoss,
    Protocol, RungChoice, Scrub, Sensor, Tls, load, load_file, parse,
};
use crate::profile::Profiles;

/// The end of a refusal of a top-level key.
const ALL: &str = "expected one of apiVersion, mode, stateDir, socket, hostRoot, node, baselines, profiles, journal, scrub, enforce, export, api, sensor, kubernetes, log";

fn refused(text: &str) -> String {
    match parse(Path::new("/c.yaml"), text) {
        Ok(config) => format!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

fn v1(text: &str) -> String {
    refused(&format!("apiVersion: meshseal/v1\n{text}"))
}

#[test]
fn a_value_that_is_repeated_stays_on_one_line() {
    let expected = "config: /c.yaml:2: scrub.interval: '2(\\x0a' is no duration, expected a whole number with ms, s, m, h or d, such as 24h";
    assert_eq!(v1("scrub: {interval: \"2(\\n\"}\n"), expected);
}

#[test]
fn everything_but_the_version_has_a_default() {
    let found = parse(Path::new("/c.yaml"), "apiVersion: meshseal/v1\nnode: worker-1\n").unwrap();
    let expected = Config {
        file: Some("/c.yaml".into()),
        candidates: vec!["/c.yaml".into()],
        mode: Mode::Observe,
        state_dir: "/var/lib/meshseal".into(),
        socket: "/run/meshseal/agent.sock".into(),
        host_root: "/".into(),
        node: "worker-1".to_owned(),
        baselines: Baselines {
            files: vec!["/etc/meshseal/baseline.dsse.json".into()],
            trusted_keys: vec!["/etc/meshseal/keys/release.pub".into()],
            require_signatures: 1,
            secret_key: None,
            trust_on_first_use: false,
            await_approval: Duration::ZERO,
            await_installer: Duration::from_secs(60),
        },
        profile_files: Vec::new(),
        profiles: Arc::clone(Profiles::built_in()),
        journal: Journal { max_bytes: 1_073_741_824 },
        scrub: Scrub { interval: Duration::from_secs(86_400), io_budget: 10_485_760 },
        enforce: Enforce { on_agent_loss: OnAgentLoss::Release, lease: Duration::from_secs(60) },
        export: Vec::new(),
        sensor: Sensor {
            rung: RungChoice::Auto,
            ring_bytes: 8 << 20,
            max_slots: 65_536,
            canary_interval: Duration::from_secs(60),
        },
        kubernetes: Kubernetes { api: true, kubeconfig: None },
        log: LogLevel::Info,
    };
    assert_eq!(found, expected);
}

#[test]
fn the_kubernetes_api_is_asked_unless_it_is_not_wanted() {
    let of = |text: &str| parse(Path::new("/c.yaml"), &format!("apiVersion: meshseal/v1\nnode: n\n{text}\n"));
    let found = |text: &str| of(text).unwrap().kubernetes;
    assert_eq!(found("kubernetes: {api: off}"), Kubernetes { api: false, kubeconfig: None });
    let with = Kubernetes { api: true, kubeconfig: Some("/k".into()) };
    assert_eq!(found("kubernetes: {api: auto, kubeconfig: /k}"), with);
    for (text, message) in [
        ("kubernetes: {api: on}", "kubernetes.api: 'on' is no valid value, expected one of auto, off"),
        (
            "kubernetes: {kubeconfig: k}",
            "kubernetes.kubeconfig: 'k' is no valid path, expected an absolute path",
        ),
    ] {
        let refused = of(text).unwrap_err();
        assert_eq!((refused.line, refused.message.as_str()), (Some(3), message));
    }
}

#[test]
fn the_contracts_example_is_accepted() {
    let text = r#"
apiVersion: meshseal/v1
mode: observe                 # observe | enforce
stateDir: /var/lib/meshseal   # the journal is <stateDir>/journal
socket: /run/meshseal/agent.sock
hostRoot: /                   # where the node's root is mounted
node: n
baselines:
  files: [/etc/meshseal/baseline.dsse.json]
  trustedKeys: [/etc/meshseal/keys/release.pub]
  requireSignatures: 1
profiles: []                  # extra or overriding profile files
journal: { maxBytes: 1073741824 }
scrub: { interval: 24h, ioBudget: 10MiB/s }
enforce: { onAgentLoss: release, lease: 60s }
export:
  otlp:                       # a list; absent: journal only. OTEL_EXPORTER_OTLP_* are honoured
    - { endpoint: "http://127.0.0.1:4317", protocol: grpc }
api: {}                       # TLS port, off by default
"#;
    let found = parse(Path::new("/c.yaml"), text).unwrap();
    let default = parse(Path::new("/c.yaml"), "apiVersion: meshseal/v1\nnode: n\n").unwrap();
    let endpoint = Endpoint {
        endpoint: "http://127.0.0.1:4317".to_owned(),
        protocol: Protocol::Grpc,
        headers: [].into(),
        tls: Tls::default(),
        compression: Compression::None,
        timeout: Duration::from_secs(10),
    };
    assert_eq!(found, Config { export: vec![endpoint], ..default });
}

#[test]
fn what_may_be_empty_is_accepted_empty() {
    let text = "apiVersion: meshseal/v1\nnode: n\nbaselines: {files: [], trustedKeys: [], secretKey: /k}\nexport: {otlp: []}\n";
    let found = parse(Path::new("/c.yaml"), text).unwrap();
    let baselines = Baselines {
        files: Vec::new(),
        trusted_keys: Vec::new(),
        require_signatures: 1,
        secret_key: Some(PathBuf::from("/k")),
        trust_on_first_use: false,
        await_approval: Duration::ZERO,
        await_installer: Duration::from_secs(60),
    };
    assert_eq!((found.baselines, found.export), (baselines, Vec::new()));
}

#[test]
fn endpoints_are_read_whole() {
    let text = "apiVersion: meshseal/v1\nnode: n\nexport:\n  otlp:\n    - endpoint: https://c:4318/v1/logs\n      \
                protocol: http/protobuf\n      headers: {authorization: secret}\n      tls: {ca: /ca, cert: /c, key: /k}\n      \
                compression: gzip\n      timeout: 3s\n";
    let found = parse(Path::new("/c.yaml"), text).unwrap();
    let expected = Endpoint {
        endpoint: "https://c:4318/v1/logs".to_owned(),
        protocol: Protocol::HttpProtobuf,
        headers: [("authorization".to_owned(), "secret".to_owned())].into(),
        tls: Tls { ca: Some("/ca".into()), cert: Some("/c".into()), key: Some("/k".into()) },
        compression: Compression::Gzip,
        timeout: Duration::from_secs(3),
    };
    assert!(!format!("{found:?}").contains("secret\""));
    assert_eq!(found.export, [expected]);
}

#[test]
fn keys_and_shape() {
    assert_eq!(refused(""), "config: /c.yaml: is empty, expected 'apiVersion: meshseal/v1' at least");
    assert_eq!(
        refused("# only a comment\n"),
        "config: /c.yaml: is empty, expected 'apiVersion: meshseal/v1' at least"
    );
    assert_eq!(refused("mode: observe\n"), "config: /c.yaml: missing key 'apiVersion', expected meshseal/v1");
    assert_eq!(
        refused("apiVersion: meshseal/v2\n"),
        "config: /c.yaml:1: apiVersion: 'meshseal/v2' is not supported, expected meshseal/v1"
    );
    assert_eq!(refused("apiVersion: [1]\n"), "config: /c.yaml:1: wrong type at 'apiVersion', expected text");
    assert_eq!(v1("fooo: 1\n"), format!("config: /c.yaml:2: unknown key 'fooo', {ALL}"));
    assert_eq!(
        v1("baselines:\n  foo: 1\n"),
        "config: /c.yaml:3: unknown key 'foo' in baselines, expected one of files, trustedKeys, requireSignatures, secretKey, trustOnFirstUse, awaitApproval, awaitInstaller"
    );
    assert_eq!(
        v1("baselines: {awaitApproval: 11m}\n"),
        "config: /c.yaml:2: baselines.awaitApproval: '11m' is too long, expected at most 10m"
    );
    assert_eq!(
        v1("baselines: {awaitInstaller: 601s}\n"),
        "config: /c.yaml:2: baselines.awaitInstaller: '601s' is too long, expected at most 10m"
    );
    assert_eq!(v1("api: {port: 1}\n"), "config: /c.yaml:2: unknown key 'port' in api, expected no keys");
    assert_eq!(
        v1("export:\n  otlp:\n    - endpoint: http://c:1\n      foo: 1\n"),
        "config: /c.yaml:5: unknown key 'foo' in export.otlp[0], expected one of endpoint, protocol, headers, tls, compression, timeout"
    );
    assert_eq!(
        v1("export:\n  otlp:\n    - protocol: grpc\n"),
        "config: /c.yaml:4: 'export.otlp[0]': missing key 'endpoint', expected it to be set"
    );
    assert_eq!(
        v1("mode: observe\nmode: observe\n"),
        "config: /c.yaml:3: key 'mode' is given twice, expected it once"
    );
    assert_eq!(v1("baselines: 5\n"), "config: /c.yaml:2: wrong type at 'baselines', expected a mapping");
    assert_eq!(v1("baselines: [a]\n"), "config: /c.yaml:2: wrong type at 'baselines', expected a mapping");
    assert_eq!(
        v1("baselines:\n  files: /a\n"),
        "config: /c.yaml:3: wrong type at 'baselines.files', expected a list"
    );
    assert_eq!(
        v1("baselines:\n  requireSignatures: two\n"),
        "config: /c.yaml:3: wrong type at 'baselines.requireSignatures', expected a whole number"
    );
    assert_eq!(
        v1("baselines:\n  requireSignatures: -1\n"),
        "config: /c.yaml:3: wrong type at 'baselines.requireSignatures', expected a whole number"
    );
    assert_eq!(v1("stateDir: {a: b}\n"), "config: /c.yaml:2: wrong type at 'stateDir', expected text");
    assert_eq!(refused("- a\n- b\n"), "config: /c.yaml:1: wrong type at the document, expected a mapping");
    assert_eq!(refused("just text\n"), "config: /c.yaml:1: wrong type at the document, expected a mapping");
    assert_eq!(v1("socket: [\n"), "config: /c.yaml:2: wrong type at 'socket', expected text");
    assert_eq!(v1("socket: 'a\n"), "config: /c.yaml:2: not valid YAML: unclosed quote at line 2, column 9");
    assert_eq!(
        v1("\tsocket: a\n"),
        "config: /c.yaml:1: not valid YAML: while scanning a plain scalar, found a tab at line 1, column 13"
    );
    assert_eq!(v1("---\na: b\n"), "config: /c.yaml:3: more than one YAML document, expected one");
    assert_eq!(
        refused("\u{1}\u{2}\u{3}"),
        "config: /c.yaml:1: not valid YAML: unexpected character: `\\u{1}' at line 1, column 1"
    );
    assert_eq!(refused("a\0b"), "config: /c.yaml: is not text, expected YAML in UTF-8");
}

#[test]
fn bombs() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    assert_eq!(v1(bomb), format!("config: /c.yaml:2: unknown key 'a', {ALL}"));
    assert_eq!(
        v1("baselines:\n  files: &a [*a]\n"),
        "config: /c.yaml:3: an alias within its own anchor, expected a plain config file"
    );
    assert_eq!(
        v1(&format!("baselines:\n  files: [&a /x{}]\n", ", *a".repeat(101))),
        "config: /c.yaml:3: too deep, or too many nodes or aliases, expected a plain config file"
    );
    let bomb = bomb.replace("a: &a [x", "baselines:\n  files: &a [/x");
    assert_eq!(v1(&bomb), format!("config: /c.yaml:4: unknown key 'b', {ALL}"));
    assert_eq!(
        v1(&format!("baselines: {{files: {}{}}}\n", "[".repeat(5_000), "]".repeat(5_000))),
        "config: /c.yaml:2: too deep, or too many nodes or aliases, expected a plain config file"
    );
    assert_eq!(
        v1(&format!("profiles: {}{}\n", "[".repeat(100), "]".repeat(100))),
        "config: /c.yaml:2: too deep, or too many nodes or aliases, expected a plain config file"
    );
    let nested: String = (0..200).map(|at| format!("{}a:\n", " ".repeat(at))).collect();
    assert_eq!(v1(&nested), format!("config: /c.yaml:2: unknown key 'a', {ALL}"));
    assert_eq!(
        v1(&format!("baselines:\n  files: [{}]\n", "/a,".repeat(30_000))),
        "config: /c.yaml:3: too deep, or too many nodes or aliases, expected a plain config file"
    );
    assert_eq!(
        v1(&format!("baselines:\n  files: [{}]\n", "/a,".repeat(300))),
        "config: /c.yaml:3: baselines.files: too many entries, expected at most 256"
    );
}

#[test]
fn values() {
    assert_eq!(
        v1("mode: audit\n"),
        "config: /c.yaml:2: mode: 'audit' is no valid value, expected one of observe, enforce"
    );
    assert_eq!(
        v1("mode: enforce\n"),
        "config: /c.yaml:2: mode: enforce is not implemented in this version, expected observe"
    );
    assert_eq!(
        v1("stateDir: state\n"),
        "config: /c.yaml:2: stateDir: 'state' is no valid path, expected an absolute path"
    );
    assert_eq!(
        v1("profiles: [p.yaml]\n"),
        "config: /c.yaml:2: profiles[0]: 'p.yaml' is no valid path, expected an absolute path"
    );
    assert_eq!(
        v1(&format!("socket: /{}\n", "s".repeat(107))),
        "config: /c.yaml:2: socket: path is too long for a socket, expected at most 107 bytes"
    );
    assert_eq!(
        v1("node: a b\n"),
        "config: /c.yaml:2: node: 'a b' is no node name, expected 1 to 253 letters, digits, '-', '_' or '.'"
    );
    assert_eq!(
        v1("baselines:\n  files:\n    - /a\n    - b\n"),
        "config: /c.yaml:5: baselines.files[1]: 'b' is no valid path, expected an absolute path"
    );
    assert_eq!(
        v1("baselines: {requireSignatures: 0}\n"),
        "config: /c.yaml:2: baselines.requireSignatures: 0 is out of range, expected 1 to 16"
    );
    assert_eq!(
        v1("journal: {maxBytes: 1000}\n"),
        "config: /c.yaml:2: journal.maxBytes: '1000' is too little, expected at least 1MiB"
    );
    assert_eq!(
        v1("journal: {maxBytes: much}\n"),
        "config: /c.yaml:2: journal.maxBytes: 'much' is no size, expected a number of bytes, such as 1073741824 or 1GiB"
    );
    assert_eq!(
        v1("scrub: {interval: 24}\n"),
        "config: /c.yaml:2: scrub.interval: '24' is no duration, expected a whole number with ms, s, m, h or d, such as 24h"
    );
    assert_eq!(
        v1("scrub: {ioBudget: 10MiB}\n"),
        "config: /c.yaml:2: scrub.ioBudget: '10MiB' is no rate, expected bytes a second, such as 10MiB/s"
    );
    assert_eq!(
        v1("enforce: {onAgentLoss: panic}\n"),
        "config: /c.yaml:2: enforce.onAgentLoss: 'panic' is no valid value, expected one of release, keep"
    );
    assert_eq!(
        v1("enforce: {lease: 0s}\n"),
        "config: /c.yaml:2: enforce.lease: '0s' is too little, expected at least 1s"
    );
    assert_eq!(
        v1("sensor: {rung: best}\n"),
        "config: /c.yaml:2: sensor.rung: 'best' is no valid value, expected one of auto, lsm, fentry, fanotify, inotify, none"
    );
    assert_eq!(
        v1("sensor: {ringBytes: 100000}\n"),
        "config: /c.yaml:2: sensor.ringBytes: '100000' is no ring size, expected a power of two from 64KiB to 1GiB"
    );
    assert_eq!(
        v1("sensor: {maxSlots: 1}\n"),
        "config: /c.yaml:2: sensor.maxSlots: 1 is out of range, expected 16 to 4000000"
    );
    assert_eq!(
        v1("log: {level: loud}\n"),
        "config: /c.yaml:2: log.level: 'loud' is no valid value, expected one of error, warn, info, debug, trace"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"collector:4317\"}]}\n"),
        "config: /c.yaml:2: export.otlp[0].endpoint: 'collector:4317' is no endpoint, expected http://HOST:PORT or https://HOST:PORT"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"http://u:hunter2@c\"}]}\n"),
        "config: /c.yaml:2: export.otlp[0].endpoint: user and password in the URL, expected credentials in headers"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"http://c\", protocol: http/json}]}\n"),
        "config: /c.yaml:2: export.otlp[0].protocol: 'http/json' is no valid value, expected one of grpc, http/protobuf"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"http://c\", headers: {\"a b\": c}}]}\n"),
        "config: /c.yaml:2: export.otlp[0].headers: 'a b' is no header name, expected letters, digits and '-'"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"http://c\", headers: {a: \"hunter2\\n\"}}]}\n"),
        "config: /c.yaml:2: export.otlp[0].headers: the value of 'a' cannot be sent, expected printable text"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"http://c\", headers: {a: [hunter2]}}]}\n"),
        "config: /c.yaml:2: wrong type at 'export.otlp[0].headers.a', expected text"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"https://c\", tls: {cert: /c}}]}\n"),
        "config: /c.yaml:2: export.otlp[0].tls.cert: without tls.key, expected both"
    );
    assert_eq!(
        v1("export: {otlp: [{endpoint: \"http://c\", timeout: 1ms}]}\n"),
        "config: /c.yaml:2: export.otlp[0].timeout: '1ms' is too little, expected at least 100ms"
    );
}

#[test]
fn files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let refused = |name: &str| {
        let text = load_file(&at(name)).map(|_| ()).unwrap_err().to_string();
        text.replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(refused("missing"), "config: DIR/missing: no such file, expected a config file");
    fs::create_dir(at("dir")).unwrap();
    assert_eq!(refused("dir"), "config: DIR/dir: is a directory, expected a regular file");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(refused("fifo"), "config: DIR/fifo: is a FIFO, expected a regular file");
    let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    assert_eq!(refused("socket"), "config: DIR/socket: is a socket or device, expected a regular file");
    fs::write(at("empty"), "").unwrap();
    assert_eq!(refused("empty"), "config: DIR/empty: is empty, expected 'apiVersion: meshseal/v1' at least");
    fs::write(at("garbage"), [0x7f, b'E', b'L', b'F', 0xff, 0xfe, 0]).unwrap();
    assert_eq!(refused("garbage"), "config: DIR/garbage: is not text, expected YAML in UTF-8");
    fs::write(at("large"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert_eq!(refused("large"), "config: DIR/large: too large, expected at most 1048576 bytes");
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    assert_eq!(
        refused("loop"),
        "config: DIR/loop: cannot be read (Too many levels of symbolic links (os error 40)), expected a config file"
    );
    fs::write(at("unreadable"), "apiVersion: meshseal/v1\n").unwrap();
    fs::set_permissions(at("unreadable"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if !rustix::process::geteuid().is_root() {
        assert_eq!(
            refused("unreadable"),
            "config: DIR/unreadable: permission denied, expected a readable config file"
        );
    }
    assert_eq!(
        load_file(Path::new("/dev/zero")).unwrap_err().to_string(),
        "config: /dev/zero: is a device, expected a regular file"
    );
}

#[test]
fn the_first_file_that_exists_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("none/second"));
    let candidates = [second.clone(), first.clone()];
    let expected =
        format!("config: {}, {}: no such file, expected a config file", second.display(), first.display());
    assert_eq!(load(&candidates).unwrap_err().to_string(), expected);
    fs::write(&first, "apiVersion: meshseal/v1\n").unwrap();
    let found = load(&candidates).unwrap();
    assert_eq!((found.file, found.candidates), (Some(first.clone()), candidates.to_vec()));
    // One that exists and cannot be used is an error, not passed over.
    fs::create_dir_all(&second).unwrap();
    let expected = format!("config: {}: is a directory, expected a regular file", second.display());
    assert_eq!(load(&candidates).unwrap_err().to_string(), expected);
}

#[test]
fn profiles_are_read_with_the_file_that_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let (config, profiles) = (dir.path().join("c.yaml"), dir.path().join("profiles"));
    let text = format!("apiVersion: meshseal/v1\nnode: n\nprofiles: [{}]\n", profiles.display());
    fs::write(&config, text).unwrap();
    let missing = load_file(&config).unwrap_err().to_string();
    assert_eq!(missing, format!("config: {}: no such file, expected a profile", profiles.display()));
    fs::create_dir(&profiles).unwrap();
    let mine = "apiVersion: meshseal/v1\nprofile: mine\nmesh: mine\nabout: x\nreadFrom: y\nstatus: run\n";
    fs::write(profiles.join("mine.yaml"), mine).unwrap();
    fs::write(profiles.join("README"), "not a profile").unwrap();
    let found = load_file(&config).unwrap();
    assert_eq!(found.profile_files, std::slice::from_ref(&profiles));
    assert_eq!(found.profiles.get("mine").map(|profile| profile.mesh.as_str()), Some("mine"));
    assert_eq!(found.profiles.iter().count(), Profiles::built_in().iter().count() + 1);
    fs::write(profiles.join("bad.yaml"), format!("{mine}files: 5\n")).unwrap();
    let bad = load_file(&config).unwrap_err().to_string();
    let at = profiles.join("bad.yaml");
    assert_eq!(bad, format!("config: {}:7: wrong type at 'files', expected a list", at.display()));
}
