//! One program for all parsers: `FUZZ=NAME` picks the one, and without it their names are printed, one a line.

#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin(), |bytes: &[u8]| monitor::fuzz::one(bytes));
