//! Writers inside pods, in containers of a guest: cgroups, overlay roots and bundles as containerd makes them.

fn main() -> std::process::ExitCode {
    meshseal_tests::pods()
}
