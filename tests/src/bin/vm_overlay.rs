//! The agent and containers whose root is an overlay, in a guest of each kernel.

use meshseal_tests::Part;

fn main() -> std::process::ExitCode {
    meshseal_tests::corpus(Part::Overlays, "auto")
}
