//! The agent against each act of the tamper corpus on xfs and btrfs, in a guest of each kernel.

use meshseal_tests::Part;

fn main() -> std::process::ExitCode {
    meshseal_tests::corpus(Part::FileSystems, "auto")
}
