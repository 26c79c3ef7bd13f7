#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("kubernetes"), |bytes: &[u8]| monitor::fuzz::one("kubernetes", bytes));
