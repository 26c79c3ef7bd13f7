#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("profile"), |bytes: &[u8]| monitor::fuzz::one("profile", bytes));
