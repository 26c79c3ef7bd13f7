//! The agent against the tamper corpus, on this machine and the lowest rung.

use meshseal_tests::Part;

fn main() -> std::process::ExitCode {
    meshseal_tests::corpus(Part::All, "inotify")
}
