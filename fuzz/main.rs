//! One program for all parsers: `FUZZ=NAME` picks the one, and without it their names are printed, one a line.

#![no_main]

libfuzzer_sys::fuzz_target!(init: monitor::fuzz::begin(), |bytes: &[u8]| monitor::fuzz::one(bytes));

/// Instead of the C library's: hash maps take their keys from here, and what a map's order changes would not happen again.
///
/// # Safety
/// `buffer` must have room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller's promise.
    unsafe { buffer.write_bytes(0x5a, length) };
    isize::try_from(length).unwrap_or(isize::MAX)
}
