//! Signatures between Meshseal and other tools, both ways, through the binary.
//!
//! What the tools made once is checked in (`vectors/README.md` has the commands) and read everywhere. `openssl` and `ssh-keygen` are run
//! where they are; cosign and securesystemslib where `MESHSEAL_INTEROP_COSIGN` names the one and `MESHSEAL_INTEROP_PYTHON` a
//! Python that has the other; the schema of SARIF where `MESHSEAL_INTEROP_SARIF` names it: `cargo xtask test --full` provides all.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests, outside their functions")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use monitor::baseline::openssh::NAMESPACE;
use serde_json::{Value, json};

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

fn vector(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name).to_str().unwrap().to_owned()
}

/// Exit status, stdout, stderr.
fn meshseal(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_meshseal")).args(args).current_dir(dir).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// How many trusted keys signed, or why it is not trusted.
fn signers(dir: &Path, file: &str, keys: &[&str], beside: &[&str]) -> Result<usize, String> {
    let mut args = vec!["baseline", "show", file, "--format", "json", "--trusted-key"];
    args.extend(keys);
    if !beside.is_empty() {
        args.push("--signature");
        args.extend(beside);
    }
    let (status, stdout, stderr) = meshseal(dir, &args);
    if status != 0 {
        assert_eq!((status, stderr.lines().count()), (2, 1), "{stderr}");
        return Err(stderr.trim_end().to_owned());
    }
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((answer["name"].as_str(), answer["revision"].as_u64()), (Some("vectors"), Some(7)));
    Ok(answer["signers"].as_array().unwrap().len())
}

fn of_vectors(file: &str, keys: &[&str], beside: &[&str]) -> Result<usize, String> {
    let all = |names: &[&str]| names.iter().map(|name| vector(name)).collect::<Vec<_>>();
    let (keys, beside) = (all(keys), all(beside));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let beside: Vec<&str> = beside.iter().map(String::as_str).collect();
    signers(Path::new("/"), &vector(file), &keys, &beside)
}

#[test]
fn envelopes_and_bundles_that_other_tools_made() {
    let cosign = ["cosign.pub"];
    for file in
        ["cosign2-attest.dsse.json", "cosign2-attest.json", "cosign3-attest.json", "cosign3-statement.json"]
    {
        assert_eq!(of_vectors(file, &cosign, &[]), Ok(1), "{file}");
        assert!(
            of_vectors(file, &["openssl-p256.pub"], &[]).unwrap_err().contains("signature not trusted"),
            "{file}"
        );
    }
    let both = ["openssl-ed25519.pub", "openssl-p256.pub"];
    assert_eq!(of_vectors("securesystemslib.dsse.json", &both, &[]), Ok(2));
    assert_eq!(of_vectors("securesystemslib.dsse.json", &both[..1], &[]), Ok(1));
}

#[test]
fn signatures_that_other_tools_made_over_the_statement() {
    for (key, signature) in [
        ("cosign.pub", "cosign2-blob-old.json"),
        ("cosign.pub", "cosign2-blob.json"),
        ("cosign.pub", "cosign3-blob.json"),
        ("openssl-ed25519.pub", "openssl-ed25519.sig"),
        ("openssl-p256.pub", "openssl-p256.sig"),
        ("ssh-ed25519.pub", "ssh-ed25519.sig"),
        ("ssh-ecdsa.pub", "ssh-ecdsa.sig"),
        ("allowed_signers", "ssh-ed25519.sig"),
        ("allowed_signers", "ssh-ecdsa.sig"),
    ] {
        assert_eq!(of_vectors("statement.json", &[key], &[signature]), Ok(1), "{signature}");
        let stranger = if key == "openssl-p256.pub" { "cosign.pub" } else { "openssl-p256.pub" };
        let refused = of_vectors("statement.json", &[stranger], &[signature]).unwrap_err();
        assert!(refused.contains("signature not trusted"), "{signature}: {refused}");
    }
    assert_eq!(
        of_vectors("statement.json", &["allowed_signers"], &["ssh-ed25519.sig", "ssh-ecdsa.sig"]),
        Ok(2)
    );
    let refused =
        of_vectors("statement.json", &["allowed_signers"], &["ssh-wrong-namespace.sig"]).unwrap_err();
    assert!(
        refused.contains("1 by no trusted key (SSH namespace file, not baseline@meshseal.dev)"),
        "{refused}"
    );
    let refused = of_vectors("cosign3-blob.json", &["cosign.pub"], &[]).unwrap_err();
    assert!(refused.contains("this one signs a blob, so give the statement"), "{refused}");
}

/// A signature over other bytes is refused by the key; a bundle that says so itself is refused before that.
#[test]
fn what_was_made_for_another_statement_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = fs::read_to_string(vector("statement.json")).unwrap().replace("1800", "1801");
    fs::write(dir.path().join("other.json"), other).unwrap();
    let refused = |key: &str, signature: &str| {
        signers(dir.path(), "other.json", &[&vector(key)], &[&vector(signature)]).unwrap_err()
    };
    for (key, signature) in [
        ("cosign.pub", "cosign2-blob-old.json"),
        ("ssh-ed25519.pub", "ssh-ed25519.sig"),
        ("openssl-p256.pub", "openssl-p256.sig"),
    ] {
        let refused = refused(key, signature);
        assert!(refused.contains("1 by no trusted key"), "{refused}");
    }
    for signature in ["cosign2-blob.json", "cosign3-blob.json"] {
        let refused = refused("cosign.pub", signature);
        assert!(refused.contains("messageDigest: the SHA-256 of this very payload"), "{refused}");
    }
    let refused = refused("cosign.pub", "cosign3-statement.json");
    assert!(refused.contains("dsseEnvelope.payload: this very payload"), "{refused}");
}

/// The log entry in a bundle is not believed, but it must not speak of other bytes.
#[test]
fn a_log_entry_must_be_for_the_payload() {
    let dir = tempfile::tempdir().unwrap();
    let digest = |bytes: &[u8]| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(bytes));
    let statement = fs::read(vector("statement.json")).unwrap();
    let entry = |digest: &str| {
        let body = json!({ "kind": "hashedrekord", "spec": { "data": { "hash": { "algorithm": "sha256", "value": digest }}}});
        BASE64.encode(body.to_string())
    };
    for (digest, sound) in [(digest(&statement), true), (digest(b"x"), false)] {
        let mut old: Value =
            serde_json::from_slice(&fs::read(vector("cosign2-blob-old.json")).unwrap()).unwrap();
        old["rekorBundle"] =
            json!({ "SignedEntryTimestamp": "", "Payload": { "body": entry(&digest), "logIndex": 1 }});
        let mut new: Value =
            serde_json::from_slice(&fs::read(vector("cosign3-statement.json")).unwrap()).unwrap();
        new["verificationMaterial"]["tlogEntries"] =
            json!([{ "logIndex": "1", "canonicalizedBody": entry(&digest) }]);
        fs::write(dir.path().join("old"), old.to_string()).unwrap();
        fs::write(dir.path().join("new"), new.to_string()).unwrap();
        let key = vector("cosign.pub");
        let outcomes = [
            signers(dir.path(), &vector("statement.json"), &[&key], &["old"]),
            signers(dir.path(), "new", &[&key], &[]),
        ];
        for outcome in outcomes {
            match outcome {
                Ok(count) => assert!(sound && count == 1),
                Err(error) => assert!(!sound && error.contains("an entry for this very payload"), "{error}"),
            }
        }
    }
}

/// Signatures from everywhere in one envelope, as an agent takes it.
#[test]
fn one_envelope_holds_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ["cosign.pub", "openssl-ed25519.pub", "openssl-p256.pub", "allowed_signers"].map(vector);
    let signatures =
        ["cosign3-blob.json", "openssl-ed25519.sig", "openssl-p256.sig", "ssh-ed25519.sig", "ssh-ecdsa.sig"]
            .map(vector);
    let mut args = vec!["sign", "--attach"];
    args.extend(signatures.iter().map(String::as_str));
    let statement = vector("statement.json");
    args.extend([statement.as_str(), "-o", "all.dsse.json"]);
    let (status, _, stderr) = meshseal(dir.path(), &args);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let trusted: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_eq!(signers(dir.path(), "all.dsse.json", &trusted, &[]), Ok(5));
    assert_eq!(signers(dir.path(), "all.dsse.json", &trusted[..2], &[]), Ok(2));

    fs::create_dir_all(dir.path().join("root/etc/istio")).unwrap();
    fs::write(dir.path().join("root/etc/istio/mesh"), "mesh\n").unwrap();
    let mut args = vec![
        "verify",
        "--baseline",
        "all.dsse.json",
        "--root",
        "root",
        "--require-signatures",
        "6",
        "--trusted-key",
    ];
    args.extend(&trusted);
    let (status, _, stderr) = meshseal(dir.path(), &args);
    assert_eq!(status, 2);
    assert!(stderr.contains("6 by distinct trusted keys, not 5; signed by "), "{stderr}");
    assert!(stderr.contains("alice@example.com (") && stderr.contains("openssl-p256 ("), "{stderr}");
}

fn has(program: &str) -> bool {
    let there =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !there {
        eprintln!("skipped: no {program} here");
    }
    there
}

fn tool(variable: &str) -> Option<PathBuf> {
    let there = std::env::var_os(variable).map(PathBuf::from);
    if there.is_none() {
        eprintln!("skipped: {variable} names no tool");
    }
    there
}

fn run(dir: &Path, program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("COSIGN_PASSWORD", "")
        .env("HOME", dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory with the statement and a P-256 key of openssl's.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(vector("statement.json"), dir.path().join("statement.json")).unwrap();
    run(dir.path(), "openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ec.pem"]);
    run(dir.path(), "openssl", &["pkey", "-in", "ec.pem", "-pubout", "-out", "ec.pub"]);
    dir
}

#[test]
fn ssh_keygen_signs() {
    if !has("ssh-keygen") {
        return;
    }
    let dir = place();
    let at = dir.path();
    for kind in ["ed25519", "ecdsa"] {
        run(at, "ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", "r@example.com", "-f", kind]);
        for hash in ["sha256", "sha512"] {
            let option = format!("hashalg={hash}");
            run(
                at,
                "ssh-keygen",
                &["-q", "-Y", "sign", "-n", NAMESPACE, "-O", &option, "-f", kind, "statement.json"],
            );
            let key = format!("{kind}.pub");
            assert_eq!(
                signers(at, "statement.json", &[&key], &["statement.json.sig"]),
                Ok(1),
                "{kind} {hash}"
            );
            fs::remove_file(at.join("statement.json.sig")).unwrap();
        }
    }
    run(at, "ssh-keygen", &["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", "rsa"]);
    let refused = signers(at, "statement.json", &["rsa.pub"], &[]).unwrap_err();
    assert!(refused.ends_with("a key of type ssh-ed25519 or ecdsa-sha2-nistp256, not ssh-rsa"), "{refused}");
}

#[test]
fn cosign_signs_and_verifies() {
    let Some(cosign) = tool("MESHSEAL_INTEROP_COSIGN") else { return };
    let cosign = cosign.to_str().unwrap();
    let dir = place();
    let at = dir.path();
    run(at, cosign, &["generate-key-pair", "--output-key-prefix", "c"]);
    let offline =
        ["--yes", "--key", "c.key", "--use-signing-config=false", "--tlog-upload=false", "--bundle"];
    run(at, cosign, &[&["sign-blob"], &offline[..], &["blob.json", "statement.json"]].concat());
    assert_eq!(signers(at, "statement.json", &["c.pub"], &["blob.json"]), Ok(1));
    run(
        at,
        cosign,
        &[&["attest-blob"], &offline[..], &["attest.json", "--statement", "statement.json"]].concat(),
    );
    assert_eq!(signers(at, "attest.json", &["c.pub"], &[]), Ok(1));

    // Ours in theirs: the subject is the list of objects.
    let statement: Value = serde_json::from_slice(&fs::read(at.join("statement.json")).unwrap()).unwrap();
    fs::write(at.join("vectors"), statement["predicate"]["objects"].to_string()).unwrap();
    let (status, _, stderr) =
        meshseal(at, &["sign", "--key", "ec.pem", "statement.json", "-o", "ours.dsse.json"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let envelope: Value = serde_json::from_slice(&fs::read(at.join("ours.dsse.json")).unwrap()).unwrap();
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": { "publicKey": { "hint": "" }},
        "dsseEnvelope": {
            "payloadType": envelope["payloadType"],
            "payload": envelope["payload"],
            "signatures": [{ "keyid": envelope["signatures"][0]["keyid"], "sig": envelope["signatures"][0]["sig"] }],
        },
    });
    fs::write(at.join("ours.json"), bundle.to_string()).unwrap();
    let kind = "https://meshseal.dev/baseline/v1";
    let verify =
        ["--key", "ec.pub", "--insecure-ignore-tlog", "--type", kind, "--bundle", "ours.json", "vectors"];
    run(at, cosign, &[&["verify-blob-attestation"], &verify[..]].concat());
}

#[test]
fn securesystemslib_signs_and_verifies() {
    let Some(python) = tool("MESHSEAL_INTEROP_PYTHON") else { return };
    let dir = place();
    let at = dir.path();
    let (status, _, stderr) =
        meshseal(at, &["sign", "--key", "ec.pem", "statement.json", "-o", "ours.dsse.json"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let script = r#"
import json
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey
private = load_pem_private_key(open("ec.pem", "rb").read(), None)
public = SSlibKey.from_crypto(private.public_key())
theirs = Envelope(open("statement.json", "rb").read(), "application/vnd.in-toto+json", {})
theirs.sign(CryptoSigner(private, public))
json.dump(theirs.to_dict(), open("theirs.dsse.json", "w"))
ours = json.load(open("ours.dsse.json"))
# It looks signatures up by key id, and has its own.
ours["signatures"][0]["keyid"] = public.keyid
assert Envelope.from_dict(ours).verify([public], 1)
"#;
    run(at, python.to_str().unwrap(), &["-c", script]);
    assert_eq!(signers(at, "theirs.dsse.json", &["ec.pub"], &[]), Ok(1));
}

#[test]
fn sarif_is_as_its_schema_says() {
    let (Some(python), Some(schema)) = (tool("MESHSEAL_INTEROP_PYTHON"), tool("MESHSEAL_INTEROP_SARIF"))
    else {
        return;
    };
    let dir = place();
    let at = dir.path();
    fs::create_dir_all(at.join("root/etc")).unwrap();
    for name in ["missing", "content", "mode", "a\nb c#%"] {
        fs::write(at.join("root/etc").join(name), "x").unwrap();
    }
    std::os::unix::fs::symlink("content", at.join("root/etc/link")).unwrap();
    let good = |args: &[&str]| assert_eq!(meshseal(at, args).0, 0, "{args:?}");
    good(&["seal", "--root", "root", "--path", "/etc", "--source-commit", "abc", "-o", "s.json"]);
    good(&["sign", "--key", "ec.pem", "s.json", "-o", "b.json"]);
    let verify =
        ["verify", "--root", "root", "--baseline", "b.json", "--trusted-key", "ec.pub", "--format", "sarif"];
    let script = r#"
import json, jsonschema, sys
schema = json.load(open(sys.argv[1], encoding="utf-8-sig"))
validator = jsonschema.validators.validator_for(schema)
for name in sys.argv[2:]:
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.load(open(name)))
"#;
    let (status, intact, _) = meshseal(at, &verify);
    assert_eq!(status, 0);
    fs::write(at.join("intact"), intact).unwrap();
    fs::remove_file(at.join("root/etc/missing")).unwrap();
    fs::write(at.join("root/etc/content"), "y").unwrap();
    fs::write(at.join("root/etc/a\nb c#%"), "y").unwrap();
    fs::remove_file(at.join("root/etc/link")).unwrap();
    fs::write(at.join("root/etc/link"), "content").unwrap();
    let (status, differs, _) = meshseal(at, &verify);
    assert_eq!(status, 1);
    fs::write(at.join("differs"), differs).unwrap();
    let schema = schema.to_str().unwrap();
    run(at, python.to_str().unwrap(), &["-c", script, schema, "intact", "differs"]);
}
