#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("request"), |bytes: &[u8]| monitor::fuzz::one("request", bytes));
