#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("fanotify"), |bytes: &[u8]| monitor::fuzz::one("fanotify", bytes));
