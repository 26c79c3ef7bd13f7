//! `cargo xtask`: what cargo alone cannot say. One file per verb; this one only tells them apart.
//!
//! What a verb downloads or builds for itself lives in the cache ([`cache`]), outside the checkout.

mod apt;
mod bench;
mod build;
mod cache;
mod cmd;
mod coverage;
mod demo;
mod ebpf;
mod fuzz;
mod interrupt;
mod node;
mod package;
mod setup;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, builds, lanes and demo of Meshseal",
    disable_version_flag = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install and cache what the builds and lanes need
    Setup,
    /// Build the eBPF objects into target/ebpf
    Ebpf,
    /// Build the static `meshseal` binary with its eBPF objects; prints its path
    Build(build::Args),
    /// Check and test everything: format, lints, licences, docs, unit tests, fuzzing, this machine, four kernels
    Test(test::Args),
    /// Fuzz the parsers of what comes from outside, guided by coverage
    Fuzz(fuzz::Args),
    /// Show the main job end to end: sealed, changed lawfully, tampered with; who did it, posture, proof
    Demo(demo::Args),
    /// Run the tamper corpus on each rung, and write what each tells into docs/coverage.md
    Coverage,
    /// Measure the budgets of the design, each beside what it is compared with
    Bench(bench::Args),
    /// Run a command on a real kernel, in a guest with the static `meshseal`
    Vm(vm::Args),
    /// Run a command beside a real one-node Kubernetes with the DaemonSet, or `test` that
    Node(node::Args),
    /// Pack what is shipped: binary, image, manifests, hashes, bill of materials
    Package(package::Args),
}

fn main() -> ExitCode {
    if let Some(code) = demo::actors::main() {
        return code;
    }
    let outcome = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Ebpf => ebpf::run(),
        Verb::Build(args) => build::run(&args),
        Verb::Test(args) => test::main(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Coverage => coverage::run(),
        Verb::Bench(args) => bench::run(&args),
        Verb::Vm(args) => vm::main(args),
        Verb::Node(args) => node::run(args),
        Verb::Package(args) => package::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
