//! Seal, sign and verify through the binary, with keys, signatures and certificates by the `openssl` command, and
//! with the bad input that people, pipelines and attackers hand in.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside their functions")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use monitor::baseline::{Context, FoundKind, ObserveError, Root, dsse, observe};
use monitor::model::HostPath;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A directory with keys and a small tree below `root`.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        fixture.openssl(&["genpkey", "-algorithm", "ed25519", "-out", "ed.pem"]);
        fixture.openssl(&["pkey", "-in", "ed.pem", "-pubout", "-out", "ed.pub"]);
        fixture.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-out", "ec.pem"]);
        fixture.openssl(&["pkey", "-in", "ec.pem", "-pubout", "-out", "ec.pub"]);
        fs::create_dir_all(fixture.path("root/etc")).unwrap();
        fs::write(fixture.path("root/etc/conf"), "one\n").unwrap();
        symlink("conf", fixture.path("root/etc/link")).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Exit status, stdout, stderr.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_meshseal"))
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn good(&self, args: &[&str]) {
        let (status, _, stderr) = self.run(args);
        assert_eq!((status, stderr.as_str()), (0, ""), "{args:?}");
    }

    /// Runs it, expects exit status 2, and returns what stderr says: always one line.
    fn refused(&self, args: &[&str]) -> String {
        let (status, stdout, stderr) = self.run(args);
        assert_eq!((status, stdout.as_str(), stderr.lines().count()), (2, "", 1), "{args:?}: {stderr}");
        stderr.trim_end().to_owned()
    }

    fn seal_and_sign(&self, path: &str) {
        self.good(&["seal", "--root", "root", "--path", path, "-o", "s.json"]);
        self.good(&["sign", "--key", "ed.pem", "s.json", "-o", "b.json"]);
    }

    fn verify(&self) -> (i32, Value) {
        let args = [
            "verify",
            "--baseline",
            "b.json",
            "--trusted-key",
            "ed.pub",
            "--root",
            "root",
            "--format",
            "json",
        ];
        let (status, stdout, _) = self.run(&args);
        (status, serde_json::from_str(&stdout).unwrap())
    }

    /// The beginning of the id of a key, as openssl works it out.
    fn key_id(&self, name: &str) -> String {
        let key = format!("{name}.pub");
        self.openssl(&["pkey", "-pubin", "-in", &key, "-outform", "DER", "-out", "id.der"]);
        self.openssl(&["dgst", "-sha256", "-r", "-out", "id.txt", "id.der"]);
        fs::read_to_string(self.path("id.txt")).unwrap()[..16].to_owned()
    }

    fn envelope(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("b.json")).unwrap()).unwrap()
    }
}

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

#[test]
fn signatures_by_openssl_are_ours_and_ours_are_openssls() {
    let fixture = Fixture::new();
    fixture.good(&["seal", "--root", "root", "--path", "/etc", "-o", "s.json"]);
    let payload = fs::read(fixture.path("s.json")).unwrap();
    fs::write(fixture.path("pae"), dsse::pre_authentication_encoding(dsse::PAYLOAD_TYPE, &payload)).unwrap();

    fixture.openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", "ed.pem", "-in", "pae", "-out", "ed.sig"]);
    fixture.openssl(&["dgst", "-sha256", "-sign", "ec.pem", "-out", "ec.sig", "pae"]);
    for (name, other) in [("ed", "ec"), ("ec", "ed")] {
        let sig = fs::read(fixture.path(&format!("{name}.sig"))).unwrap();
        // No key id, a foreign one, URL-safe base64 without padding: all as DSSE allows.
        for (keyid, engine) in
            [(Value::Null, BASE64), (json!("0000"), base64::engine::general_purpose::URL_SAFE_NO_PAD)]
        {
            let envelope = json!({
                "payloadType": dsse::PAYLOAD_TYPE, "payload": engine.encode(&payload),
                "signatures": [{ "keyid": keyid, "sig": engine.encode(&sig) }],
            });
            fs::write(fixture.path("b.json"), envelope.to_string()).unwrap();
            let verify = |key: &str| {
                let key = format!("{key}.pub");
                fixture.run(&["verify", "--baseline", "b.json", "--trusted-key", &key, "--root", "root"]).0
            };
            assert_eq!((verify(name), verify(other)), (0, 2));
        }
    }

    fixture.good(&["sign", "--key", "ed.pem", "--key", "ec.pem", "s.json", "-o", "b.json"]);
    let envelope = fixture.envelope();
    for (at, name) in ["ed", "ec"].iter().enumerate() {
        let sig = BASE64.decode(envelope["signatures"][at]["sig"].as_str().unwrap()).unwrap();
        fs::write(fixture.path("our.sig"), sig).unwrap();
        let key = format!("{name}.pub");
        match at {
            0 => fixture.openssl(&[
                "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", &key, "-in", "pae", "-sigfile", "our.sig",
            ]),
            _ => fixture.openssl(&["dgst", "-sha256", "-verify", &key, "-signature", "our.sig", "pae"]),
        }
        fixture.openssl(&["pkey", "-pubin", "-in", &key, "-outform", "DER", "-out", "der"]);
        fixture.openssl(&["dgst", "-sha256", "-r", "-out", "id", "der"]);
        let id = fs::read_to_string(fixture.path("id")).unwrap();
        assert_eq!(envelope["signatures"][at]["keySha256"].as_str().unwrap(), &id[..64]);
    }
}

#[test]
fn a_golden_node_is_sealed_by_what_profiles_know_of_it() {
    let fixture = Fixture::new();
    let node = fixture.path("node");
    for (file, content) in [
        (
            "etc/cni/net.d/10-bridge.conflist",
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#,
        ),
        (
            "etc/cni/net.d/20-istio.conflist",
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"istio-cni"}]}"#,
        ),
        ("opt/cni/bin/istio-cni", "plugin"),
        ("opt/cni/bin/bridge", "plugin"),
        ("etc/passwd", "nobody's business"),
    ] {
        let path = node.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let root = node.to_str().unwrap();
    let (code, _, noted) =
        fixture.run(&["seal", "--root", root, "--profile", "istio-cni", "-o", "golden.json"]);
    let note = "meshseal: note: /etc/cni/net.d: its names are not sealed: a chain that is put before the sealed one is not told; \
                add --path /etc/cni/net.d\n";
    assert_eq!((code, noted.as_str()), (0, note));
    let statement: Value = serde_json::from_slice(&fs::read(fixture.path("golden.json")).unwrap()).unwrap();
    let sealed = statement["predicate"]["objects"].as_array().unwrap();
    let paths: Vec<&str> = sealed.iter().map(|object| object["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/etc/cni/net.d/20-istio.conflist", "/opt/cni/bin/istio-cni"]);

    let refused = fixture.refused(&["seal", "--root", root, "--profile", "istio-cnl", "-o", "none.json"]);
    let start = "meshseal: arguments: --profile istio-cnl: one of cni, istio-proxy, ";
    assert!(refused.starts_with(start), "{refused}");
    let refused = fixture.refused(&["seal", "--root", root, "--profile", "kuma-cni", "-o", "none.json"]);
    assert!(refused.contains("something of kuma-cni"), "{refused}");

    // A profile of one's own may name any path of the host; what is a socket there cannot be sealed.
    let file = node.join("opt/hp/f");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "sealed").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(node.join("opt/hp/socket")).unwrap();
    fs::create_dir(fixture.path("profiles")).unwrap();
    for (name, path) in [("one", "/opt/hp/f"), ("two", "/opt/hp/socket")] {
        let text = format!(
            "apiVersion: meshseal/v1\nprofile: {name}\nmesh: m\nabout: a\nreadFrom: r\nstatus: read\nfiles:\n  \
             - {{ path: {path}, about: own, class: sealed, role: other }}\n"
        );
        fs::write(fixture.path("profiles").join(format!("{name}.yaml")), text).unwrap();
    }
    let seal = |name: &'static str| {
        ["seal", "--root", root, "--profile", name, "--profiles", "profiles", "-o", "own.json"]
    };
    assert_eq!(fixture.run(&seal("one")).0, 0);
    let statement: Value = serde_json::from_slice(&fs::read(fixture.path("own.json")).unwrap()).unwrap();
    let sealed = statement["predicate"]["objects"].as_array().unwrap();
    let paths: Vec<&str> = sealed.iter().map(|object| object["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/opt/hp/f"]);
    let refused = fixture.refused(&seal("two"));
    assert!(
        refused.contains("something of two: nothing that its profile knows and that can be sealed"),
        "{refused}"
    );
}

#[test]
fn a_threshold_counts_distinct_trusted_keys() {
    let fixture = Fixture::new();
    fixture.seal_and_sign("/etc");
    let both = |file: &str| {
        fixture.run(&[
            "verify",
            "--baseline",
            file,
            "--trusted-key",
            "ed.pub",
            "ec.pub",
            "--require-signatures",
            "2",
            "--root",
            "root",
        ])
    };
    assert_eq!(both("b.json").0, 2);
    let mut twice = fixture.envelope();
    let signature = twice["signatures"][0].clone();
    twice["signatures"].as_array_mut().unwrap().push(signature);
    fs::write(fixture.path("twice.json"), twice.to_string()).unwrap();
    let id = |name: &str| fixture.key_id(name);
    assert_eq!(
        both("twice.json").2,
        format!(
            "meshseal: signature not trusted: twice.json: signatures: 2 by distinct trusted keys, not 1; signed by ed \
             ({}); 1 more by the same key; not signed by ec ({})\n",
            id("ed"),
            id("ec")
        )
    );
    fixture.good(&["sign", "--key", "ec.pem", "b.json", "-o", "two.json"]);
    assert_eq!(both("two.json").0, 0);
    assert!(
        fixture
            .refused(&["sign", "--key", "ed.pem", "b.json", "-o", "x"])
            .ends_with("a key that has not signed yet")
    );
}

#[test]
fn bad_files_are_one_line_each_and_leave_nothing_behind() {
    let fixture = Fixture::new();
    fixture.seal_and_sign("/etc");
    fs::write(fixture.path("empty"), "").unwrap();
    fs::write(fixture.path("binary"), [0_u8, 159, 146, 150]).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let envelope = fs::read(fixture.path("b.json")).unwrap();
    fs::write(fixture.path("cut"), &envelope[..envelope.len() / 2]).unwrap();
    let mut flipped = fixture.envelope();
    let payload = flipped["payload"].as_str().unwrap().replacen('A', "B", 1);
    flipped["payload"] = json!(payload);
    fs::write(fixture.path("flipped"), flipped.to_string()).unwrap();
    fixture.openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "rsa.pem"]);
    fixture.openssl(&["pkey", "-in", "rsa.pem", "-pubout", "-out", "rsa.pub"]);
    fixture.openssl(&["pkey", "-in", "ed.pem", "-aes256", "-passout", "pass:x", "-out", "locked.pem"]);

    let verify =
        |file: &str, key: &str| fixture.refused(&["verify", "--baseline", file, "--trusted-key", key]);
    for (file, key, expected) in [
        ("none", "ed.pub", "cannot read: none: a readable file (No such file or directory (os error 2))"),
        ("root", "ed.pub", "cannot read: root: a regular file"),
        ("fifo", "ed.pub", "cannot read: fifo: a regular file"),
        (
            "empty",
            "ed.pub",
            "not a DSSE envelope: empty: JSON: payloadType, payload, signatures (EOF while parsing a value at line 1 \
             column 0)",
        ),
        (
            "binary",
            "ed.pub",
            "not a DSSE envelope: binary: JSON: payloadType, payload, signatures (expected value at line 1 column 1)",
        ),
        (
            "flipped",
            "ed.pub",
            "signature not trusted: flipped: signatures: 1 by distinct trusted keys, not 0; 1 by no trusted key (claims \
             key {ED}); not signed by ed ({ED})",
        ),
        (
            "b.json",
            "ec.pub",
            "signature not trusted: b.json: signatures: 1 by distinct trusted keys, not 0; 1 by no trusted key (claims \
             key {ED}); not signed by ec ({EC})",
        ),
        ("b.json", "rsa.pub", "bad trusted key: rsa.pub: PUBLIC KEY: an Ed25519 or ECDSA P-256 key"),
        (
            "b.json",
            "ed.pem",
            "bad trusted key: ed.pem: PEM: the public key, not the private one: `openssl pkey -in KEY -pubout`",
        ),
        (
            "b.json",
            "binary",
            "bad trusted key: binary: PEM: one PEM block PUBLIC KEY, as from `openssl pkey -pubout`, or an OpenSSH public \
             key",
        ),
    ] {
        let expected = expected.replace("{ED}", &fixture.key_id("ed")).replace("{EC}", &fixture.key_id("ec"));
        assert_eq!(verify(file, key), format!("meshseal: {expected}"));
    }
    assert!(verify("cut", "ed.pub").starts_with("meshseal: not a DSSE envelope: cut: JSON: "));

    let sign = |key: &str, file: &str| fixture.refused(&["sign", "--key", key, file, "-o", "out"]);
    assert_eq!(
        sign("rsa.pem", "s.json"),
        "meshseal: bad signing key: rsa.pem: PRIVATE KEY: an Ed25519 or ECDSA P-256 key"
    );
    assert_eq!(
        sign("locked.pem", "s.json"),
        "meshseal: bad signing key: locked.pem: PEM: a key without a passphrase: `openssl pkey -in KEY`"
    );
    assert!(sign("ed.pem", "binary").starts_with("meshseal: bad statement: binary: JSON: "));
    assert!(!fixture.path("out").exists());
    assert_eq!(
        fixture.refused(&["seal", "--root", "root", "--path", "/etc/none", "-o", "out"]),
        "meshseal: cannot seal: /etc/none: something there"
    );
    assert_eq!(
        fixture.refused(&["seal", "--root", "root", "--path", "/etc", "-o", "root"]),
        "meshseal: cannot write: root: a file that can be written (not a regular file)"
    );
    let left: Vec<_> = fs::read_dir(fixture.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.as_bytes().ends_with(b".tmp"))
        .collect();
    assert_eq!(left, Vec::<std::ffi::OsString>::new());
}

#[test]
fn an_error_is_json_too_where_json_is_wanted() {
    let fixture = Fixture::new();
    let args = ["verify", "--baseline", "none", "--trusted-key", "ed.pub", "--format", "json"];
    let (status, stdout, _) = fixture.run(&args);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(status, 2);
    assert_eq!(
        value,
        json!({ "error": {
            "what": "cannot read", "where": "none",
            "expected": "a readable file (No such file or directory (os error 2))",
        }})
    );
}

#[test]
fn an_expired_baseline_cannot_tell() {
    let fixture = Fixture::new();
    fixture.good(&["seal", "--root", "root", "--path", "/etc", "--valid-for", "1ms", "-o", "s.json"]);
    fixture.good(&["sign", "--key", "ed.pem", "s.json", "-o", "b.json"]);
    let error =
        fixture.refused(&["verify", "--baseline", "b.json", "--trusted-key", "ed.pub", "--root", "root"]);
    assert!(error.starts_with("meshseal: baseline not valid: b.json: expired at 2"), "{error}");
}

#[test]
fn hostile_neighbours_in_a_sealed_directory() {
    let fixture = Fixture::new();
    let etc = fixture.path("root/etc");
    let hostile = OsStr::from_bytes(b"a\nmeshseal: forged\xff");
    fs::write(etc.join(hostile), "x").unwrap();
    let special = |name: &str, kind| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, etc.join(name), kind, mode, 0).is_ok()
    };
    assert!(special("fifo", rustix::fs::FileType::Fifo));
    let _socket = std::os::unix::net::UnixListener::bind(etc.join("socket")).unwrap();
    // Making devices takes a privilege; where it is missing, the other two stand for them.
    let device = special("device", rustix::fs::FileType::CharacterDevice);
    fixture.seal_and_sign("/etc");
    assert_eq!(fixture.verify().0, 0);

    fs::remove_file(etc.join("fifo")).unwrap();
    fs::write(etc.join("fifo"), "").unwrap();
    fs::write(etc.join(hostile), "y").unwrap();
    let (status, answer) = fixture.verify();
    assert_eq!(status, 1);
    let found: Vec<_> = answer["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["path"].as_str().unwrap(), d["aspect"].as_str().unwrap(), d["entry"].as_str()))
        .collect();
    assert_eq!(found, [("/etc", "names", Some("fifo")), ("/etc/a\nmeshseal: forged\\xff", "content", None)]);
    let text =
        fixture.run(&["verify", "--baseline", "b.json", "--trusted-key", "ed.pub", "--root", "root"]).1;
    assert!(text.lines().any(|line| line == "/etc/a\\x0ameshseal: forged\\xff"), "{text}");
    if device {
        assert_eq!(
            fixture.refused(&["seal", "--root", "root", "--path", "/etc/device", "-o", "x"]),
            "meshseal: cannot seal: /etc/device: a file, symlink or directory, not a char; seal the directory it is in"
        );
    }
}

#[test]
fn secrets_are_never_told() {
    let fixture = Fixture::new();
    let at = "root/pods/u/volumes/kubernetes.io~secret/v";
    fs::create_dir_all(fixture.path(at)).unwrap();
    let password = fixture.path(at).join("password");
    fs::write(&password, "hunter2").unwrap();
    fs::copy(fixture.path("ec.pem"), fixture.path("root/etc/key.pem")).unwrap();
    let seal = ["seal", "--root", "root", "--path", "/pods", "/etc", "-o", "s.json"];
    assert!(
        fixture
            .refused(&seal)
            .starts_with("meshseal: cannot seal a secret by a plain hash: /pods/u/volumes/kubernetes.io~secret/v/password: --secret-key FILE"),
    );
    assert!(!fixture.path("s.json").exists());
    fs::write(fixture.path("k"), [7; 32]).unwrap();
    fs::write(fixture.path("short"), [7; 31]).unwrap();
    let with_key = |key| [&seal[..], &["--secret-key", key]].concat();
    assert!(
        fixture
            .refused(&with_key("short"))
            .starts_with("meshseal: secret key too short: short: at least 32 bytes")
    );
    fixture.good(&with_key("k"));
    fixture.good(&["sign", "--key", "ed.pem", "s.json", "-o", "b.json"]);

    let plain = hex::encode(<sha2::Sha256 as sha2::Digest>::digest("hunter2"));
    let changed = hex::encode(<sha2::Sha256 as sha2::Digest>::digest("hunter3"));
    let statement = fs::read_to_string(fixture.path("s.json")).unwrap();
    assert!(!statement.contains(&plain));
    fixture.openssl(&["pkey", "-in", "ec.pem", "-pubout", "-outform", "DER", "-out", "spki"]);
    let spki = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(fs::read(fixture.path("spki")).unwrap()));
    assert!(statement.contains(&format!("\"publicKey\": \"{spki}\"")));

    let verify =
        ["verify", "--baseline", "b.json", "--trusted-key", "ed.pub", "--root", "root", "--format", "json"];
    assert_eq!(fixture.run(&verify).0, 2, "without the key nothing can be said");
    let verify = [&verify[..], &["--secret-key", "k"]].concat();
    assert_eq!(fixture.run(&verify).0, 0);
    fs::write(&password, "hunter3").unwrap();
    let (status, stdout, _) = fixture.run(&verify);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(status, 1);
    assert_eq!(answer["differences"][0]["expected"], json!({ "content": "equal" }));
    assert_eq!(answer["differences"][0]["actual"], json!({ "content": "differs" }));
    assert!(!stdout.contains(&changed) && !stdout.contains(&plain));
}

#[test]
fn a_rotation_must_keep_the_identity() {
    let fixture = Fixture::new();
    let certs = fixture.path("root/certs");
    fs::create_dir_all(&certs).unwrap();
    let authority = |name: &str| {
        fixture.openssl(&[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            &format!("{name}.key"),
        ]);
        fixture.openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            &format!("{name}.key"),
            "-subj",
            "/CN=root",
            "-days",
            "30",
            "-out",
            &format!("{name}.pem"),
        ]);
    };
    let issue = |ca: &str, san: &str| {
        fixture.openssl(&[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            "root/certs/key.pem",
        ]);
        fixture.openssl(&["req", "-new", "-key", "root/certs/key.pem", "-subj", "/O=x", "-out", "csr"]);
        fs::write(fixture.path("ext"), format!("subjectAltName=critical,URI:{san}\n")).unwrap();
        fixture.openssl(&[
            "x509",
            "-req",
            "-in",
            "csr",
            "-CA",
            &format!("{ca}.pem"),
            "-CAkey",
            &format!("{ca}.key"),
            "-days",
            "1",
            "-set_serial",
            "1",
            "-extfile",
            "ext",
            "-out",
            "root/certs/cert-chain.pem",
        ]);
    };
    let id = "spiffe://cluster.local/ns/a/sa/b";
    authority("ca");
    authority("evil");
    issue("ca", id);
    fs::copy(fixture.path("ca.pem"), certs.join("root-cert.pem")).unwrap();
    fixture.good(&[
        "seal",
        "--root",
        "root",
        "--path",
        "/certs/cert-chain.pem",
        "--class",
        "rotated",
        "-o",
        "s.json",
    ]);
    fixture.good(&["sign", "--key", "ed.pem", "s.json", "-o", "b.json"]);
    assert_eq!(fixture.verify().0, 0);

    issue("ca", id);
    assert_eq!(fixture.verify().0, 0, "a lawful renewal");
    let reason = || {
        let (status, answer) = fixture.verify();
        assert_eq!((status, answer["differences"][0]["aspect"].as_str()), (1, Some("identity")));
        answer["differences"][0]["detail"].as_str().unwrap().to_owned()
    };
    issue("evil", id);
    assert_eq!(reason(), "chain does not end in a sealed root");
    fs::copy(fixture.path("evil.pem"), certs.join("root-cert.pem")).unwrap();
    assert_eq!(reason(), "chain does not end in a sealed root", "a root beside it must be a sealed one");
    fs::copy(fixture.path("ca.pem"), certs.join("root-cert.pem")).unwrap();
    issue("ca", "spiffe://cluster.local/ns/a/sa/other");
    assert_eq!(reason(), format!("names URI:spiffe://cluster.local/ns/a/sa/other instead of URI:{id}"));
    issue("ca", id);
    fs::copy(fixture.path("ec.pem"), certs.join("key.pem")).unwrap();
    assert_eq!(reason(), "does not belong to the private key beside it");
    fs::write(certs.join("cert-chain.pem"), "nothing").unwrap();
    assert_eq!(reason(), "no PEM certificate and no token");
}

#[test]
fn a_file_that_grows_while_it_is_hashed_is_not_judged() {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let root = Root::open(dir.path()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().append(true).open(dir.path().join("f")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all(b"x").unwrap();
            }
        });
        let path = HostPath::from("/f");
        // A busy machine may hold the writer up for longer than one look takes: such a look is right too, and tells
        // the bytes of one moment. Before long one must meet the writer.
        let mut unstable = false;
        for _ in 0..1000 {
            match observe(&root, &path, &Context::default()) {
                Ok(found) => {
                    let FoundKind::File { size, content } = found.kind else { panic!("no file") };
                    let bytes = vec![b'x'; usize::try_from(size).unwrap()];
                    assert_eq!(content.sha256[..], <sha2::Sha256 as sha2::Digest>::digest(bytes)[..]);
                }
                Err(error) => {
                    assert_eq!(error, ObserveError::Unstable { path });
                    unstable = true;
                    break;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(unstable);
    });
    assert!(observe(&root, &"/f".into(), &Context::default()).is_ok());
}

/// What a tamperer does to one entry of a tree.
#[derive(Debug, Clone, Copy)]
enum Mutation {
    FlipByte,
    Append,
    Truncate,
    Chmod,
    Xattr,
    Remove,
    Replace,
    Neighbour,
}

fn mutate(path: &Path, mutation: Mutation) {
    let bytes = fs::read(path).unwrap();
    match mutation {
        Mutation::FlipByte => {
            let mut bytes = bytes;
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            } else {
                bytes.push(0);
            }
            fs::write(path, bytes).unwrap();
        }
        Mutation::Append => fs::write(path, [bytes.as_slice(), b"\n"].concat()).unwrap(),
        Mutation::Truncate if bytes.is_empty() => fs::write(path, "x").unwrap(),
        Mutation::Truncate => fs::write(path, &bytes[..bytes.len() - 1]).unwrap(),
        Mutation::Chmod => {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            fs::set_permissions(path, fs::Permissions::from_mode(mode ^ 0o4001)).unwrap();
        }
        Mutation::Xattr => {
            let flags = rustix::fs::XattrFlags::empty();
            // Not all file systems have user attributes.
            if rustix::fs::setxattr(path, "user.meshseal", b"x", flags).is_err() {
                fs::remove_file(path).unwrap();
            }
        }
        Mutation::Remove => fs::remove_file(path).unwrap(),
        Mutation::Replace => {
            fs::remove_file(path).unwrap();
            symlink("elsewhere", path).unwrap();
        }
        Mutation::Neighbour => fs::write(path.with_file_name("zz-intruder"), "").unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_sealed_tree_is_intact_and_any_one_mutation_is_found(
        files in proptest::collection::btree_map("[a-c]{1,3}(/[d-f]{1,3}){0,2}", proptest::collection::vec(any::<u8>(), 0..64), 1..8),
        victim in any::<prop::sample::Index>(),
        mutation in prop::sample::select(vec![
            Mutation::FlipByte, Mutation::Append, Mutation::Truncate, Mutation::Chmod, Mutation::Xattr,
            Mutation::Remove, Mutation::Replace, Mutation::Neighbour,
        ]),
    ) {
        use monitor::baseline::{seal, statement, verify};

        let dir = tempfile::tempdir().unwrap();
        let mut made = Vec::new();
        for (path, bytes) in &files {
            let path = dir.path().join(path);
            // `a` and `a/b` cannot both be: the second is left out.
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && fs::write(&path, bytes).is_ok() {
                made.push(path);
            }
        }
        let root = Root::open(dir.path()).unwrap();
        let proposal = seal::statement_for(&root, &["/".into()], &seal::Options::default()).unwrap();
        let baseline = statement::parse(&proposal.statement.to_json().unwrap()).unwrap();
        let context = Context::default();
        let outcome = verify::verify(&root, &baseline.objects, &context);
        prop_assert!(outcome.differs.is_empty() && outcome.unknown.is_empty(), "{:?}", outcome);
        prop_assert_eq!(outcome.looked_at, baseline.objects.len());
        mutate(&made[victim.index(made.len())], mutation);
        let outcome = verify::verify(&root, &baseline.objects, &context);
        prop_assert!(!outcome.differs.is_empty() && outcome.unknown.is_empty(), "{:?}", outcome);
    }
}
