//! Images that other tools made.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::layout::{Bench, paths, rootfs};

/// Runs a tool to success, if it is there at all.
fn tool(dir: &Path, line: &str) -> bool {
    let mut words = line.split_whitespace();
    match Command::new(words.next().unwrap()).args(words).current_dir(dir).output() {
        Ok(output) => {
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => false,
    }
}

/// Everything below that is no directory, by its path in the image.
fn files(root: &Path) -> Vec<String> {
    let (mut all, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else {
                all.push(format!("/{}", entry.path().strip_prefix(root).unwrap().to_str().unwrap()));
            }
        }
    }
    all.sort();
    all
}

/// Layers and archives as umoci and skopeo make them, against a tree that umoci unpacked.
#[test]
fn images_that_other_tools_made_are_as_those_tools_unpack_them() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    if !rustix::process::geteuid().is_root() || !tool(dir, "umoci --version") {
        eprintln!("passed over: needs root and umoci");
        return;
    }
    let umoci = |line: &str| assert!(tool(dir, &format!("umoci {line}")));
    umoci("init --layout l");
    umoci("new --image l:1");
    umoci("config --image l:1 --config.entrypoint /usr/bin/envoy");
    umoci("unpack --image l:1 one");
    rootfs(&bench.path("one/rootfs"));
    let at = |path: &str| bench.path("one/rootfs").join(path);
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::set_permissions(at("d/2"), fs::Permissions::from_mode(0o2511)).unwrap();
    std::os::unix::fs::chown(at("etc/a"), Some(70_000), Some(3_000_000_000)).unwrap();
    fs::set_permissions(at("etc/a"), fs::Permissions::from_mode(0o4755)).unwrap();
    umoci("repack --image l:1 one");
    // A second layer: changes, whiteouts, a link in place of a directory, another name of a file of the first.
    umoci("unpack --image l:1 two");
    let at = |path: &str| bench.path("two/rootfs").join(path);
    fs::write(at("o/new"), "newer").unwrap();
    fs::remove_file(at("usr/lib/y.so")).unwrap();
    fs::remove_dir_all(at("d")).unwrap();
    symlink("o", at("d")).unwrap();
    fs::hard_link(at("usr/bin/envoy"), at("usr/bin/third")).unwrap();
    umoci("repack --image l:1 two");
    umoci("unpack --image l:1 bundle");
    fs::rename(bench.path("bundle/rootfs"), bench.path("rootfs")).unwrap();
    let expected: Vec<String> =
        files(&bench.path("rootfs")).into_iter().filter(|path| path != "/fifo").collect();

    let mut images = vec!["l"];
    if tool(dir, "skopeo --version") {
        let skopeo = |line: &str| assert!(tool(dir, &format!("skopeo --insecure-policy copy {line}")));
        skopeo("oci:l:1 docker-archive:saved.tar:r.example/p:1");
        skopeo("oci:l:1 oci-archive:o.tar:1");
        skopeo("--dest-compress-format zstd oci:l:1 oci:z:1");
        images.extend(["saved.tar", "o.tar", "z"]);
    }
    for image in images {
        let args =
            ["seal", "--images", image, "--glob", "/**", "--image-name", "r.example/p:1", "-o", "s.json"];
        let (status, _, stderr) = bench.run(&args);
        assert_eq!(status, 0, "{image}: {stderr}");
        let listed: Vec<&str> = stderr.lines().filter(|line| line.contains("not sealed")).collect();
        assert_eq!(listed.len(), 1, "{image}: the FIFO: {stderr}");
        assert_eq!(bench.run(&["sign", "--key", "key.pem", "s.json", "-o", "b.json"]).0, 0);
        let statement: Value = serde_json::from_slice(&fs::read(bench.path("s.json")).unwrap()).unwrap();
        assert_eq!(paths(statement["predicate"]["objects"].as_array().unwrap()), expected, "{image}");
        assert_eq!(bench.verify("r.example/p:1"), (0, Vec::new()), "{image}");
        let file = bench.path("rootfs/usr/lib/x.so");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let both = ["/o/x.so", "/usr/lib/x.so"].map(|path| (path.to_owned(), "attributes".to_owned()));
        assert_eq!(bench.verify("r.example/p:1"), (1, both.to_vec()), "{image}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let objects = bench.seal("l", &[]);
    assert_eq!(paths(&objects), ["/usr/bin/envoy"], "what it runs");
}
