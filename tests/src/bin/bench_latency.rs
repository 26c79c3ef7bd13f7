//! What `cargo xtask bench latency` runs, here and in a guest: from an act to its record on disk.

fn main() -> std::process::ExitCode {
    meshseal_tests::latency()
}
