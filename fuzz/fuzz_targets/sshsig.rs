#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("sshsig"), |bytes: &[u8]| monitor::fuzz::one("sshsig", bytes));
