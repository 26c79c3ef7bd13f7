//! What is lawful in a day of a node, on this machine and the `inotify` rung.

fn main() -> std::process::ExitCode {
    meshseal_tests::day("inotify", 1)
}
