#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("kernel_record"), |bytes: &[u8]| monitor::fuzz::one("kernel_record", bytes));
