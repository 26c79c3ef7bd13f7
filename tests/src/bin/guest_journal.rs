//! The journal under an agent on a small ext4, and under kill -9: `cargo xtask vm --with <this> -- /with/guest_journal`.
//! It gets a `vm_` name once it has been seen to pass in a guest.

fn main() -> std::process::ExitCode {
    meshseal_tests::spool()
}
