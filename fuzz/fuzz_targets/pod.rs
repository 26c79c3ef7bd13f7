#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("pod"), |bytes: &[u8]| monitor::fuzz::one("pod", bytes));
