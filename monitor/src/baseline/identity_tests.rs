//! What a renewal may change, as sealed from files and compared with files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::baseline::certs::{Draft, HOUR, SPIFFE, authority, leaf, names as names_of, tlv};
use crate::baseline::seal::{Options, statement_for};
use crate::baseline::statement::parse;
use crate::baseline::wire::{WireEntry, WireIdentity};
use crate::baseline::{Baseline, Context, Root, check};
use crate::model::{Class, HostPath};

const UID: &str = "11111111-2222-3333-4444-555555555555";

/// A node with one volume that the kubelet publishes.
struct Node {
    dir: tempfile::TempDir,
    volume: String,
    publishes: u32,
}

impl Node {
    fn new(volume: &str, files: &[(&str, &str)]) -> Self {
        let volume = format!("/var/lib/kubelet/pods/{UID}/volumes/{volume}");
        let mut node = Self { dir: tempfile::tempdir().unwrap(), volume, publishes: 0 };
        node.publish(files);
        node
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join(self.volume.trim_start_matches('/'))
    }

    /// As `AtomicWriter` does it.
    fn publish(&mut self, files: &[(&str, &str)]) {
        self.publishes += 1;
        let (at, stamp) = (self.at(), format!("..2026_01_01.{}", self.publishes));
        fs::create_dir_all(at.join(&stamp)).unwrap();
        for (name, text) in files {
            fs::write(at.join(&stamp).join(name), text).unwrap();
            if self.publishes == 1 {
                symlink(Path::new("..data").join(name), at.join(name)).unwrap();
            }
        }
        symlink(&stamp, at.join("..data_tmp")).unwrap();
        fs::rename(at.join("..data_tmp"), at.join("..data")).unwrap();
    }

    fn seal(&self) -> (Vec<String>, Baseline, Vec<(String, WireEntry)>) {
        let root = Root::open(self.dir.path()).unwrap();
        let proposal = statement_for(&root, &[self.volume.as_str().into()], &Options::default()).unwrap();
        let baseline = parse(&proposal.statement.to_json().unwrap()).unwrap();
        let files = proposal.statement.predicate.objects[0].files.clone().unwrap();
        (proposal.notes, baseline, files.0.into_iter().collect())
    }

    fn check(&self, baseline: &Baseline) -> Vec<String> {
        let root = Root::open(self.dir.path()).unwrap();
        let mut said = Vec::new();
        for object in &*baseline.objects {
            let (_, differences) = check(&root, object, &Context::default(), None).unwrap();
            said.extend(differences.into_iter().map(|one| {
                let entry = String::from_utf8(one.entry.unwrap_or_default()).unwrap();
                format!("{entry}: {}", one.detail.unwrap_or_else(|| one.aspect.as_str().into()))
            }));
        }
        said
    }
}

#[test]
fn in_a_volume_roots_and_key_are_those_of_the_same_publish() {
    for (volume, [chain, key, roots]) in [
        ("kubernetes.io~secret/istio-certs", ["cert-chain.pem", "key.pem", "root-cert.pem"]),
        ("kubernetes.io~secret/istio-csr-dns-cert", ["tls.crt", "tls.key", "ca.crt"]),
    ] {
        let (root, evil) = (authority("root", 1), authority("root", 2));
        let files = |root_pem: &str, chain_pem: &str, key_pem: &str| {
            [(chain, chain_pem), (key, key_pem), (roots, root_pem)].map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        let publish = |node: &mut Node, root_pem: &str, chain_pem: &str, key_pem: &str| {
            let files = files(root_pem, chain_pem, key_pem);
            node.publish(&files.each_ref().map(|(name, text)| (name.as_str(), text.as_str())));
        };
        let (old, new) = (leaf(3), leaf(4));
        let sealed = files(&root.root(), &old.pem_by(&root), &old.key_pem());
        let mut node = Node::new(volume, &sealed.each_ref().map(|(a, b)| (a.as_str(), b.as_str())));
        let (notes, baseline, entries) = node.seal();
        let at = |name: &str| HostPath::from(format!("{}/{name}", node.volume).as_str());
        let opaque = "a rotated private key is opaque; its certificate is checked to match it";
        assert_eq!(notes, [format!("{}: {opaque}", at(key))]);
        let entry = |name: &str| &entries.iter().find(|(file, _)| file == name).unwrap().1;
        let Some(WireIdentity::X509 { key_file, roots: hashes, roots_file, .. }) = &entry(chain).identity
        else {
            panic!("{entries:?}")
        };
        assert_eq!((key_file, roots_file, hashes.len()), (&Some(at(key)), &Some(at(roots)), 1));
        assert_eq!((entry(roots).class, entry(roots).meaning.is_some()), (Class::Sealed, true));
        assert_eq!(node.check(&baseline), [""; 0]);

        publish(&mut node, &root.root(), &new.pem_by(&root), &new.key_pem());
        assert_eq!(node.check(&baseline), [""; 0], "a renewal");
        publish(&mut node, &evil.root(), &new.pem_by(&evil), &new.key_pem());
        let (ends, bundle) = (
            format!("{chain}: chain does not end in a sealed root"),
            format!(
                "{roots}: 1 certificate added to the bundle, 1 removed: whatever the added ones sign is trusted"
            ),
        );
        let mut said = node.check(&baseline);
        said.sort();
        let mut expected = [ends, bundle];
        expected.sort();
        assert_eq!(said, expected, "all three");
        publish(&mut node, &evil.root(), &old.pem_by(&root), &old.key_pem());
        assert_eq!(node.check(&baseline).len(), 2, "the root alone");
        publish(&mut node, &root.root(), &old.pem_by(&root), &new.key_pem());
        let key_said = format!("{chain}: does not belong to the private key beside it");
        assert_eq!(node.check(&baseline), [key_said]);
    }
}

#[test]
fn roots_out_of_a_volume_are_not_followed() {
    let (root, old) = (authority("root", 1), leaf(3));
    let mut node = Node::new(
        "kubernetes.io~secret/istio-certs",
        &[("cert-chain.pem", &old.pem_by(&root)), ("root-cert.pem", &root.root())],
    );
    let (_, baseline, _) = node.seal();
    node.publish(&[("cert-chain.pem", &old.pem_by(&root))]);
    fs::write(node.dir.path().join("root-cert.pem"), root.root()).unwrap();
    symlink("/root-cert.pem", node.at().join("..data/root-cert.pem")).unwrap();
    let said = node.check(&baseline);
    assert!(said.contains(&"cert-chain.pem: chain does not end in a sealed root".to_owned()), "{said:?}");
}

#[test]
fn a_note_says_that_a_key_is_checked_only_where_it_is() {
    let root = authority("root", 1);
    let node = Node::new(
        "kubernetes.io~secret/istio-certs",
        &[("cert-chain.pem", &leaf(3).pem_by(&root)), ("key.pem", &leaf(4).key_pem())],
    );
    let (notes, ..) = node.seal();
    let at = &node.volume;
    assert_eq!(
        notes,
        [
            format!("{at}/cert-chain.pem: no roots beside it; any issuer can renew it, names stay sealed"),
            format!(
                "{at}/key.pem: a rotated private key is opaque; no certificate beside it is its own, and none is checked to match it"
            ),
        ]
    );
}

fn token(pod: Option<&str>, issued: i64) -> String {
    use base64::Engine as _;
    let mut claims = serde_json::json!({
        "aud": ["istio-ca"], "iat": issued, "iss": "https://k", "sub": "system:serviceaccount:default:hello",
        "kubernetes.io": { "namespace": "default" },
    });
    if let Some(uid) = pod {
        claims["kubernetes.io"]["pod"] = serde_json::json!({ "name": "hello-1", "uid": uid });
    }
    let part = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.c2ln", part(r#"{"alg":"RS256"}"#.to_owned()), part(claims.to_string()))
}

#[test]
fn a_token_is_bound_to_the_pod_it_lies_in() {
    const OTHER: &str = "99999999-2222-3333-4444-555555555555";
    let projected = "kubernetes.io~projected/istio-token";
    let mut node = Node::new(projected, &[("istio-token", &token(Some(UID), 1))]);
    let (_, baseline, entries) = node.seal();
    let identity = &entries.last().unwrap().1.identity;
    assert!(matches!(identity, Some(WireIdentity::Token { pod_bound: true, .. })), "{identity:?}");
    let mut said = |pod: Option<&str>, baseline: &Baseline| {
        node.publish(&[("istio-token", &token(pod, 2))]);
        node.check(baseline)
    };
    assert_eq!(said(Some(UID), &baseline), [""; 0]);
    let other = format!("istio-token: pod {OTHER} instead of {UID}");
    assert_eq!(said(Some(OTHER), &baseline), [other.as_str()]);
    assert_eq!(said(None, &baseline), ["istio-token: bound to no pod"]);

    // Sealed without: the place still says whose one that is bound must be.
    let unbound = Node::new(projected, &[("istio-token", &token(None, 1))]).seal().1;
    assert_eq!(said(None, &unbound), [""; 0]);
    assert_eq!(said(Some(UID), &unbound), [""; 0]);
    assert_eq!(said(Some(OTHER), &unbound), [other]);
}

#[test]
fn the_pod_of_a_place_is_in_its_path() {
    for (path, pod) in [
        ("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~projected/t/token", Some("u-1")),
        ("/srv/k/pods/u-2/volume-subpaths/t/app/0", Some("u-2")),
        ("/var/run/pods/token", None),
        ("/pods/u-1/etc-hosts", None),
    ] {
        assert_eq!(super::pod_of(&path.into()).as_deref(), pod, "{path}");
    }
}

#[test]
fn a_chain_holds_certificates_and_keys_alone() {
    use crate::baseline::certs::pem;
    use crate::baseline::identity::extract;

    let (root, good) = (authority("root", 1), leaf(3));
    let (der, chain) = (leaf(4).by(&root), good.pem_by(&root));
    assert!(extract(chain.as_bytes()).is_ok());
    assert!(extract(format!("subject=x\n{chain}{}", good.key_pem()).as_bytes()).is_ok(), "with its key");
    // OpenSSL takes the first of these for the leaf.
    let expected = "expected PEM certificates and private keys, and no other block";
    for label in ["X509 CERTIFICATE", "TRUSTED CERTIFICATE", "CERTIFICATE REQUEST", "PUBLIC KEY"] {
        let text = format!("{}{chain}", pem(label, &der));
        assert_eq!(extract(text.as_bytes()).unwrap_err(), expected, "{label}");
    }
    let headers = pem("CERTIFICATE", &der).replacen("-----\n", "-----\nX: y\n\n", 1);
    for text in [format!("{headers}{chain}"), format!("{chain}{headers}"), format!("x{chain}{chain}")] {
        assert!(extract(text.as_bytes()).is_err(), "{text}");
    }
}

/// Seals a leaf with its key and the root in a directory, and says what each renewal is told for.
fn told(cases: Vec<(&str, String)>) {
    let root = authority("root", 1);
    let good = leaf(3);
    let name = |file: &str| format!("/certs/{file}");
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join("certs").join(file);
    fs::create_dir(dir.path().join("certs")).unwrap();
    fs::write(at("cert-chain.pem"), good.pem_by(&root)).unwrap();
    fs::write(at("key.pem"), good.key_pem()).unwrap();
    fs::write(at("root-cert.pem"), root.root()).unwrap();
    let host = Root::open(dir.path()).unwrap();
    let options = Options { class: Some(Class::Rotated), ..Options::default() };
    let proposal = statement_for(&host, &[name("cert-chain.pem").as_str().into()], &options).unwrap();
    assert_eq!(proposal.notes, [""; 0]);
    let baseline = parse(&proposal.statement.to_json().unwrap()).unwrap();
    for (expected, chain) in cases {
        fs::write(at("cert-chain.pem"), chain).unwrap();
        let (_, differences) = check(&host, &baseline.objects[0], &Context::default(), None).unwrap();
        let said: Vec<String> = differences.into_iter().filter_map(|one| one.detail).collect();
        let said = said.join("; ");
        if expected.is_empty() || expected.ends_with(' ') {
            assert!(said.starts_with(expected) && expected.is_empty() == said.is_empty(), "{said}");
        } else {
            assert_eq!(said, expected);
        }
    }
}

#[test]
fn a_renewed_leaf_is_in_time_and_a_leaf() {
    let root = authority("root", 1);
    let by_root = |draft: Draft| draft.pem_by(&root);
    let key_identifier = (vec![0x55, 0x1d, 14], true, tlv(4, b"k"));
    let unknown = |critical| (vec![0x2a, 3, 4], critical, vec![5, 0]);
    told(vec![
        ("", by_root(leaf(3))),
        ("expired at ", by_root(Draft { validity: (-48 * HOUR, -HOUR), ..leaf(3) })),
        ("not valid before ", by_root(Draft { validity: (2 * HOUR, 20 * HOUR), ..leaf(3) })),
        ("an authority instead of a leaf", by_root(Draft { authority: Some(None), ..leaf(3) })),
        ("may sign certificates, as a leaf must not", by_root(Draft { usage: 0x84, ..leaf(3) })),
        ("", by_root(Draft { validity: (-HOUR, 397 * 24 * HOUR), ..leaf(3) })),
        (
            "valid for 3650 days instead of 398 at most",
            by_root(Draft { validity: (-HOUR, 3650 * 24 * HOUR), ..leaf(3) }),
        ),
        ("", by_root(Draft { more: vec![key_identifier, unknown(false)], ..leaf(3) })),
        (
            "with a critical extension that is not known (1.2.3.4)",
            by_root(Draft { more: vec![unknown(true)], ..leaf(3) }),
        ),
        ("does not belong to the private key beside it", by_root(leaf(4))),
    ]);
}

#[test]
fn authorities_on_the_way_are_in_time_and_within_their_constraints() {
    let root = authority("root", 1);
    let by = |issuer: &Draft| format!("{}{}", leaf(3).pem_by(issuer), issuer.pem_by(&root));
    let with = |names: &str, critical, of: &str| {
        let tag = if of == "permitted" { 0xa0 } else { 0xa1 };
        let tree = tlv(0x30, &tlv(tag, &tlv(0x30, &names_of(&[names.to_owned()]))));
        let more = vec![(vec![0x55, 0x1d, 30], critical, tree)];
        by(&Draft { more, ..authority("middle", 5) })
    };
    let short = Draft { authority: Some(Some(0)), ..authority("short", 6) };
    let below = authority("below", 7);
    let refused =
        "its issuer has name constraints that do not permit spiffe://cluster.local/ns/default/sa/hello";
    told(vec![
        ("", by(&authority("middle", 5))),
        ("", by(&short)),
        (
            "its issuer may not have so many authorities below it",
            format!("{}{}{}", leaf(3).pem_by(&below), below.pem_by(&short), short.pem_by(&root)),
        ),
        ("its issuer is expired at ", by(&Draft { validity: (-48 * HOUR, -HOUR), ..authority("middle", 5) })),
        ("its issuer may not sign certificates", by(&Draft { usage: 0x80, ..authority("middle", 5) })),
        (refused, with("URI:other.org", true, "permitted")),
        (refused, with("URI:.cluster.local", false, "permitted")),
        (refused, with("URI:cluster.local", true, "excluded")),
        ("", with("URI:Cluster.Local", true, "permitted")),
        ("", with("DNS:other.org", true, "permitted")),
        ("", with("email:other.org", true, "permitted")),
        (
            "a certificate in the chain is not signed by the next one",
            format!("{}{}", leaf(3).pem_by(&below), authority("below", 8).pem_by(&root)),
        ),
        ("chain does not end in a sealed root", leaf(3).pem_by(&authority("root", 2))),
    ]);
}

#[test]
fn what_cannot_be_checked_is_told_as_that() {
    // ecdsa-with-SHA512.
    let algorithm = vec![0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4];
    let root = authority("root", 1);
    let strange = Draft { algorithm, ..leaf(3) };
    let reason = "cannot check signatures of this algorithm (1.2.840.10045.4.3.4)";
    told(vec![(reason, strange.pem_by(&root))]);
    let node = Node::new(
        "kubernetes.io~secret/istio-certs",
        &[("cert-chain.pem", &strange.pem_by(&root)), ("root-cert.pem", &root.root())],
    );
    let (notes, ..) = node.seal();
    assert_eq!(notes, [format!("{}/cert-chain.pem: does not hold as it is: {reason}", node.volume)]);
}

#[test]
fn a_seal_without_lifetime_bounds_none() {
    let sealed = serde_json::json!({ "kind": "x509", "sans": [format!("URI:{SPIFFE}")] });
    let sealed: WireIdentity = serde_json::from_value(sealed).unwrap();
    let sealed = sealed.into_sealed("").unwrap();
    let long = Draft { validity: (-HOUR, 3650 * 24 * HOUR), ..leaf(3) };
    let found = super::extract(long.pem_by(&authority("root", 1)).as_bytes()).unwrap();
    let known = super::Known::default();
    assert_eq!(super::keeps_identity(&sealed, None, &found, &known, crate::model::Time::now()), Ok(()));
}
