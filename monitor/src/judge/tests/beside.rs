//! A certificate and the private key beside it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Bench, Root, sealed};
use crate::baseline::certs::{Draft, HOUR, SPIFFE, authority, leaf};
use crate::baseline::identity::SealedIdentity;
use crate::baseline::{Content, Seal, SealedObject};
use crate::model::{Class, HostPath, Operation};
use crate::status::Posture;

fn make(root: &std::path::Path) {
    std::fs::create_dir(root.join("pair")).unwrap();
    std::fs::write(root.join("pair/cert.pem"), issued(&leaf(3))).unwrap();
    std::fs::write(root.join("pair/key.pem"), leaf(3).key_pem()).unwrap();
}

fn issued(draft: &Draft) -> String {
    draft.pem_by(&authority("root", 1))
}

/// As a rotated pair is sealed: the certificate by what it says, of the key nothing.
fn pair(root: &Root) -> Vec<SealedObject> {
    let [mut certificate, mut key] =
        ["/pair/cert.pem", "/pair/key.pem"].map(|path| sealed(root, &HostPath::from(path)));
    let identity = SealedIdentity::X509 {
        sans: BTreeSet::from([format!("URI:{SPIFFE}")]),
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

async fn bench() -> Bench {
    let bench = Bench::new(make, &[]).await;
    bench.offer(pair(&Root::open(bench.dir.path()).unwrap()), 2, None).await;
    bench.is_soon(Posture::Intact).await;
    bench
}

impl Bench {
    async fn copies(&self, content: String, file: &str) {
        std::fs::write(self.path(file), content).unwrap();
        self.see("cp", Operation::Write, file, |_| {}).await;
    }
}

#[tokio::test]
async fn a_key_that_is_replaced_leaves_no_pair() {
    let bench = bench().await;
    bench.copies(leaf(4).key_pem(), "/pair/key.pem").await;
    bench.is_soon(Posture::Violated).await;
    assert_eq!(bench.verdicts().await, ["opened Identity /pair/cert.pem Write cp"]);
}

#[tokio::test]
async fn a_good_certificate_is_not_held_to_the_bad_one_before_it() {
    let bench = bench().await;
    bench.copies(issued(&Draft { validity: (2 * HOUR, 20 * HOUR), ..leaf(3) }), "/pair/cert.pem").await;
    bench.is_soon(Posture::Violated).await;
    bench.copies(issued(&leaf(3)), "/pair/cert.pem").await;
    let expected = [
        "opened Identity /pair/cert.pem Write cp",
        // Put there by nobody who may.
        "opened Content /pair/cert.pem Write cp",
        "Restored Identity /pair/cert.pem",
    ];
    assert_eq!(bench.verdicts().await, expected);
}
