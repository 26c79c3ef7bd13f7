#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("archive"), |bytes: &[u8]| monitor::fuzz::one("archive", bytes));
