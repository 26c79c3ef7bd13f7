//! Tests of what the kernel tells of this process run in a process of their own: the threads of one process have one
//! pid, and a child that another test starts holds its open files for a moment, so that it is the one to close them.

use std::process::Command;

/// Set in the process of one test.
const ALONE: &str = "MESHSEAL_TEST_ALONE";

/// Runs `test` in a process in which no other test runs. Call it in the thread of the test.
pub(super) fn alone(test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let thread = std::thread::current();
    let name = thread.name().expect("the thread of a test has its name");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("1 passed"), "{name} did not run: {told}");
}
