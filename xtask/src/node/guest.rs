//! The node in a guest: a Debian system on a disk of its own, booted by the VM lane on a kernel that allows BPF LSM. The same code as natively then
//! runs in it, as a static binary.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Options, Supplies, Work, key};
use crate::apt;
use crate::build::{self, Profile};
use crate::cache::Cache;
use crate::cmd::{self, say};
use crate::interrupt;
use crate::setup::{self, Need};
use crate::vm::kernel::{self, Kernel, Series};
use crate::vm::{self, End, VmSpec};

/// Where the node's parts are in the guest, and the files given to it.
pub(super) const PARTS: &str = "/opt/meshseal-node";
pub(super) const WITH: &str = "/with";
/// The files of the package that go into the guest.
pub(super) const PACKAGED: [&str; 3] = ["meshseal", "meshseal-image.tar", "meshseal.yaml"];

const ENTER: &str = include_str!("../../assets/node/enter.sh");
const SUITE: &str = "trixie";
const INCLUDE: &str = "containerd,runc,containernetworking-plugins,iptables,conntrack,iproute2,kmod,openssl,procps,python3-minimal,busybox-static";
/// For starting the node, on top of the command's own time.
const START: Duration = Duration::from_secs(900);

const NEEDS: &[Need] = &[
    Need { what: "debootstrap", package: "debootstrap" },
    Need { what: "mke2fs", package: "e2fsprogs" },
    Need { what: "xz", package: "xz-utils" },
];

/// Boots the guest, runs the node in it, and passes the command's output and status on.
pub(super) fn run(series: Series, options: &Options, supplies: &Supplies, work: &Work<'_>) -> Result<u8> {
    if !matches!(series, Series::V6_12 | Series::V7_2) {
        bail!("--guest {series}: 6.12 or 7.2 is expected");
    }
    setup::packages(setup::VM)?;
    setup::packages(NEEDS)?;
    let kernel = kernel::resolve(series)?;
    let disk = disk(&kernel, supplies)?;
    let xtask = build::static_binaries(Profile::Lane, &["--package", "xtask"])?.join("xtask");

    let stage = tempfile::tempdir().context("cannot create a temporary directory")?;
    let mut with = options.with.clone();
    let mut put = |name: &str, from: &Path| -> Result<()> {
        let to = stage.path().join(format!(".node-{name}"));
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        with.push(to);
        Ok(())
    };
    put("xtask", &xtask)?;
    if let Some(package) = &supplies.package {
        for name in PACKAGED {
            put(name, &package.join(name))?;
        }
    }

    let inner = Duration::from_secs(options.timeout);
    let mut spec = VmSpec::new(kernel, command(options, work));
    spec.lsm.clone_from(&options.lsm);
    spec.memory_mib = options.memory.unwrap_or(if options.mesh { 8192 } else { 4096 });
    spec.timeout = Some(inner + START);
    spec.with = with;
    spec.qemu_args = vec![
        "-drive".to_owned(),
        // Written to in a temporary file: the disk in the cache stays as it is.
        format!(
            "if=none,id=node,format=raw,cache=unsafe,snapshot=on,file={}",
            disk.to_string_lossy().replace(',', ",,")
        ),
        "-device".to_owned(),
        "virtio-blk-pci,drive=node,serial=node".to_owned(),
    ];
    let outcome = vm::run(&spec)?;
    // At a terminal QEMU hears Ctrl-C as well, and is gone first.
    interrupt::check()?;
    match outcome.end {
        End::Exited(status) => Ok(status),
        End::TimedOut => {
            say!("time is up after {:.0} s", outcome.took.as_secs_f32());
            Ok(124)
        }
        End::Crashed(console) => bail!("the guest went away; its console:\n{console}"),
    }
}

/// What the lane runs in the guest: this program again, inside.
fn command(options: &Options, work: &Work<'_>) -> Vec<OsString> {
    let mut command: Vec<OsString> =
        ["sh", "-c", ENTER, "enter", "node"].into_iter().map(OsString::from).collect();
    if let Work::Test { .. } = work {
        command.push("test".into());
    }
    command.push("--inside".into());
    if let Work::Test { whole: true } = work {
        command.push("--whole".into());
    }
    match (work, options.mesh) {
        (Work::Test { .. }, false) => command.push("--plain".into()),
        (Work::Command(_), true) => command.push("--mesh".into()),
        _ => {}
    }
    if let Work::Command(words) = work {
        if options.bare {
            command.push("--bare".into());
        }
        command.push(format!("--timeout={}", options.timeout).into());
        command.push("--".into());
        command.extend(words.iter().cloned());
    }
    command
}

/// The disk with Debian, the kernel's modules, and the node's parts.
fn disk(kernel: &Kernel, supplies: &Supplies) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let root = cache.entry("node/debian", SUITE, debootstrap)?;
    let shown = |path: &Path| path.display().to_string();
    let key = key(&[
        kernel.package.clone(),
        shown(&supplies.localkube),
        shown(&supplies.etcd),
        shown(&supplies.images),
        supplies.istioctl.as_deref().map(shown).unwrap_or_default(),
        INCLUDE.to_owned(),
    ]);
    let kind = if supplies.istioctl.is_some() { "mesh" } else { "plain" };
    let version = format!("{}-{kind}-{key}", kernel.release);
    let dir = cache.entry("node/disk", &version, |dir| {
        say!("making the disk of the guest");
        let tree = dir.join("tree");
        // Links, not copies: the tree is only read to make the file system.
        cmd::output(Command::new("cp").args(["-al"]).arg(root.join("root")).arg(&tree))?;
        let modules = tree.join("usr/lib/modules").join(&kernel.release);
        fs::create_dir_all(&modules).with_context(|| format!("cannot create {}", modules.display()))?;
        cmd::output(Command::new("cp").arg("-a").arg(&kernel.modules).arg(modules.join("kernel")))?;
        cmd::output(Command::new("chroot").arg(&tree).args(["depmod", &kernel.release]))?;
        let parts = tree.join(PARTS.trim_start_matches('/'));
        fs::create_dir_all(&parts).with_context(|| format!("cannot create {}", parts.display()))?;
        let mut copied = vec![&supplies.localkube, &supplies.etcd];
        copied.extend(&supplies.istioctl);
        cmd::output(Command::new("cp").args(["-a", "-t"]).arg(&parts).args(copied))?;
        cmd::output(Command::new("cp").arg("-a").arg(&supplies.images).arg(parts.join("images")))?;
        let image = dir.join("disk");
        fs::File::create(&image)
            .and_then(|file| file.set_len(12 << 30))
            .with_context(|| format!("cannot create {}", image.display()))?;
        cmd::output(
            Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"])
                .arg(&tree)
                .arg(&image),
        )?;
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
    })?;
    Ok(dir.join("disk"))
}

fn debootstrap(dir: &Path) -> Result<()> {
    say!("fetching Debian {SUITE} for the guest, about a minute");
    cmd::output(
        Command::new("debootstrap")
            .args(["--variant=minbase", "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"])
            .arg(format!("--include={INCLUDE}"))
            .arg(SUITE)
            .arg(dir.join("root"))
            .arg(apt::machine_mirror()?),
    )
    .map(drop)
}
