//! The agent while its sensor fails, in a guest of each kernel.

use meshseal_tests::Part;

fn main() -> std::process::ExitCode {
    meshseal_tests::corpus(Part::Faults, "auto")
}
