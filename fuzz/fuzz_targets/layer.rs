#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("layer"), |bytes: &[u8]| monitor::fuzz::one("layer", bytes));
