//! What the agent tells arrives: third-party receivers, on this machine and the rung it allows.

fn main() -> std::process::ExitCode {
    meshseal_tests::delivery()
}
