//! The agent against each act of the tamper corpus, in a guest of each kernel.

use meshseal_tests::Part;

fn main() -> std::process::ExitCode {
    meshseal_tests::corpus(Part::Acts, "auto")
}
