#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("journal_files"), |bytes: &[u8]| monitor::fuzz::one("journal_files", bytes));
