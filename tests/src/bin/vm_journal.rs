//! The journal under an agent on a small ext4 that is full, and under kill -9 amid a storm, in a guest of each kernel.

fn main() -> std::process::ExitCode {
    meshseal_tests::spool()
}
