//! The cluster's own certificates and kubeconfigs, made by openssl for one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::places::{ADDRESS, NODE, Places};
use crate::cmd;

/// File name and subject of each identity.
const IDENTITIES: [(&str, &str); 5] = [
    ("apiserver", "/CN=kube-apiserver"),
    ("admin", "/O=system:masters/CN=admin"),
    ("node", "/O=system:nodes/CN=system:node:node1"),
    ("kcm", "/CN=system:kube-controller-manager"),
    ("sched", "/CN=system:kube-scheduler"),
];

/// Makes `pki/` and a kubeconfig for each identity.
pub(crate) fn make(places: &Places) -> Result<()> {
    let pki = places.work.join("pki");
    fs::create_dir_all(&pki).with_context(|| format!("cannot create {}", pki.display()))?;
    key(&pki, "ca.key")?;
    openssl(
        &pki,
        &[
            "req",
            "-x509",
            "-new",
            "-key",
            "ca.key",
            "-out",
            "ca.crt",
            "-subj",
            "/CN=meshseal-node-ca",
            "-days",
            "3650",
        ],
    )?;
    key(&pki, "sa.key")?;
    openssl(&pki, &["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"])?;
    fs::write(
        pki.join("names"),
        format!(
            "subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,DNS:{NODE},IP:127.0.0.1,IP:{ADDRESS},IP:10.96.0.1\n\
             extendedKeyUsage=serverAuth,clientAuth\n"
        ),
    )
    .context("cannot write the certificates' names")?;
    for (name, subject) in IDENTITIES {
        let (key_file, request, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
        key(&pki, &key_file)?;
        openssl(&pki, &["req", "-new", "-key", &key_file, "-out", &request, "-subj", subject])?;
        openssl(
            &pki,
            &[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "3650",
                "-extfile",
                "names",
                "-out",
                &certificate,
            ],
        )?;
        kubeconfig(places, &pki, name)?;
    }
    Ok(())
}

/// Makes the mesh's signing authority as an operator does: a root, and an intermediate that istiod signs with. The answer is its files.
pub(crate) fn mesh_authority(places: &Places) -> Result<[PathBuf; 4]> {
    let dir = places.work.join("cacerts");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    key(&dir, "root-key.pem")?;
    let root = ["req", "-x509", "-new", "-key", "root-key.pem", "-out", "root-cert.pem", "-days", "3650"];
    openssl(&dir, &[&root[..], &["-subj", "/O=meshseal-node/CN=Root CA"]].concat())?;
    key(&dir, "ca-key.pem")?;
    let request = ["req", "-new", "-key", "ca-key.pem", "-out", "ca.csr"];
    openssl(&dir, &[&request[..], &["-subj", "/O=meshseal-node/CN=Intermediate CA"]].concat())?;
    let extensions = "basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n";
    fs::write(dir.join("extensions"), extensions).context("cannot write the authority's extensions")?;
    let sign = ["x509", "-req", "-in", "ca.csr", "-CA", "root-cert.pem", "-CAkey", "root-key.pem"];
    let as_authority = ["-CAcreateserial", "-extfile", "extensions", "-days", "730", "-out", "ca-cert.pem"];
    openssl(&dir, &[&sign[..], &as_authority].concat())?;
    let read = |name: &str| fs::read_to_string(dir.join(name)).with_context(|| format!("cannot read {name}"));
    let chain = format!("{}{}", read("ca-cert.pem")?, read("root-cert.pem")?);
    fs::write(dir.join("cert-chain.pem"), chain).context("cannot write the authority's chain")?;
    Ok(["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"].map(|name| dir.join(name)))
}

fn key(pki: &Path, name: &str) -> Result<()> {
    openssl(pki, &["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", name])
}

fn openssl(pki: &Path, args: &[&str]) -> Result<()> {
    cmd::output(Command::new("openssl").current_dir(pki).args(args)).map(drop)
}

fn kubeconfig(places: &Places, pki: &Path, name: &str) -> Result<()> {
    let pki = pki.display();
    let text = format!(
        "apiVersion: v1\nkind: Config\n\
         clusters: [{{name: node, cluster: {{server: \"https://{ADDRESS}:6443\", certificate-authority: {pki}/ca.crt}}}}]\n\
         users: [{{name: user, user: {{client-certificate: {pki}/{name}.crt, client-key: {pki}/{name}.key}}}}]\n\
         contexts: [{{name: node, context: {{cluster: node, user: user}}}}]\n\
         current-context: node\n"
    );
    let path = places.work.join(format!("{name}.kubeconfig"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
