//! The only place that reads kernel memory.
//!
//! Two ways, and the difference matters: [`field`] is a plain load through a pointer that the verifier knows the type
//! of (a hook's argument, or what was walked from one), cheap, and its result may go to a helper that wants that
//! type; [`read`] copies by helper from any address, survives a bad one, and gives a bare number. The first is for
//! the way every file operation takes, the second for what is recorded after a hit.

pub(crate) mod actor;
pub(crate) mod walk;

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use monitor_ebpf::Layout;
use monitor_ebpf::layout::MISSING;

/// An address in the kernel.
pub(crate) type Ptr = *const c_void;

/// Filled by the loader before the section is frozen: the verifier sees constants.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout::EMPTY;

/// One field of [`LAYOUT`], loaded where it is used: the compiler must not know the value.
macro_rules! layout {
    ($field:ident) => {
        $crate::kernel::constant(&$crate::kernel::LAYOUT.$field)
    };
}
pub(crate) use layout;

/// Loads what the loader has filled in.
#[inline(always)]
pub(crate) fn constant(value: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(value) }
}

/// Adds atomically. The compiler offers no atomic additions for this target's base instruction set, which has them
/// (`XADD`), and 5.10 knows no others.
///
/// # Safety
/// `counter` points into a map's value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: the caller's word.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {by}", counter = in(reg) counter, by = in(reg) by, options(nostack));
    }
}

/// As [`add`], to half as many bits.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn add32(counter: *mut u32, by: u32) {
    // SAFETY: the caller's word.
    unsafe {
        core::arch::asm!("lock *(u32 *)({counter} + 0) += {by}", counter = in(reg) counter, by = in(reg) u64::from(by), options(nostack));
    }
}

/// `buffer + at`, where `at` is below `MASK + 1`, a power of two.
///
/// In assembly, because the verifier must see the bound on the very register that is added: the compiler would test a
/// copy, and 5.10 forgets the bounds of what is spilled.
#[inline(always)]
pub(crate) fn bounded<const MASK: i32>(buffer: *mut u8, at: u64) -> *mut u8 {
    let mut place = at;
    // SAFETY: register arithmetic only.
    unsafe {
        core::arch::asm!(
            "{place} &= {mask}",
            "{place} += {buffer}",
            place = inout(reg) place, buffer = in(reg) buffer, mask = const MASK,
            options(nostack, nomem, pure),
        );
    }
    place as *mut u8
}

/// `value & MASK`, on the very register that is used next: as [`bounded`].
#[inline(always)]
pub(crate) fn masked<const MASK: i32>(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: register arithmetic only.
    unsafe {
        core::arch::asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK, options(nostack, nomem));
    }
    value
}

/// Hides a number from the compiler, so that a comparison and the use that follows are of one register. The cost is a
/// move: without an instruction of its own the line information would name one twice, which the kernel refuses.
#[inline(always)]
pub(crate) fn opaque(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{value} = {value}", value = inout(reg) value, options(nostack, nomem)) };
    value
}

/// Whether this kernel has the field. Dead branches behind it are removed at load.
#[inline(always)]
pub(crate) fn known(offset: u32) -> bool {
    offset != MISSING
}

/// Loads through a typed pointer.
///
/// # Safety
/// `base` is a BTF pointer of the structure that `offset` belongs to, and `T` is as wide as that field.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(base: Ptr, offset: u32) -> T {
    // SAFETY: the caller's word; the kernel turns a fault into 0.
    unsafe { core::ptr::read_volatile(base.byte_add(offset as usize).cast::<T>()) }
}

/// Copies from any address; `zero` where that faults.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: Ptr, offset: u32, zero: T) -> T {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.cast::<u8>().wrapping_add(offset as usize).cast::<T>()) }
        .unwrap_or(zero)
}

/// As [`read`], for a pointer.
#[inline(always)]
pub(crate) fn read_ptr(base: Ptr, offset: u32) -> Ptr {
    read::<Ptr>(base, offset, core::ptr::null())
}

/// The argument at a position known at load only.
///
/// Each position is an instruction of its own in assembly: were it left to the compiler, it would fold them into one
/// load at a computed offset, which the verifier refuses on a context. The branches not taken are removed at load.
///
/// # Safety
/// `ctx` is the context of a tracing or LSM program with more than `position` arguments.
#[inline(always)]
pub(crate) unsafe fn arg(ctx: *mut c_void, position: u32) -> u64 {
    macro_rules! load {
        ($text:literal) => {{
            let value: u64;
            // SAFETY: an aligned load from the context, whose type the verifier knows.
            unsafe { core::arch::asm!($text, value = out(reg) value, ctx = in(reg) ctx, options(nostack)) };
            value
        }};
    }
    match position {
        0 => load!("{value} = *(u64 *)({ctx} + 0)"),
        1 => load!("{value} = *(u64 *)({ctx} + 8)"),
        2 => load!("{value} = *(u64 *)({ctx} + 16)"),
        3 => load!("{value} = *(u64 *)({ctx} + 24)"),
        4 => load!("{value} = *(u64 *)({ctx} + 32)"),
        _ => 0,
    }
}

/// The inode a dentry stands for; null for a name that is not there.
///
/// # Safety
/// `dentry` is a typed pointer.
#[inline(always)]
pub(crate) unsafe fn inode_of(dentry: Ptr) -> Ptr {
    // SAFETY: the caller's word.
    unsafe { field(dentry, layout!(dentry_d_inode)) }
}

/// The inode of the directory a dentry stands in.
///
/// # Safety
/// `dentry` is a typed pointer.
#[inline(always)]
pub(crate) unsafe fn parent_inode_of(dentry: Ptr) -> Ptr {
    // SAFETY: the caller's word.
    let parent: Ptr = unsafe { field(dentry, layout!(dentry_d_parent)) };
    if parent.is_null() {
        return parent;
    }
    // SAFETY: walked from a typed pointer, and not null.
    unsafe { inode_of(parent) }
}
