#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("meaning"), |bytes: &[u8]| monitor::fuzz::one("meaning", bytes));
