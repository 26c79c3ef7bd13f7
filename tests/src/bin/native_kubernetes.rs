//! The agent beside a Kubernetes API that tells, hangs, lies and falls silent, on this machine and the `fanotify` rung.

fn main() -> std::process::ExitCode {
    meshseal_tests::kubernetes()
}
