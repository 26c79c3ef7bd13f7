//! What crosses the boundary between the kernel and the agent: records, limits, and the layout of kernel structures.
//!
//! The programs are in `lsm.rs` and `trace.rs` and exist only for `target_arch = "bpf"`.
#![no_std]

pub mod layout;
pub mod limits;
pub mod record;

pub use layout::Layout;
