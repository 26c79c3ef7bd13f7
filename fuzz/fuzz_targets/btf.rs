#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("btf"), |bytes: &[u8]| monitor::fuzz::one("btf", bytes));
