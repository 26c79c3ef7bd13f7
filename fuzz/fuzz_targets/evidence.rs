#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("evidence"), |bytes: &[u8]| monitor::fuzz::one("evidence", bytes));
