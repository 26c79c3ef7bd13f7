//! The agent against the tamper corpus, on this machine and the `fanotify` rung; the rungs above it have guests.

use meshseal_tests::Part;

fn main() -> std::process::ExitCode {
    meshseal_tests::corpus(Part::All, "fanotify")
}
