//! What processes of a node can be told to do: as a kubelet, as an agent in a pod, or as somebody who has no business there.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;

use crate::atomic;

/// Does what these words say.
pub(crate) fn act(words: &[&str]) -> Result<()> {
    let (verb, rest) = words.split_first().context("nothing to do")?;
    let paths: Vec<&Path> = rest.iter().map(Path::new).collect();
    match (*verb, paths.as_slice()) {
        ("read", [file]) => fs::read(file).map(drop)?,
        ("write", [file, text]) => fs::write(file, text.as_os_str().as_encoded_bytes())?,
        ("copy", [from, to]) => fs::write(to, fs::read(from)?)?,
        ("append", [file, text]) => {
            let mut file = fs::OpenOptions::new().append(true).open(file)?;
            file.write_all(text.as_os_str().as_encoded_bytes())?;
        }
        ("swap", [file, text]) => {
            let new = PathBuf::from(format!("{}.tmp.1", file.display()));
            fs::write(&new, text.as_os_str().as_encoded_bytes())?;
            fs::rename(&new, file)?;
        }
        ("put", [from, to, mode]) => {
            let mode = u32::from_str_radix(mode.to_str().context("not UTF-8")?, 8)?;
            let new = PathBuf::from(format!("{}.tmp.314159265", to.display()));
            fs::write(&new, fs::read(from)?)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
            fs::rename(&new, to)?;
        }
        ("chain", [file, plugin, entry]) => chain(file, plugin.to_str().context("not UTF-8")?, entry)?,
        ("rename", [from, to]) => fs::rename(from, to)?,
        ("remove", [file]) => fs::remove_file(file)?,
        ("chmod", [file, mode]) => {
            let mode = u32::from_str_radix(mode.to_str().context("not UTF-8")?, 8)?;
            fs::set_permissions(file, fs::Permissions::from_mode(mode))?;
        }
        ("touch", [file]) => {
            let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
            let times = fs::FileTimes::new().set_accessed(then).set_modified(then);
            fs::File::open(file)?.set_times(times)?;
        }
        ("socket", [path]) => {
            // Whoever is there is not asked.
            let _there = fs::remove_file(path);
            // A volume's path is longer than an address may be.
            std::env::set_current_dir(path.parent().context("no directory")?)?;
            drop(std::os::unix::net::UnixListener::bind(path.file_name().context("no name")?)?);
            std::env::set_current_dir("/")?;
        }
        ("cover", [path]) => rustix::mount::mount("tmpfs", *path, "tmpfs", MountFlags::empty(), None)?,
        ("attach", [pid]) => attach(pid.to_str().context("not UTF-8")?.parse()?)?,
        _ => volume(words)?,
    }
    Ok(())
}

/// What is done to volumes and to the directories of pods.
fn volume(words: &[&str]) -> Result<()> {
    match words {
        ["mkdir", dir, mode] => {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(u32::from_str_radix(mode, 8)?))?;
        }
        ["tmpfs", dir] => {
            let options = c"mode=1777";
            rustix::mount::mount("tmpfs", *dir, "tmpfs", MountFlags::empty(), Some(options))?;
        }
        ["sync", volume, timestamp, stage, group] => {
            let group = (*group != "-").then(|| group.parse()).transpose()?;
            atomic::sync(Path::new(volume), timestamp, &atomic::payload(Path::new(stage))?, group)?;
        }
        ["renew", dir, stage] => renew(Path::new(dir), Path::new(stage))?,
        ["tear", volume, "tmpfs"] => {
            rustix::mount::unmount(*volume, UnmountFlags::empty())?;
            fs::remove_dir_all(volume)?;
        }
        // `RenameDirectory`, then all of it: nobody sees half a volume.
        ["tear", volume, "disk"] => {
            let away = format!("{volume}.deleting~3141592653");
            fs::create_dir(&away)?;
            fs::rename(volume, &away)?;
            fs::remove_dir_all(&away)?;
        }
        ["rmtree", dir] => fs::remove_dir_all(dir)?,
        ["replace", file, stage] => {
            fs::remove_file(file)?;
            fs::write(file, fs::read(stage)?)?;
        }
        // What the volume points to becomes a directory of somebody else's, with the names of the one before.
        ["swing", volume, name, stage] => {
            let volume = Path::new(volume);
            fs::create_dir(volume.join("..evil"))?;
            fs::write(volume.join("..evil").join(name), fs::read(stage)?)?;
            symlink("..evil", volume.join("..swing"))?;
            fs::rename(volume.join("..swing"), volume.join("..data"))?;
        }
        _ => bail!("no such act"),
    }
    Ok(())
}

/// As istio-cni's installer puts its entry into a chain, last, or with `-` takes it out: whole, by a temporary name, and only if that changes
/// anything.
fn chain(file: &Path, plugin: &str, entry: &Path) -> Result<()> {
    let mut chain: Value = serde_json::from_slice(&fs::read(file)?)?;
    let entry = (entry != Path::new("-")).then(|| fs::read(entry)).transpose()?;
    let before = chain.clone();
    let plugins = chain["plugins"].as_array_mut().context("no chain")?;
    plugins.retain(|one| one["type"] != plugin);
    if let Some(entry) = entry {
        plugins.push(serde_json::from_slice(&entry)?);
    }
    if chain != before {
        let new = PathBuf::from(format!("{}.tmp.161803398", file.display()));
        fs::write(&new, chain.to_string())?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        fs::rename(&new, file)?;
    }
    Ok(())
}

/// As pilot-agent writes certificates out: one file after the other, each by a name of its own and a rename, if it is another.
fn renew(dir: &Path, stage: &Path) -> Result<()> {
    for name in ["key.pem", "cert-chain.pem", "root-cert.pem"] {
        let bytes = fs::read(stage.join(name))?;
        if fs::read(dir.join(name)).is_ok_and(|now| now == bytes) {
            continue;
        }
        let new = dir.join(format!("{name}.tmp.271828182"));
        fs::File::create_new(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        fs::write(&new, bytes)?;
        fs::rename(&new, dir.join(name))?;
    }
    Ok(())
}

/// Stops a process as a debugger does, and lets it go.
fn attach(pid: i32) -> Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: ptrace with a pid and no pointers that the kernel would follow.
    let attached = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, none, none) };
    ensure!(attached == 0, "attach: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: `status` lives until the call returns.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    ensure!(waited == pid, "wait: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    let let_go = unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, none, none) };
    ensure!(let_go == 0, "detach: {}", std::io::Error::last_os_error());
    Ok(())
}
