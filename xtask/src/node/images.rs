//! The images of the node's own pods: pause, busybox and, for the mesh, istiod and the proxy. Small roots of this machine's C library and
//! busybox, and the built programs.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::parts::{Mesh, Parts};
use crate::cache::Cache;
use crate::cmd::{self, say};
use crate::package::oci::{self, sha256};
use crate::package::tar::Tar;

/// Changed when what this file puts into the images changes.
const REVISION: &str = "1";

/// The directory, beside the images, of those that only some runs load.
pub(crate) const LATER: &str = "later";

/// Where images of that short name live; no registry has them.
pub(crate) fn name(short: &str) -> String {
    format!("docker.io/meshseal-node/{short}:1")
}

/// An image whose program is one more busybox, where proxies have theirs: at [`PROGRAM`]. The answer is its archive.
pub(crate) fn proxy() -> Result<Vec<u8>> {
    let busybox =
        cmd::find("busybox").context("busybox is missing: the package busybox-static provides it")?;
    let busybox = read(&busybox)?;
    let mut root = base(&busybox, &[])?;
    root.file(PROGRAM.trim_start_matches('/'), 0o755, &busybox)?;
    archive("proxy", "0:0", PROGRAM, root)
}

/// The program of [`proxy`].
pub(crate) const PROGRAM: &str = "/usr/local/bin/busybox";

/// The directory with the image archives: one for the plain node, one with the mesh's as well.
pub(crate) fn provide(parts: &Parts) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let busybox =
        cmd::find("busybox").context("busybox is missing: the package busybox-static provides it")?;
    let busybox = read(&busybox)?;
    let libraries = libraries()?;
    let mut inputs = REVISION.as_bytes().to_vec();
    inputs.extend_from_slice(sha256(&busybox).as_bytes());
    for (path, content) in &libraries {
        inputs.extend_from_slice(format!("{path} {}", sha256(content)).as_bytes());
    }
    if let Some(mesh) = &parts.mesh {
        for part in [&mesh.istio, &mesh.envoy, &mesh.cni] {
            inputs.extend_from_slice(format!("{} ", part.display()).as_bytes());
        }
    }
    let digest = sha256(&inputs);
    let kind = if parts.mesh.is_some() { "mesh" } else { "plain" };
    let key = format!("{kind}-{}", digest.get(..12).unwrap_or_default());
    cache.entry("node/images", &key, |dir| {
        say!("packing the images of the node's pods");
        let mut pause = Tar::default();
        pause.file("pause", 0o755, &pause_program()?)?;
        write(dir, "pause", "0:0", "/pause", pause)?;
        write(dir, "busybox", "0:0", "/bin/sh", base(&busybox, &libraries)?)?;
        if let Some(mesh) = &parts.mesh {
            mesh_images(dir, mesh, &busybox, &libraries)?;
        }
        Ok(())
    })
}

fn mesh_images(dir: &Path, mesh: &Mesh, busybox: &[u8], libraries: &[(String, Vec<u8>)]) -> Result<()> {
    let bootstrap = read(&mesh.bootstrap)?;
    let root = || -> Result<Tar> {
        let mut root = base(busybox, libraries)?;
        root.file("var/lib/istio/envoy/envoy_bootstrap_tmpl.json", 0o644, &bootstrap)?;
        Ok(root)
    };
    let mut pilot = root()?;
    pilot.file("usr/local/bin/pilot-discovery", 0o755, &read(&mesh.istio.join("pilot-discovery"))?)?;
    write(dir, "pilot", "1337:1337", "/usr/local/bin/pilot-discovery", pilot)?;
    let mut proxy = root()?;
    proxy.file("usr/local/bin/pilot-agent", 0o755, &read(&mesh.istio.join("pilot-agent"))?)?;
    proxy.file("usr/local/bin/envoy", 0o755, &read(&mesh.envoy)?)?;
    write(dir, "proxyv2", "1337:1337", "/usr/local/bin/pilot-agent", proxy)?;
    // Where Istio's own image has them. The image is loaded by the runs that install the plugin only.
    let mut cni = base(busybox, libraries)?;
    for parent in ["opt", "opt/cni", "opt/cni/bin"] {
        cni.directory(parent, 0o755)?;
    }
    cni.file("opt/cni/bin/istio-cni", 0o755, &read(&mesh.cni.join("istio-cni"))?)?;
    cni.file("usr/local/bin/install-cni", 0o755, &read(&mesh.cni.join("install-cni"))?)?;
    let later = dir.join(LATER);
    fs::create_dir_all(&later).with_context(|| format!("cannot create {}", later.display()))?;
    write(&later, "install-cni", "0:0", "/usr/local/bin/install-cni", cni)
}

fn archive(short: &str, user: &str, entrypoint: &str, layer: Tar) -> Result<Vec<u8>> {
    oci::archive(oci::Image {
        name: &name(short),
        entrypoint: &[entrypoint],
        cmd: &[],
        user,
        path: "/bin:/usr/bin:/usr/local/bin",
        labels: &[],
        layer,
    })
}

fn write(dir: &Path, short: &str, user: &str, entrypoint: &str, layer: Tar) -> Result<()> {
    let archive = archive(short, user, entrypoint, layer)?;
    let path = dir.join(format!("{short}.tar"));
    fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))
}

fn base(busybox: &[u8], libraries: &[(String, Vec<u8>)]) -> Result<Tar> {
    let mut root = Tar::default();
    for dir in [
        "bin",
        "etc",
        "lib",
        "lib/x86_64-linux-gnu",
        "lib64",
        "usr",
        "usr/local",
        "usr/local/bin",
        "var",
        "var/lib",
        "var/lib/istio",
        "var/lib/istio/envoy",
    ] {
        root.directory(dir, 0o755)?;
    }
    root.directory("tmp", 0o1777)?;
    root.file("bin/busybox", 0o755, busybox)?;
    for applet in [
        "cat", "chmod", "chown", "cp", "dd", "echo", "ln", "ls", "mv", "rm", "sed", "sh", "sleep", "stat",
        "touch",
    ] {
        root.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    root.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nistio-proxy:x:1337:1337::/:/bin/sh\n")?;
    root.file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n")?;
    for (path, content) in libraries {
        root.file(path, 0o755, content)?;
    }
    Ok(root)
}

/// The C library that Istio's and Envoy's binaries are linked against dynamically.
fn libraries() -> Result<Vec<(String, Vec<u8>)>> {
    let mut found =
        vec![("lib64/ld-linux-x86-64.so.2".to_owned(), read(Path::new("/lib64/ld-linux-x86-64.so.2"))?)];
    for name in ["libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2", "librt.so.1"] {
        let path = format!("lib/x86_64-linux-gnu/{name}");
        let from = Path::new("/").join(&path);
        if from.exists() {
            found.push((path, read(&from)?));
        } else if name == "libc.so.6" {
            bail!("{} is missing: a node can be built on Debian or Ubuntu for amd64 only", from.display());
        }
    }
    Ok(found)
}

/// What holds a pod's namespaces: sleeps until it is told to stop.
fn pause_program() -> Result<Vec<u8>> {
    const SOURCE: &str = "#include <signal.h>\n#include <unistd.h>\nstatic void quit(int s) { (void)s; _exit(0); }\n\
                          int main(void) { signal(SIGTERM, quit); signal(SIGINT, quit); for (;;) pause(); }\n";
    let dir = tempfile::tempdir().context("cannot create a temporary directory")?;
    let program = dir.path().join("pause");
    let mut compiler = Command::new("cc")
        .args(["-static", "-O2", "-x", "c", "-o"])
        .arg(&program)
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start cc")?;
    if let Some(mut stdin) = compiler.stdin.take() {
        stdin.write_all(SOURCE.as_bytes()).context("cc does not read its input")?;
    }
    if !compiler.wait().context("cannot wait for cc")?.success() {
        bail!("cc could not build the pause program: is libc6-dev installed?");
    }
    read(&program)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
