//! Kernel modules: which files a module needs, in the order they must be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A module ready to be loaded.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// Uncompressed.
    pub(crate) content: Vec<u8>,
}

/// The modules of a tree that are named and all they depend on, each after what it needs. One of `drivers` that is not in the tree is
/// built in (which differs between kernels; the guest notices when it is not); any other name must be there.
pub(crate) fn ordered(tree: &Path, drivers: &[&str], wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(tree, &mut files)?;
    let mut order = Vec::new();
    for name in drivers.iter().filter(|name| files.contains_key(**name)) {
        visit(&files, name, &mut order, 0)?;
    }
    for name in wanted {
        visit(&files, name, &mut order, 0)?;
    }
    Ok(order)
}

fn visit(files: &BTreeMap<String, PathBuf>, name: &str, order: &mut Vec<Module>, depth: usize) -> Result<()> {
    let name = name.replace('-', "_");
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    if depth > 16 {
        bail!("the modules around {name} depend on each other in a circle");
    }
    let file = files.get(&name).with_context(|| format!("the kernel package has no module {name}"))?;
    let content = read(file)?;
    for needed in depends(&content) {
        visit(files, &needed, order, depth + 1)?;
    }
    order.push(Module { name, content });
    Ok(())
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|ext| ext == "xz") {
        let out = Command::new("xz")
            .arg("-dc")
            .arg(file)
            .output()
            .context("cannot start xz: the package xz-utils provides it")?;
        if !out.status.success() {
            bail!("xz cannot unpack {}: {}", file.display(), String::from_utf8_lossy(&out.stderr).trim());
        }
        return Ok(out.stdout);
    }
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The `depends=` line of a module's `.modinfo` section, a list of NUL-terminated strings.
fn depends(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = content.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = content.get(at + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("drivers")).unwrap();
        let module = |name: &str, depends: &str| {
            fs::write(dir.path().join(name), format!("license=GPL\0depends={depends}\0retpoline=Y\0"))
                .unwrap();
        };
        module("virtio_blk.ko", "virtio,virtio_ring");
        module("drivers/virtio_ring.ko", "virtio");
        module("drivers/virtio.ko", "");
        module("unused.ko", "");
        let names: Vec<String> = ordered(dir.path(), &["virtio_ring", "built_in"], &["virtio-blk", "virtio"])
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_blk"]);
        assert_eq!(
            ordered(dir.path(), &[], &["nothing"]).unwrap_err().to_string(),
            "the kernel package has no module nothing"
        );
    }
}
