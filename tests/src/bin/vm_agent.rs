//! The agent against what is more than one act on one object, in a guest of each kernel.

use meshseal_tests::Part;

fn main() -> std::process::ExitCode {
    meshseal_tests::corpus(Part::Others, "auto")
}
