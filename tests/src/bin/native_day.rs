//! A day in the life of a node, on this machine and the `fanotify` rung.

fn main() -> std::process::ExitCode {
    meshseal_tests::day("fanotify", 1)
}
