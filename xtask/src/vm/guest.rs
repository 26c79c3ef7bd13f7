//! What the guest finds: the initramfs (busybox, modules, the agent, libraries) and the disks.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::modules;
use crate::cmd;

/// What the guest itself stands on; built in or not, as the kernel has it.
const DRIVERS: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console"];
/// What the lane promises to whoever runs in it.
const MODULES: &[&str] = &["overlay", "loop", "brd"];

/// What one run puts into the guest.
#[derive(Debug)]
pub(crate) struct Content<'a> {
    pub(crate) kernel: &'a Kernel,
    /// Modules besides those every guest has.
    pub(crate) extra_modules: &'a [String],
    pub(crate) meshseal: Option<&'a Path>,
    pub(crate) with: &'a [PathBuf],
    pub(crate) command: &'a [std::ffi::OsString],
    /// Ends each stream of output.
    pub(crate) token: &'a str,
    /// Rows and columns of the terminal, for a run at one.
    pub(crate) terminal: Option<(u16, u16)>,
}

/// The initramfs.
pub(crate) fn initramfs(content: &Content<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in [
        "data",
        "dev",
        "etc",
        "lib",
        "mnt",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "with",
        "var/lib",
        ".vm/root",
        "usr/local/bin",
    ] {
        archive.directory(dir)?;
    }
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost meshseal-vm\n::1 localhost\n")?;
    archive.file("init", 0o755, include_bytes!("init.sh"))?;
    if let Some(meshseal) = content.meshseal {
        archive.copy("usr/bin/meshseal", meshseal)?;
    }
    tools(&mut archive)?;
    for file in content.with {
        libraries(&mut archive, file)?;
    }

    let mut wanted = MODULES.to_vec();
    wanted.extend(content.extra_modules.iter().map(String::as_str));
    let mut names = Vec::new();
    for module in modules::ordered(&content.kernel.modules, DRIVERS, &wanted)? {
        archive.file(&format!(".vm/modules/{}.ko", module.name), 0o644, &module.content)?;
        names.push(module.name);
    }
    archive.file(".vm/guest.sh", 0o600, &description(content, &names))?;
    archive.finish()
}

/// The part of init that differs from run to run.
fn description(content: &Content<'_>, modules: &[String]) -> Vec<u8> {
    let mut script = format!("modules='{}'\ntoken='{}'\n", modules.join(" "), content.token).into_bytes();
    if !content.with.is_empty() {
        script.extend_from_slice(b"with=1\n");
    }
    if let Some((rows, cols)) = content.terminal {
        script.extend_from_slice(format!("interactive=1\nrows={rows}\ncols={cols}\n").as_bytes());
    }
    script.extend_from_slice(b"command_line() {\n    exec \"$@\"");
    for word in content.command {
        script.push(b' ');
        script.extend_from_slice(&quoted(word));
    }
    script.extend_from_slice(b"\n}\n");
    script
}

/// A word that the shell takes for itself, whatever bytes it has.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut out = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            other => out.push(*other),
        }
    }
    out.push(b'\'');
    out
}

/// busybox with its applets, and the real mke2fs: busybox makes no ext4.
fn tools(archive: &mut Archive) -> Result<()> {
    let mke2fs = cmd::find("mke2fs").context("mke2fs is missing: the package e2fsprogs provides it")?;
    archive.copy("sbin/mke2fs", &mke2fs)?;
    libraries(archive, &mke2fs)?;
    for name in ["sbin/mkfs.ext4", "sbin/mkfs.ext3", "sbin/mkfs.ext2"] {
        archive.symlink(name, "mke2fs")?;
    }
    if Path::new("/etc/mke2fs.conf").is_file() {
        archive.copy("etc/mke2fs.conf", Path::new("/etc/mke2fs.conf"))?;
    }

    let busybox =
        cmd::find("busybox").context("busybox is missing: the package busybox-static provides it")?;
    archive.copy("bin/busybox", &busybox)?;
    libraries(archive, &busybox)?;
    for applet in cmd::output(Command::new(&busybox).arg("--list-full"))?.lines() {
        if !archive.contains(applet) {
            archive.symlink(applet, "/bin/busybox")?;
        }
    }
    Ok(())
}

/// The shared libraries and the loader of a dynamically linked program, at the places where the program looks for them.
fn libraries(archive: &mut Archive, program: &Path) -> Result<()> {
    let mut magic = [0_u8; 4];
    let is_elf = fs::File::open(program)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF");
    if !is_elf {
        return Ok(());
    }
    let out = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("cannot start ldd: the package libc-bin provides it")?;
    if !out.status.success() {
        return Ok(()); // "not a dynamic executable": nothing to add
    }
    for library in parse_ldd(&String::from_utf8_lossy(&out.stdout)) {
        let library = library.map_err(|name| {
            anyhow!("{} needs the shared library {name}, which is missing here", program.display())
        })?;
        let name = library.trim_start_matches('/');
        if !archive.contains(name) {
            archive.copy(name, Path::new(&library))?;
        }
    }
    Ok(())
}

/// Paths of the libraries, or the name of one that was not found.
fn parse_ldd(text: &str) -> Vec<Result<String, String>> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            if let Some((name, rest)) = line.split_once(" => ") {
                if rest.starts_with("not found") {
                    return Some(Err(name.to_owned()));
                }
                return rest
                    .split(" (")
                    .next()
                    .filter(|path| path.starts_with('/'))
                    .map(|path| Ok(path.to_owned()));
            }
            line.split(" (").next().filter(|path| path.starts_with('/')).map(|path| Ok(path.to_owned()))
        })
        .collect()
}

/// An empty ext4 file system in a sparse file.
pub(crate) fn data_disk(image: &Path, mib: u32) -> Result<()> {
    sparse(image, u64::from(mib) << 20)?;
    mke2fs(image, &[])
}

/// An ext4 file system that holds the `--with` files by their names.
pub(crate) fn with_disk(image: &Path, files: &[PathBuf], work: &Path) -> Result<()> {
    let tree = work.join("with");
    fs::create_dir(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
    let mut bytes = 0;
    for file in files {
        let name =
            file.file_name().with_context(|| format!("--with {}: a file is expected", file.display()))?;
        let meta = fs::metadata(file).with_context(|| format!("--with {}", file.display()))?;
        if !meta.is_file() {
            bail!("--with {}: a file is expected", file.display());
        }
        let to = tree.join(name);
        if to.exists() {
            bail!("--with {}: another file of that name is given too", file.display());
        }
        fs::copy(file, &to).with_context(|| format!("--with {}: cannot be read", file.display()))?;
        bytes += meta.len();
    }
    sparse(image, bytes + bytes / 8 + (64 << 20))?;
    mke2fs(image, &[OsStr::new("-d"), tree.as_os_str()])?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

fn sparse(image: &Path, bytes: u64) -> Result<()> {
    fs::File::create(image)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("cannot create {}", image.display()))
}

fn mke2fs(image: &Path, more: &[&OsStr]) -> Result<()> {
    let program = cmd::find("mke2fs").context("mke2fs is missing: the package e2fsprogs provides it")?;
    let mut command = Command::new(program);
    // What 5.10 and everything later understands, without the features that later tools turn on.
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1"]);
    command.args(["-O", "^orphan_file,^metadata_csum_seed"]);
    command.args(more).arg(image);
    cmd::output(&mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_shell_as_they_are() {
        assert_eq!(quoted(OsStr::new("it's $HOME")), b"'it'\\''s $HOME'");
        assert_eq!(quoted(OsStr::from_bytes(b"\xff\n")), b"'\xff\n'");
    }

    #[test]
    fn ldd_names_libraries_loader_and_what_is_missing() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
                    \tlibmissing.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            parse_ldd(text),
            [
                Ok("/lib/x86_64-linux-gnu/libz.so.1".to_owned()),
                Err("libmissing.so".to_owned()),
                Ok("/lib64/ld-linux-x86-64.so.2".to_owned()),
            ]
        );
    }
}
