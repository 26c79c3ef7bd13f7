//! A day in the life of a node, in a guest.

fn main() -> std::process::ExitCode {
    meshseal_tests::day("auto", 1)
}
