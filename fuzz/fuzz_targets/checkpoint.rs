#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("checkpoint"), |bytes: &[u8]| monitor::fuzz::one("checkpoint", bytes));
