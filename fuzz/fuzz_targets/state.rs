#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("state"), |bytes: &[u8]| monitor::fuzz::one("state", bytes));
