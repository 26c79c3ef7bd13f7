//! Where things stand in the running kernel: offsets of fields and positions of arguments, each found by name in its
//! BTF and handed to the programs in frozen `.rodata`, so that the verifier takes them as constants.

/// What a field of [`Layout`] is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `struct.member.member`, alternatives parted by `|`: the offset in bytes. The width must be as given, 0 for any.
    Member(&'static str, u32),
    /// 1 if a member of that path lies in a union, else 0: what is walked through a union is untrusted by the verifier
    /// of 6.4 and later, and may not go to inode storage.
    InUnion(&'static str),
    /// The position of an argument: hook, and names the argument goes by, parted by `|`. The function is named after the
    /// hook, with the prefix of what the rung's programs stand on.
    Argument(&'static str, &'static str),
}

/// A field of [`Layout`] that this kernel does not have.
pub const MISSING: u32 = u32::MAX;

macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident = $source:expr;)*) => {
        /// See the module. Each field is `MISSING` where the kernel has no such thing.
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Layout {
            $($(#[$doc])* pub $name: u32,)*
        }

        impl Layout {
            /// The fields in order: name, and how it is found.
            pub const FIELDS: &[(&str, Source)] = &[$((stringify!($name), $source)),*];

            /// Nothing known.
            pub const EMPTY: Self = Self { $($name: MISSING),* };

            /// Fills the fields, in the order of [`Self::FIELDS`].
            #[must_use]
            pub fn new(mut value: impl FnMut(&'static str, Source) -> u32) -> Self {
                Self { $($name: value(stringify!($name), $source)),* }
            }
        }
    };
}

use Source::{Argument, InUnion, Member};

layout! {
    file_f_mode = Member("file.f_mode", 4);
    file_f_inode = Member("file.f_inode", 8);
    file_dentry = Member("file.f_path.dentry", 8);
    file_path_in_union = InUnion("file.f_path.dentry");
    file_mnt = Member("file.f_path.mnt", 8);
    path_dentry = Member("path.dentry", 8);
    path_mnt = Member("path.mnt", 8);
    dentry_d_inode = Member("dentry.d_inode", 8);
    dentry_d_parent = Member("dentry.d_parent", 8);
    dentry_name = Member("dentry.d_name.name", 8);
    inode_i_mode = Member("inode.i_mode", 2);
    inode_i_ino = Member("inode.i_ino", 8);
    inode_i_sb = Member("inode.i_sb", 8);
    inode_i_generation = Member("inode.i_generation", 4);
    inode_i_nlink = Member("inode.i_nlink", 4);
    sb_s_dev = Member("super_block.s_dev", 4);
    sb_s_root = Member("super_block.s_root", 8);
    sb_s_active = Member("super_block.s_active", 4);
    iattr_ia_valid = Member("iattr.ia_valid", 4);
    vfsmount_mnt_root = Member("vfsmount.mnt_root", 8);
    regs_si = Member("pt_regs.si", 8);
    vma_vm_file = Member("vm_area_struct.vm_file", 8);
    vma_vm_flags = Member("vm_area_struct.vm_flags", 8);
    bprm_file = Member("linux_binprm.file", 8);

    task_real_parent = Member("task_struct.real_parent", 8);
    task_tgid = Member("task_struct.tgid", 4);
    task_pid = Member("task_struct.pid", 4);
    task_flags = Member("task_struct.flags", 4);
    task_comm = Member("task_struct.comm", 0);
    task_start_boottime = Member("task_struct.start_boottime|task_struct.real_start_time", 8);
    task_real_cred = Member("task_struct.real_cred", 8);
    task_mm = Member("task_struct.mm", 8);
    task_nsproxy = Member("task_struct.nsproxy", 8);
    task_cgroups = Member("task_struct.cgroups", 8);
    cred_uid = Member("cred.uid.val", 4);
    mm_exe_file = Member("mm_struct.exe_file", 8);
    mm_arg_start = Member("mm_struct.arg_start", 8);
    mm_arg_end = Member("mm_struct.arg_end", 8);
    nsproxy_mnt_ns = Member("nsproxy.mnt_ns", 8);
    mnt_ns_inum = Member("mnt_namespace.ns.inum", 4);
    mount_mnt = Member("mount.mnt", 0);
    mount_mnt_parent = Member("mount.mnt_parent", 8);
    mount_mnt_mountpoint = Member("mount.mnt_mountpoint", 8);
    /// A list of the mounts on this one, each by its `mnt_child`; a new one comes last.
    mount_mnt_mounts = Member("mount.mnt_mounts", 0);
    mount_mnt_child = Member("mount.mnt_child", 0);
    list_prev = Member("list_head.prev", 8);
    css_set_dfl_cgrp = Member("css_set.dfl_cgrp", 8);
    cgroup_kn = Member("cgroup.kn", 8);
    kn_name = Member("kernfs_node.name", 8);
    kn_parent = Member("kernfs_node.parent|kernfs_node.__parent", 8);
    task_group_leader = Member("task_struct.group_leader", 8);
    task_thread_pid = Member("task_struct.thread_pid", 8);
    pid_level = Member("pid.level", 4);
    pid_numbers = Member("pid.numbers", 0);
    upid_nr = Member("upid.nr", 4);
    upid_ns = Member("upid.ns", 8);
    pid_ns_inum = Member("pid_namespace.ns.inum", 4);

    arg_open_file = Argument("file_open", "file");
    arg_permission_file = Argument("file_permission", "file");
    arg_permission_mask = Argument("file_permission", "mask");
    arg_mmap_file = Argument("mmap_file", "file|file__nullable");
    arg_mmap_prot = Argument("mmap_file", "prot");
    arg_mmap_flags = Argument("mmap_file", "flags");
    arg_mprotect_vma = Argument("file_mprotect", "vma");
    arg_mprotect_prot = Argument("file_mprotect", "prot");
    arg_setattr_dentry = Argument("inode_setattr", "dentry");
    arg_setattr_attr = Argument("inode_setattr", "attr");
    arg_setxattr_dentry = Argument("inode_setxattr", "dentry");
    arg_removexattr_dentry = Argument("inode_removexattr", "dentry");
    arg_set_acl_dentry = Argument("inode_set_acl", "dentry");
    arg_remove_acl_dentry = Argument("inode_remove_acl", "dentry");
    arg_create_dir = Argument("inode_create", "dir");
    arg_create_dentry = Argument("inode_create", "dentry");
    arg_link_old_dentry = Argument("inode_link", "old_dentry");
    arg_link_dir = Argument("inode_link", "dir");
    arg_link_new_dentry = Argument("inode_link", "new_dentry");
    arg_symlink_dir = Argument("inode_symlink", "dir");
    arg_symlink_dentry = Argument("inode_symlink", "dentry");
    arg_mkdir_dir = Argument("inode_mkdir", "dir");
    arg_mkdir_dentry = Argument("inode_mkdir", "dentry");
    arg_mknod_dir = Argument("inode_mknod", "dir");
    arg_mknod_dentry = Argument("inode_mknod", "dentry");
    arg_unlink_dir = Argument("inode_unlink", "dir");
    arg_unlink_dentry = Argument("inode_unlink", "dentry");
    arg_rmdir_dir = Argument("inode_rmdir", "dir");
    arg_rmdir_dentry = Argument("inode_rmdir", "dentry");
    arg_rename_old_dir = Argument("inode_rename", "old_dir");
    arg_rename_old_dentry = Argument("inode_rename", "old_dentry");
    arg_rename_new_dir = Argument("inode_rename", "new_dir");
    arg_rename_new_dentry = Argument("inode_rename", "new_dentry");
    /// Only the functions that call the hook have it.
    arg_rename_flags = Argument("inode_rename", "flags");
    arg_instantiate_dentry = Argument("d_instantiate", "dentry");
    arg_instantiate_inode = Argument("d_instantiate", "inode");
    arg_path_notify_path = Argument("path_notify", "path");
    arg_inode_free_inode = Argument("inode_free", "inode");
    arg_mount_path = Argument("sb_mount", "path");
    arg_mount_flags = Argument("sb_mount", "flags");
    arg_kern_mount_sb = Argument("sb_kern_mount", "sb");
    arg_move_mount_from = Argument("move_mount", "from_path");
    arg_umount_mnt = Argument("sb_umount", "mnt");
    arg_pivotroot_old = Argument("sb_pivotroot", "old_path");
    arg_remount_sb = Argument("sb_remount", "sb");
    arg_ioctl_file = Argument("file_ioctl", "file");
    arg_ioctl_cmd = Argument("file_ioctl", "cmd");
    arg_ioctl_compat_file = Argument("file_ioctl_compat", "file");
    arg_ioctl_compat_cmd = Argument("file_ioctl_compat", "cmd");
    arg_file_setattr_dentry = Argument("inode_file_setattr", "dentry");
    arg_ptrace_child = Argument("ptrace_access_check", "child");
    arg_ptrace_mode = Argument("ptrace_access_check", "mode");
    arg_bprm_check_bprm = Argument("bprm_check_security", "bprm");
    arg_move_mount_to = Argument("move_mount", "to_path");
}

#[cfg(test)]
mod tests {
    use super::{Layout, MISSING};

    #[test]
    fn fields_are_filled_in_order() {
        let mut next = 0;
        let layout = Layout::new(|_, _| {
            next += 1;
            next
        });
        assert_eq!(layout.file_f_mode, 1);
        assert_eq!(layout.arg_move_mount_to as usize, Layout::FIELDS.len());
        assert_eq!(Layout::EMPTY.file_f_mode, MISSING);
        assert_eq!(size_of::<Layout>(), Layout::FIELDS.len() * 4);
    }
}
