//! What is on this node: processes, mounts, lawful writers, mesh files. Read from /proc and the node's root, all of
//! it taken as hostile input; nothing here decides whether something is a violation.

pub mod api;
pub mod code;
mod code_hash;
pub mod containers;
mod departed;
pub mod handles;
pub mod in_pod;
pub mod inodes;
pub mod layers;
pub mod mesh;
pub(crate) mod mount_table;
pub mod mounts;
pub mod pods;
pub mod procs;
mod succession;
pub mod workloads;
pub mod writers;
