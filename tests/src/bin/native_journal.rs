//! The journal under an agent on a small disk of this machine, and under kill -9.

fn main() -> std::process::ExitCode {
    meshseal_tests::spool()
}
