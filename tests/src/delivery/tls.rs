//! Certificates by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::agent::told;

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

/// A certificate authority, and what it signed.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    pub(super) ca: PathBuf,
    /// For 127.0.0.1.
    pub(super) server: Pair,
    pub(super) client: Pair,
}

const CONFIG: &str = "[req]
distinguished_name = dn
prompt = no
[dn]
CN = meshseal test
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = IP:127.0.0.1
";

/// Makes all of it in `dir`.
pub(super) fn make(dir: &Path) -> Result<Pki> {
    fs::create_dir_all(dir)?;
    let config = dir.join("openssl.cnf");
    fs::write(&config, CONFIG)?;
    let pair =
        |name: &str| Pair { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
    let issue = |pair: &Pair, extensions: &str, by: Option<&Pair>| -> Result<()> {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-days", "2", "-nodes", "-extensions", extensions, "-config"])
            .arg(&config);
        openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        openssl.arg("-keyout").arg(&pair.key).arg("-out").arg(&pair.cert);
        if let Some(ca) = by {
            openssl.arg("-CA").arg(&ca.cert).arg("-CAkey").arg(&ca.key);
            openssl.args(["-subj", "/CN=meshseal leaf"]);
        }
        told(&mut openssl).map(drop)
    };
    let (ca, server, client) = (pair("ca"), pair("server"), pair("client"));
    issue(&ca, "ca", None)?;
    issue(&server, "leaf", Some(&ca))?;
    issue(&client, "leaf", Some(&ca))?;
    Ok(Pki { ca: ca.cert, server, client })
}
