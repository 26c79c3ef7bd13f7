#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin("cgroup"), |bytes: &[u8]| monitor::fuzz::one("cgroup", bytes));
