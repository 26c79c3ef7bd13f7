//! The kubelet's `AtomicWriter` (`pkg/volume/util/atomic_writer.go`), step by step, with its system calls in its order.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};

/// What a volume is to hold: name → bytes and mode.
pub(crate) type Payload = BTreeMap<String, (Vec<u8>, u32)>;

/// The files of a directory as a payload.
pub(crate) fn payload(dir: &Path) -> Result<Payload> {
    let mut payload = Payload::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("not UTF-8")?;
        let mode = entry.metadata()?.permissions().mode() & 0o7777;
        payload.insert(name, (fs::read(entry.path())?, mode));
    }
    Ok(payload)
}

/// Steps 2 to 12: publishes into `..<timestamp>` unless all is as it is to be. `group` is the pod's fsGroup.
pub(crate) fn sync(volume: &Path, timestamp: &str, payload: &Payload, group: Option<u32>) -> Result<()> {
    if is_current(volume, payload) {
        // An old kubelet sets owners on every sync, whether anything changed or not.
        if let Some(group) = group {
            own(volume, group)?;
        }
        return link_names(volume, payload);
    }
    write(volume, timestamp, payload, group)
}

/// Steps 5 to 12: publishes, whatever is there.
pub(crate) fn write(volume: &Path, timestamp: &str, payload: &Payload, group: Option<u32>) -> Result<()> {
    let before = fs::read_link(volume.join("..data")).ok();
    let new = volume.join(format!("..{timestamp}"));
    fs::create_dir(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    for (name, (bytes, mode)) in payload {
        fs::write(new.join(name), bytes)?;
        fs::set_permissions(new.join(name), fs::Permissions::from_mode(*mode))?;
    }
    if let Some(group) = group {
        own(volume, group)?;
    }
    symlink(format!("..{timestamp}"), volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    link_names(volume, payload)?;
    for entry in fs::read_dir(volume)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if !name.starts_with("..") && !payload.contains_key(&name) {
            fs::remove_file(volume.join(name))?;
        }
    }
    if let Some(before) = before {
        fs::remove_dir_all(volume.join(before))?;
    }
    Ok(())
}

/// Steps 2 to 4: what is published has these bytes.
fn is_current(volume: &Path, payload: &Payload) -> bool {
    let data = volume.join("..data");
    let Ok(names) = fs::read_link(&data).and_then(|_| fs::read_dir(&data)) else { return false };
    names.count() == payload.len()
        && payload.iter().all(|(name, (bytes, _))| fs::read(data.join(name)).is_ok_and(|now| now == *bytes))
}

/// Step 10: visible names, where there is none. A file in place of a link is left alone, as the kubelet leaves it.
fn link_names(volume: &Path, payload: &Payload) -> Result<()> {
    for name in payload.keys() {
        if fs::symlink_metadata(volume.join(name)).is_err() {
            symlink(format!("..data/{name}"), volume.join(name))?;
        }
    }
    Ok(())
}

/// Step 7 (`SetVolumeOwnership`): the group gets all there is, old and new.
fn own(dir: &Path, group: u32) -> Result<()> {
    let meta = fs::symlink_metadata(dir)?;
    if meta.is_symlink() {
        return Ok(());
    }
    chown(dir, None, Some(group))?;
    let mode = meta.permissions().mode() & 0o7777 | if meta.is_dir() { 0o2550 } else { 0o440 };
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(dir)? {
            own(&entry?.path(), group)?;
        }
    }
    Ok(())
}
