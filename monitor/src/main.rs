//! The `meshseal` binary: arguments in, exit status out.

use std::process::ExitCode;

fn main() -> ExitCode {
    monitor::cli::main()
}
