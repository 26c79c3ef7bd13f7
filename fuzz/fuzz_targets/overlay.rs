#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("overlay"), |bytes: &[u8]| monitor::fuzz::one("overlay", bytes));
