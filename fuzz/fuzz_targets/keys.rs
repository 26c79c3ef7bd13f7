#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("keys"), |bytes: &[u8]| monitor::fuzz::one("keys", bytes));
