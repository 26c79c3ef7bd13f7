//! Which program stands on which hook, what it needs of the kernel, and which family goes blind without it.

use monitor_ebpf::Layout;
use monitor_ebpf::layout::MISSING;
use monitor_ebpf::record::HookId;

use super::rung::HookRung;
use crate::model::Family;

/// One program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    /// Name of the hook.
    pub hook: &'static str,
    /// Name of the program in the object: the hook's, unless another one stands there too.
    pub program: &'static str,
    /// What its records carry.
    pub id: HookId,
    /// What is blind without it.
    pub families: &'static [Family],
    /// Fields of the layout it cannot do without, beyond [`COMMON`].
    pub needs: &'static [&'static str],
    /// On kernels without this hook another one sees the same.
    pub covered_elsewhere: bool,
}

/// What every record is made from.
pub(super) const COMMON: &[&str] =
    &["dentry_d_inode", "dentry_d_parent", "dentry_name", "inode_i_ino", "inode_i_sb", "sb_s_dev"];

/// What the actor is taken from: without it, the family `actor` is blind.
pub(super) const ACTOR: &[&str] = &[
    "task_real_parent",
    "task_tgid",
    "task_flags",
    "task_comm",
    "task_group_leader",
    "task_start_boottime",
    "task_real_cred",
    "task_mm",
    "task_nsproxy",
    "cred_uid",
    "mm_exe_file",
    "mm_arg_start",
    "mm_arg_end",
    "nsproxy_mnt_ns",
    "mnt_ns_inum",
    "mount_mnt",
    "mount_mnt_parent",
    "mount_mnt_mountpoint",
    "vfsmount_mnt_root",
    "file_f_inode",
    "file_dentry",
    "file_mnt",
];

const fn spec(
    hook: &'static str,
    id: HookId,
    families: &'static [Family],
    needs: &'static [&'static str],
) -> Spec {
    Spec { hook, program: hook, id, families, needs, covered_elsewhere: false }
}

impl Spec {
    /// What it is called on this rung, for people.
    pub(super) fn named(&self, rung: HookRung) -> String {
        let hook = rung.named(self.hook);
        if self.program == self.hook { hook } else { format!("{hook} ({})", self.program) }
    }
}

/// A program beside the one that has the hook's name.
const fn beside(program: &'static str, spec: Spec) -> Spec {
    Spec { program, ..spec }
}

const fn newer(spec: Spec) -> Spec {
    Spec { covered_elsewhere: true, ..spec }
}

const MOUNTS: &[Family] = &[Family::Mounts];
const NAMES: &[Family] = &[Family::Names];
const EXECUTE: &[Family] = &[Family::Execute];
const FILE: &str = "file_f_inode";

/// All programs of the object.
pub(super) const SPECS: &[Spec] = &[
    spec(
        "file_open",
        HookId::FileOpen,
        &[Family::Open],
        &[FILE, "file_dentry", "file_f_mode", "arg_open_file"],
    ),
    spec(
        "file_permission",
        HookId::FilePermission,
        &[Family::Write],
        &[FILE, "file_dentry", "arg_permission_file", "arg_permission_mask"],
    ),
    spec(
        "mmap_file",
        HookId::MmapFile,
        &[Family::Mmap],
        &[FILE, "file_dentry", "arg_mmap_file", "arg_mmap_prot", "arg_mmap_flags"],
    ),
    spec(
        "file_mprotect",
        HookId::FileMprotect,
        &[Family::Mmap],
        &[FILE, "file_dentry", "vma_vm_file", "vma_vm_flags", "arg_mprotect_vma", "arg_mprotect_prot"],
    ),
    spec(
        "inode_setattr",
        HookId::InodeSetattr,
        &[Family::Attributes, Family::Truncate],
        &["iattr_ia_valid", "arg_setattr_dentry", "arg_setattr_attr"],
    ),
    spec("inode_setxattr", HookId::InodeSetxattr, &[Family::Xattr], &["arg_setxattr_dentry"]),
    spec("inode_removexattr", HookId::InodeRemovexattr, &[Family::Xattr], &["arg_removexattr_dentry"]),
    // Before 6.2 these came as setxattr and removexattr.
    newer(spec("inode_set_acl", HookId::InodeSetAcl, &[Family::Xattr], &["arg_set_acl_dentry"])),
    newer(spec("inode_remove_acl", HookId::InodeRemoveAcl, &[Family::Xattr], &["arg_remove_acl_dentry"])),
    spec("inode_create", HookId::InodeCreate, NAMES, &["arg_create_dir", "arg_create_dentry"]),
    spec(
        "inode_link",
        HookId::InodeLink,
        NAMES,
        &["arg_link_old_dentry", "arg_link_dir", "arg_link_new_dentry"],
    ),
    spec("inode_symlink", HookId::InodeSymlink, NAMES, &["arg_symlink_dir", "arg_symlink_dentry"]),
    spec("inode_mkdir", HookId::InodeMkdir, NAMES, &["arg_mkdir_dir", "arg_mkdir_dentry"]),
    spec("inode_mknod", HookId::InodeMknod, NAMES, &["arg_mknod_dir", "arg_mknod_dentry"]),
    spec("inode_unlink", HookId::InodeUnlink, NAMES, &["arg_unlink_dir", "arg_unlink_dentry"]),
    spec("inode_rmdir", HookId::InodeRmdir, NAMES, &["arg_rmdir_dir", "arg_rmdir_dentry"]),
    spec(
        "inode_rename",
        HookId::InodeRename,
        NAMES,
        &["arg_rename_old_dir", "arg_rename_old_dentry", "arg_rename_new_dir", "arg_rename_new_dentry"],
    ),
    spec(
        "d_instantiate",
        HookId::DInstantiate,
        &[Family::Inherit],
        &["arg_instantiate_dentry", "arg_instantiate_inode"],
    ),
    spec(
        "sb_mount",
        HookId::SbMount,
        &[Family::Mounts, Family::Inherit],
        &["path_dentry", "path_mnt", "arg_mount_path", "arg_mount_flags"],
    ),
    spec("sb_kern_mount", HookId::SbKernMount, &[Family::Inherit], &["sb_s_root", "arg_kern_mount_sb"]),
    spec(
        "move_mount",
        HookId::MoveMount,
        &[Family::Mounts, Family::Inherit],
        &["path_dentry", "path_mnt", "arg_move_mount_from", "arg_move_mount_to"],
    ),
    spec("sb_umount", HookId::SbUmount, MOUNTS, &["vfsmount_mnt_root", "arg_umount_mnt"]),
    spec("sb_pivotroot", HookId::SbPivotroot, MOUNTS, &["path_dentry", "path_mnt", "arg_pivotroot_old"]),
    spec("sb_remount", HookId::SbRemount, MOUNTS, &["sb_s_root", "arg_remount_sb"]),
    spec(
        "file_ioctl",
        HookId::FileIoctl,
        &[Family::Ioctl],
        &[FILE, "file_dentry", "arg_ioctl_file", "arg_ioctl_cmd"],
    ),
    spec(
        "file_ioctl_compat",
        HookId::FileIoctlCompat,
        &[Family::Ioctl],
        &[FILE, "file_dentry", "arg_ioctl_compat_file", "arg_ioctl_compat_cmd"],
    ),
    spec(
        "ptrace_access_check",
        HookId::PtraceAccessCheck,
        &[Family::Memory],
        &[FILE, "file_dentry", "task_mm", "mm_exe_file", "arg_ptrace_child", "arg_ptrace_mode"],
    ),
    beside(
        "mmap_code",
        spec(
            "mmap_file",
            HookId::MmapCode,
            EXECUTE,
            &[
                FILE,
                "file_dentry",
                "task_mm",
                "mm_exe_file",
                "inode_i_nlink",
                "arg_mmap_file",
                "arg_mmap_prot",
                "arg_mmap_flags",
            ],
        ),
    ),
    beside(
        "mprotect_code",
        spec(
            "file_mprotect",
            HookId::MprotectCode,
            EXECUTE,
            &[
                FILE,
                "file_dentry",
                "task_mm",
                "mm_exe_file",
                "inode_i_nlink",
                "vma_vm_file",
                "vma_vm_flags",
                "arg_mprotect_vma",
                "arg_mprotect_prot",
            ],
        ),
    ),
    spec(
        "bprm_check_security",
        HookId::BprmCheckSecurity,
        EXECUTE,
        &[FILE, "file_dentry", "task_mm", "mm_exe_file", "inode_i_nlink", "bprm_file", "arg_bprm_check_bprm"],
    ),
    // Before 6.18 these come as ioctls only.
    newer(spec(
        "inode_file_setattr",
        HookId::InodeFileSetattr,
        &[Family::Ioctl],
        &["arg_file_setattr_dentry"],
    )),
];

/// A program on the end of a system call.
#[derive(Debug, Clone, Copy)]
pub(super) struct EndSpec {
    /// Name of the program in the object.
    pub program: &'static str,
    /// The kernel's function.
    pub function: &'static str,
    /// What its records carry, where it is not only the end of what a hook told.
    pub id: Option<HookId>,
}

/// Programs on the ends of system calls. A kernel that does not have the call does not need them.
pub(super) const ENDS: &[EndSpec] = &[
    end("end_of_mount", "__x64_sys_mount"),
    end("end_of_umount", "__x64_sys_umount"),
    end("end_of_move_mount", "__x64_sys_move_mount"),
    end("end_of_pivot_root", "__x64_sys_pivot_root"),
    EndSpec { id: Some(HookId::MountSetattr), ..end("mount_setattr", "__x64_sys_mount_setattr") },
];

const fn end(program: &'static str, function: &'static str) -> EndSpec {
    EndSpec { program, function, id: None }
}

/// `mount_setattr` has no hook: its program stands on the call's end.
pub(super) const MOUNT_SETATTR: Spec = spec("mount_setattr", HookId::MountSetattr, MOUNTS, &["regs_si"]);

/// The spec of that hook.
pub(super) fn spec_of(id: HookId) -> Option<&'static Spec> {
    SPECS.iter().chain([&MOUNT_SETATTR]).find(|spec| spec.id == id)
}

/// Which of `fields` this kernel does not have.
pub(super) fn missing(layout: &Layout, fields: &[&'static str]) -> Vec<&'static str> {
    let mut values = Vec::new();
    let mut index = 0;
    let words = words(layout);
    let _ = Layout::new(|name, _| {
        values.push((name, words.get(index).copied().unwrap_or(MISSING)));
        index += 1;
        0
    });
    fields
        .iter()
        .copied()
        .filter(|field| values.iter().all(|(name, value)| name != field || *value == MISSING))
        .collect()
}

fn words(layout: &Layout) -> Vec<u32> {
    // SAFETY: `Layout` is `repr(C)` of `u32` fields only, as many as it has names.
    unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(layout).cast::<u32>(), Layout::FIELDS.len()).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_is_a_field() {
        let all = SPECS.iter().flat_map(|spec| spec.needs).chain(COMMON).chain(ACTOR);
        for need in all {
            assert!(Layout::FIELDS.iter().any(|(name, _)| name == need), "{need}");
        }
        let mut layout = Layout::new(|_, _| 8);
        assert_eq!(missing(&layout, ACTOR), Vec::<&str>::new());
        layout.mm_exe_file = MISSING;
        layout.file_mnt = MISSING;
        assert_eq!(missing(&layout, ACTOR), ["mm_exe_file", "file_mnt"]);
    }

    #[test]
    fn every_hook_has_one_program() {
        for number in 1..=32 {
            let id = HookId::try_from(number).unwrap();
            assert_eq!(SPECS.iter().chain([&MOUNT_SETATTR]).filter(|spec| spec.id == id).count(), 1);
        }
    }
}
