//! A directory with a key pair, and `meshseal` run in it.

use std::path::Path;
use std::process::Command;

/// Makes `key.pem` and `key.pub`.
pub(crate) fn keys(dir: &Path) {
    for args in ["genpkey -algorithm ed25519 -out key.pem", "pkey -in key.pem -pubout -out key.pub"] {
        let openssl = Command::new("openssl").args(args.split(' ')).current_dir(dir).status();
        assert!(openssl.unwrap().success(), "{args}");
    }
}

/// Exit status, stdout, stderr.
pub(crate) fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let meshseal = env!("CARGO_BIN_EXE_meshseal");
    let output = Command::new(meshseal).args(args).current_dir(dir).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
