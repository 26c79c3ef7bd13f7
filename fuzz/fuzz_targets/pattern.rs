#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("pattern"), |bytes: &[u8]| monitor::fuzz::one("pattern", bytes));
