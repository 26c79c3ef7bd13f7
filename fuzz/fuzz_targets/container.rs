#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("container"), |bytes: &[u8]| monitor::fuzz::one("container", bytes));
