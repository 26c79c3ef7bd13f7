#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("manifest"), |bytes: &[u8]| monitor::fuzz::one("manifest", bytes));
