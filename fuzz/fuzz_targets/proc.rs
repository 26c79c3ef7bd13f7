#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("proc"), |bytes: &[u8]| monitor::fuzz::one("proc", bytes));
