#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("mountinfo"), |bytes: &[u8]| monitor::fuzz::one("mountinfo", bytes));
