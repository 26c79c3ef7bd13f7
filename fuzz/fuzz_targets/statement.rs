#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("statement"), |bytes: &[u8]| monitor::fuzz::one("statement", bytes));
