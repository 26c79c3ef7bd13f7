#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("journal"), |bytes: &[u8]| monitor::fuzz::one("journal", bytes));
