#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("bundle"), |bytes: &[u8]| monitor::fuzz::one("bundle", bytes));
