#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("dsse"), |bytes: &[u8]| monitor::fuzz::one("dsse", bytes));
