#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("answer"), |bytes: &[u8]| monitor::fuzz::one("answer", bytes));
