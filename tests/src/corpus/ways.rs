//! Acts on what lies above an object, under it and over it: directories and mounts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rustix::fs::{CWD, RenameFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::acts::{Act, SEALED, Site, act, attempt, hooks_only, prepared, v};
use super::raw::private_mounts;

fn another(site: &Site) -> Result<PathBuf> {
    let path = site.out().join("another");
    fs::write(&path, b"another\n")?;
    Ok(path)
}

fn tmpfs(at: &Path) -> Result<()> {
    Ok(rustix::mount::mount("none", at, "tmpfs", MountFlags::empty(), None)?)
}

/// A directory `other` with a file of the same name.
fn another_ancestor(site: &Site) -> Result<()> {
    fs::create_dir(site.out().join("other"))?;
    Ok(fs::write(site.out().join("other/f"), b"another\n")?)
}

/// What systemd does for a service with `ProtectSystem=` and the like, whose root is here that of the tree: all mounts once more, below a
/// directory of its own, which then becomes the root, by one of several calls. There all objects stand as before.
fn in_a_sandbox(site: &Site, becomes_the_root: fn() -> Result<()>) -> Result<()> {
    private_mounts()?;
    // The root of a guest may be one that cannot be swapped.
    rustix::mount::mount_bind_recursive(&site.root, &site.root)?;
    rustix::process::chroot(&site.root)?;
    rustix::process::chdir("/")?;
    let within = Path::new("/").join(site.out().strip_prefix(&site.root)?);
    rustix::mount::mount_bind_recursive("/", &within)?;
    rustix::mount::mount_remount(&within, MountFlags::BIND | MountFlags::NOSUID, "")?;
    rustix::process::chdir(&within)?;
    becomes_the_root()?;
    let object = Path::new("/").join(site.f().strip_prefix(&site.root)?);
    ensure!(fs::read(object)? == SEALED, "other bytes");
    Ok(())
}

/// All acts of this file. Those on mounts are done in a mount namespace of their own, which ends with the actor.
pub(super) const ACTS: &[Act] = &[
    act(
        "rename_an_ancestor",
        |site, _| Ok(fs::rename(site.lone(), site.out().join("moved"))?),
        &[v("/f", "renamed", "rename")],
    ),
    act(
        "replace_an_ancestor_by_a_link_to_it",
        |site, _| {
            let moved = site.out().join("moved");
            fs::rename(site.lone(), &moved)?;
            std::os::unix::fs::symlink(moved, site.lone())?;
            ensure!(fs::read(site.lone().join("f"))? == SEALED, "other bytes");
            Ok(())
        },
        &[v("/f", "renamed", "rename")],
    ),
    prepared(
        "exchange_an_ancestor",
        another_ancestor,
        |site, _| {
            let other = site.out().join("other");
            Ok(rustix::fs::renameat_with(CWD, site.lone(), CWD, other, RenameFlags::EXCHANGE)?)
        },
        &[v("/f", "replaced", "rename")],
    ),
    prepared(
        "exchange_an_ancestor_and_back",
        another_ancestor,
        |site, _| {
            let other = site.out().join("other");
            rustix::fs::renameat_with(CWD, site.lone(), CWD, &other, RenameFlags::EXCHANGE)?;
            ensure!(fs::read(site.lone().join("f"))? == b"another\n", "not exchanged");
            Ok(rustix::fs::renameat_with(CWD, site.lone(), CWD, &other, RenameFlags::EXCHANGE)?)
        },
        &[v("/f", "reverted", "rename")],
    ),
    act(
        "rename_the_directory_away_and_back",
        |site, _| {
            fs::rename(site.dir(), site.out().join("moved"))?;
            Ok(fs::rename(site.out().join("moved"), site.dir())?)
        },
        &[v("", "reverted", "rename"), v("f", "reverted", "rename"), v("g", "reverted", "rename")],
    ),
    act(
        "remove_all_of_an_ancestor",
        |site, _| Ok(fs::remove_dir_all(site.lone())?),
        &[v("/f", "removed", "unlink")],
    ),
    act(
        "mount_over_the_file",
        |site, _| {
            private_mounts()?;
            Ok(rustix::mount::mount_bind(another(site)?, site.f())?)
        },
        &[hooks_only(v("f", "mounted_over", "mount"))],
    ),
    act(
        "mount_over_the_directory",
        |site, _| {
            private_mounts()?;
            tmpfs(&site.dir())
        },
        &[
            hooks_only(v("", "mounted_over", "mount")),
            hooks_only(v("f", "mounted_over", "mount")),
            hooks_only(v("g", "mounted_over", "mount")),
        ],
    ),
    act(
        "move_mount_over_the_file",
        |site, _| {
            private_mounts()?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = rustix::mount::open_tree(CWD, another(site)?, flags)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            Ok(rustix::mount::move_mount(&tree, "", CWD, site.f(), flags)?)
        },
        &[hooks_only(v("f", "mounted_over", "mount"))],
    ),
    act(
        "mount_over_an_ancestor",
        |site, _| {
            private_mounts()?;
            tmpfs(&site.lone())
        },
        &[hooks_only(v("/f", "mounted_over", "mount"))],
    ),
    act(
        "pivot_root_over_the_directory",
        |site, _| {
            private_mounts()?;
            // The root of a guest may be one that cannot be swapped: another is taken first.
            let root = site.out().join("root");
            fs::create_dir(&root)?;
            tmpfs(&root)?;
            fs::create_dir(root.join("tree"))?;
            rustix::mount::mount_bind(&site.root, root.join("tree"))?;
            rustix::process::chroot(&root)?;
            rustix::process::chdir("/")?;
            Ok(rustix::process::pivot_root("/tree", Path::new("/tree/t").join(site.name))?)
        },
        &[
            hooks_only(v("", "mounted_over", "pivot_root")),
            hooks_only(v("f", "mounted_over", "pivot_root")),
            hooks_only(v("g", "mounted_over", "pivot_root")),
        ],
    ),
    act(
        "mount_that_fails",
        |site, _| {
            let refused = rustix::mount::mount("none", site.f(), "nosuchfs", MountFlags::empty(), None);
            ensure!(refused.is_err(), "mounted");
            Ok(())
        },
        &[hooks_only(attempt("f", "mount"))],
    ),
    act(
        "remount_in_a_namespace",
        |site, _| {
            // As a container's runtime does it.
            private_mounts()?;
            rustix::mount::mount_bind(site.dir(), site.out())?;
            Ok(rustix::mount::mount_remount(site.out(), MountFlags::BIND | MountFlags::RDONLY, "")?)
        },
        &[],
    ),
    act(
        "service_in_a_sandbox",
        |site, _| {
            in_a_sandbox(site, || {
                rustix::process::pivot_root(".", ".")?;
                Ok(rustix::mount::unmount(".", UnmountFlags::DETACH)?)
            })
        },
        &[],
    ),
    act(
        "service_in_a_sandbox_that_is_moved",
        |site, _| {
            in_a_sandbox(site, || {
                rustix::mount::mount_move(".", "/")?;
                Ok(rustix::process::chroot(".")?)
            })
        },
        &[],
    ),
    act(
        "service_in_a_sandbox_that_is_moved_anew",
        |site, _| {
            in_a_sandbox(site, || {
                rustix::mount::move_mount(CWD, ".", CWD, "/", MoveMountFlags::empty())?;
                Ok(rustix::process::chroot(".")?)
            })
        },
        &[],
    ),
    act(
        "umount_in_a_namespace",
        |site, _| {
            private_mounts()?;
            rustix::mount::mount_bind(site.dir(), site.out())?;
            rustix::mount::unmount(site.out(), UnmountFlags::DETACH)?;
            ensure!(fs::read(site.f())? == SEALED, "other bytes");
            ensure!(File::open(site.dir())?.metadata()?.is_dir(), "no directory");
            Ok(())
        },
        &[],
    ),
];
