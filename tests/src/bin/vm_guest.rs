//! The guest is the machine that `cargo xtask vm` promises.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

/// File system type by mount point; of several mounts on one point the last, which is on top.
fn mounts() -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string("/proc/self/mounts")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        })
        .collect())
}

fn file_systems_are_where_they_are_promised() -> Result<()> {
    let mounts = mounts()?;
    for (place, kind) in [
        ("/data", "ext4"),
        ("/with", "ext4"),
        ("/tmp", "tmpfs"),
        ("/run", "tmpfs"),
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/sys/fs/bpf", "bpf"),
        ("/sys/fs/cgroup", "cgroup2"),
        ("/sys/kernel/security", "securityfs"),
        ("/sys/kernel/tracing", "tracefs"),
    ] {
        let found = mounts.get(place).with_context(|| format!("nothing is mounted on {place}"))?;
        ensure!(found == kind, "{place} is {found}, expected {kind}");
    }
    Ok(())
}

fn the_kernel_enforces_by_bpf_and_tells_its_types() -> Result<()> {
    let list = fs::read_to_string("/sys/kernel/security/lsm")?;
    ensure!(list.trim().split(',').any(|name| name == "bpf"), "the kernel's LSMs are {list}");
    ensure!(fs::metadata("/sys/kernel/btf/vmlinux")?.len() > 1 << 20, "the kernel has no BTF");
    Ok(())
}

fn overlay_loop_and_ram_disks_work() -> Result<()> {
    let modules = fs::read_to_string("/proc/filesystems")?;
    ensure!(modules.lines().any(|line| line.trim_end().ends_with("\toverlay")), "no overlay file system");
    for device in ["/dev/loop-control", "/dev/ram0"] {
        ensure!(fs::exists(device)?, "no {device}");
    }
    let dir = tempfile::tempdir_in("/data")?;
    let image = dir.path().join("image");
    fs::File::create(&image)?.set_len(16 << 20)?;
    let done = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).status()?;
    ensure!(done.success(), "mke2fs: {done}");
    let mount = dir.path().join("mount");
    fs::create_dir(&mount)?;
    let done = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount).status()?;
    ensure!(done.success(), "mount -o loop: {done}");
    fs::write(mount.join("file"), "x")?;
    let done = Command::new("umount").arg(&mount).status()?;
    ensure!(done.success(), "umount: {done}");
    Ok(())
}

fn the_agent_runs() -> Result<()> {
    let out = Command::new(meshseal_tests::meshseal()).arg("--help").output()?;
    ensure!(out.status.success(), "{}", out.status);
    ensure!(!out.stdout.is_empty(), "meshseal --help says nothing");
    Ok(())
}

fn loopback_is_up_and_the_clock_is_right() -> Result<()> {
    std::net::TcpListener::bind("127.0.0.1:0")?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    ensure!(now > 1_700_000_000, "the clock says {now}");
    Ok(())
}

fn main() -> ExitCode {
    meshseal_tests::main(meshseal_tests::cases![
        file_systems_are_where_they_are_promised,
        the_kernel_enforces_by_bpf_and_tells_its_types,
        overlay_loop_and_ram_disks_work,
        the_agent_runs,
        loopback_is_up_and_the_clock_is_right,
    ])
}
