#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("variables"), |bytes: &[u8]| monitor::fuzz::one("variables", bytes));
