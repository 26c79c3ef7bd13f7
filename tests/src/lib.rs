//! Harness of the end-to-end tests.
//!
//! A test program is a binary of this crate: `src/bin/vm_*.rs` runs as root in a guest, on every kernel of the VM lane; `src/bin/native_*.rs` runs as root
//! on this machine. Each names its cases and hands over:
//!
//! ```no_run
//! fn the_agent_is_there() -> anyhow::Result<()> {
//!     anyhow::ensure!(meshseal_tests::meshseal().is_file(), "no agent");
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     meshseal_tests::main(meshseal_tests::cases![the_agent_is_there])
//! }
//! ```
//!
//! It prints `ok <case>` or `FAIL <case>: <why>` for each, on one line, and exits non-zero when one failed. `--list` prints
//! the cases; other arguments choose those whose names contain one of them. A case fails by `Err` or by a panic.

mod agent;
mod atomic;
pub mod audit;
mod corpus;
mod day;
mod delivery;
pub mod empty;
mod harness;
mod kubernetes;
mod latency;
mod pods;
mod process;
mod spool;

pub use corpus::{Part, main as corpus};
pub use day::main as day;
pub use delivery::main as delivery;
pub use harness::{Case, main, run};
pub use kubernetes::main as kubernetes;
pub use latency::main as latency;
pub use pods::main as pods;
pub use spool::main as spool;

use std::path::PathBuf;

/// The agent under test: `$MESHSEAL`, which `cargo xtask test` sets; in a guest it is at its usual place.
pub fn meshseal() -> PathBuf {
    std::env::var_os("MESHSEAL").map_or_else(|| PathBuf::from("/usr/bin/meshseal"), PathBuf::from)
}

/// Names functions of type `fn() -> anyhow::Result<()>` as cases: `cases![first, second]`.
#[macro_export]
macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        &[$($crate::Case { name: stringify!($case), run: $case }),+]
    };
}
