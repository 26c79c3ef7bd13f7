#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| monitor::fuzz::one("kubernetes", bytes));
