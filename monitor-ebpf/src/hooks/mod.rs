//! The programs, one family of hooks per file. All of them observe: none refuses, whatever happens. (On the `lsm` rung an
//! earlier program's refusal ends the call before the next program runs, so there is no verdict to hand on.)
//!
//! The same bodies serve each rung that stands on the kernel's security hooks. What differs is in the object's module
//! `rung`:
//! - `hook!("name", name)`: a program on that hook, which hands its context to the function `name`;
//! - `may_be_tagged(inode)`: false for most inodes without a tag, at the cost of a few instructions;
//! - `tag_of(inode)`: a pointer to the inode's tag, or null;
//! - `tag(inode, tag)`: tags an inode that has no tag; false if there was no room;
//! - `grant(inode, request)`: what the kernel's side does of it where the agent tags an inode; false if there was no room;
//! - `TYPED_INODES`: whether these want the inode by a pointer that the verifier trusts;
//!
//! and in the layout, where the agent finds each argument in the function that the rung's programs stand on.

mod attributes;
mod calls;
mod emit;
mod execute;
mod inherit;
mod ioctl;
mod mounts;
mod names;
mod open;
mod processes;
mod request;
pub(crate) mod tags;

use core::ffi::c_void;

use aya_ebpf::EbpfContext;

use crate::kernel::{Ptr, arg, opaque};

/// The agent's own process: its reads are not counted.
#[unsafe(no_mangle)]
static AGENT: u32 = 0;

/// A program's context, whatever its type.
pub(crate) struct Context(*mut c_void);

impl Context {
    /// # Safety
    /// `ctx` is what the kernel gave to the program that runs.
    #[inline(always)]
    pub(crate) unsafe fn new(ctx: *mut c_void) -> Self {
        Self(ctx)
    }
}

impl EbpfContext for Context {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}

/// A pointer argument.
///
/// # Safety
/// As [`arg`].
#[inline(always)]
pub(crate) unsafe fn pointer(ctx: &Context, position: u32) -> Ptr {
    // SAFETY: the caller's word.
    unsafe { arg(ctx.0, position) as *const c_void }
}

/// A number argument.
///
/// # Safety
/// As [`arg`].
#[inline(always)]
unsafe fn number(ctx: &Context, position: u32) -> u64 {
    // SAFETY: the caller's word.
    unsafe { arg(ctx.0, position) }
}

/// A slot that the compiler cannot trace back: it would carry the undefined half of an `Option` around in registers
/// that the verifier then finds never written.
#[inline(always)]
pub(crate) fn settled(slot: u32) -> u32 {
    opaque(u64::from(slot)) as u32
}
