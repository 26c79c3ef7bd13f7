#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("config"), |bytes: &[u8]| monitor::fuzz::one("config", bytes));
