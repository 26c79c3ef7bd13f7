//! A certificate and the private key beside it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Bench, Root, sealed};
use crate::baseline::identity::SealedIdentity;
use crate::baseline::{Content, Seal, SealedObject};
use crate::model::{Class, HostPath, Operation};
use crate::status::Posture;

// Made for these tests, and used nowhere else.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBRDCB96ADAgECAhRV1ULMANf1ziB6HLUbirutnTCZazAFBgMrZXAwDDEKMAgG
A1UEAwwBeDAgFw0yNjExMjcxMjE2NDhaGA8yMTI2MTEwMzEyMTY0OFowDDEKMAgG
A1UEAwwBeDAqMAUGAytlcAMhAEMyVunZ+2VLuR+05qTMEtGB2vzmIe061VJbb5KH
hkfxo2kwZzAdBgNVHQ4EFgQU6RwsXze7vGcQMcm6Esj/4yIrOVMwHwYDVR0jBBgw
FoAU6RwsXze7vGcQMcm6Esj/4yIrOVMwFwYDVR0RBBAwDoYMc3BpZmZlOi8vYS9i
MAwGA1UdEwEB/wQCMAAwBQYDK2VwA0EARvwQNzHfsVjLbDYFoCft2xbOKXPJtVdB
/N6i7YyTweWGy0kaPlC+UYhdkDGiQJOoDNRG9o5pJioMdA2tmvdJAw==
-----END CERTIFICATE-----
";
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIN9xxJwu9FKy0J6PBlE0ztHqGm/wxzSomi9Wc9QXm7vL
-----END PRIVATE KEY-----
";
const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINEuwBpcMmhd15nhoONZSekIhca6ynOGUUtrT/h6bOWH
-----END PRIVATE KEY-----
";

/// As a rotated pair is sealed: the certificate by what it says, of the key nothing.
fn pair(root: &Root) -> Vec<SealedObject> {
    let [mut certificate, mut key] =
        ["/pair/cert.pem", "/pair/key.pem"].map(|path| sealed(root, &HostPath::from(path)));
    let identity = SealedIdentity::X509 {
        sans: BTreeSet::from(["URI:spiffe://a/b".to_owned()]),
        roots: BTreeSet::new(),
        roots_file: None,
        key_file: Some(key.path.clone()),
        lifetime: None,
    };
    certificate.seal = Seal::File(Content::Identity(Arc::new(identity)));
    Arc::make_mut(&mut certificate.rule).class = Class::Rotated;
    key.seal = Seal::File(Content::Any);
    Arc::make_mut(&mut key.rule).class = Class::Opaque;
    vec![certificate, key]
}

#[tokio::test]
async fn a_key_that_is_replaced_leaves_no_pair() {
    let make = |root: &std::path::Path| {
        std::fs::create_dir(root.join("pair")).unwrap();
        std::fs::write(root.join("pair/cert.pem"), CERTIFICATE).unwrap();
        std::fs::write(root.join("pair/key.pem"), KEY).unwrap();
    };
    let bench = Bench::new(make, &[]).await;
    let objects = pair(&Root::open(bench.dir.path()).unwrap());
    bench.offer(objects, 2, None).await;
    bench.is_soon(Posture::Intact).await;
    std::fs::write(bench.path("/pair/key.pem"), OTHER_KEY).unwrap();
    bench.see("cp", Operation::Write, "/pair/key.pem", |_| {}).await;
    bench.is_soon(Posture::Violated).await;
    assert_eq!(bench.verdicts().await, ["opened Identity /pair/cert.pem Write cp"]);
}
