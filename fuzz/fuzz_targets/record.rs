#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("record"), |bytes: &[u8]| monitor::fuzz::one("record", bytes));
