//! Every parser of what comes from outside, as a function of bytes: for the fuzzers, and for a short run in the unit tests.
//!
//! `cargo xtask fuzz` runs them guided by coverage (libFuzzer, in `fuzz/`), for a moment in `cargo xtask test` and for long in its
//! `--full`. Plain `cargo test` needs no libFuzzer: there [`run`] changes seeds. A new parser gets an entry in [`TARGETS`].
//!
//! Not here, since others' code parses them and ours takes fields of a type: events of inotify, netlink's and BPF's answers, TLS, gRPC.

mod targets;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use self::targets::TARGETS;

/// A parser: it must end, without a panic, whatever it is given.
#[derive(Debug)]
pub struct Target {
    /// Its name: letters, digits and `_`.
    pub name: &'static str,
    /// Well-formed input to start from.
    pub seeds: &'static [&'static [u8]],
    /// More of it, which has to be made.
    pub made: fn() -> Vec<Vec<u8>>,
    /// Takes one input.
    pub run: fn(&[u8]),
}

/// For results that nobody looks at: the compiler must not leave the parsing out.
#[expect(clippy::needless_pass_by_value, reason = "it is to be dropped here")]
pub(crate) fn used<T>(value: T) {
    std::hint::black_box(&value);
}

impl Target {
    /// All input to start from.
    #[must_use]
    pub fn all_seeds(&self) -> Vec<Vec<u8>> {
        self.seeds.iter().map(|seed| seed.to_vec()).chain((self.made)()).collect()
    }
}

/// The one that `FUZZ` names.
static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

/// Before the first input: finds the parser that the environment variable `FUZZ` names, and writes its seeds into the directory that
/// `MESHSEAL_FUZZ_SEEDS` names, if it does. Where none is named, the program prints the names of all, one a line, and ends.
///
/// # Panics
/// There is no such parser; or its seeds cannot be written.
#[expect(
    clippy::panic,
    reason = "a fuzzer without its parser or its seeds finds nothing, and does not say so"
)]
pub fn begin() {
    let Some(name) = std::env::var_os("FUZZ") else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        println!("{}", names.join("\n"));
        std::process::exit(0);
    };
    let Some(target) = TARGETS.iter().find(|target| name == target.name) else {
        panic!("FUZZ={} names no parser", name.display());
    };
    if let Some(dir) = std::env::var_os("MESHSEAL_FUZZ_SEEDS").map(PathBuf::from) {
        for (at, seed) in target.all_seeds().iter().enumerate() {
            if let Err(error) = std::fs::write(dir.join(format!("seed-{at}")), seed) {
                panic!("the seeds of {} cannot be written: {error}", target.name);
            }
        }
    }
    CHOSEN.get_or_init(|| target);
}

/// Gives one input to the parser that [`begin`] has found.
///
/// # Panics
/// There is none; or the parser panics, which is what is looked for.
#[expect(clippy::panic, reason = "a fuzzer wants to die of what it finds")]
pub fn one(bytes: &[u8]) {
    match CHOSEN.get() {
        Some(target) => (target.run)(bytes),
        None => panic!("no parser was chosen"),
    }
}

/// What stops a run without a coverage-guided fuzzer.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// So many inputs.
    Cases(u32),
    /// So much time.
    Time(Duration),
}

/// Feeds changed seeds to a target; the same ones for the same `start`. Answers how many.
pub fn run(target: &Target, until: Until, start: u64) -> u32 {
    let started = Instant::now();
    let mut random = Random(start.max(1));
    let all = target.all_seeds();
    let mut seeds: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    seeds.push(&[]);
    let mut cases = 0;
    let goes_on = |cases: u32| match until {
        Until::Cases(most) => cases < most,
        Until::Time(most) => started.elapsed() < most,
    };
    for seed in &seeds {
        (target.run)(seed);
    }
    while goes_on(cases) {
        let mut bytes = random.pick(&seeds).map_or_else(Vec::new, <[u8]>::to_vec);
        for _ in 0..=random.below(4) {
            random.change(&mut bytes, &seeds);
        }
        (target.run)(&bytes);
        cases += 1;
    }
    cases
}

/// xorshift64: enough to spread, and repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 0 for 0.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap_or(usize::MAX).checked_rem(limit).unwrap_or(0)
    }

    fn pick<'p, T: ?Sized>(&mut self, from: &'p [&'p T]) -> Option<&'p T> {
        from.get(self.below(from.len())).copied()
    }

    fn change(&mut self, bytes: &mut Vec<u8>, seeds: &[&[u8]]) {
        /// Words that parsers stumble over.
        const WORDS: &[&[u8]] = &[
            b"\0",
            b"\xff",
            b"\xff\xff\xff\xff",
            b"\0\0\0\0",
            b"\x7f\xff\xff\xff",
            b"\n",
            b"\"",
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b"-1",
            b"18446744073709551616",
            b"1e999",
            b"null",
            b"\\u0000",
            b"..",
            b"/",
            b"\x80",
            b"\\x",
            b"&a [*a]",
            b"- ",
        ];
        let at = self.below(bytes.len() + 1);
        match self.below(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (self.0 % 8);
                }
            }
            1 => {
                let value = self.next().to_le_bytes()[0];
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + self.below(16)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            4 | 5 => {
                let word = self.pick(WORDS).unwrap_or_default().to_vec();
                bytes.splice(at..at, word);
            }
            6 => {
                // A part of it once more.
                let end = (at + 1 + self.below(64)).min(bytes.len());
                let part = bytes.get(at.min(end)..end).unwrap_or_default().to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let other = self.pick(seeds).unwrap_or_default();
                let from = self.below(other.len() + 1);
                let part = other.get(from..).unwrap_or_default().to_vec();
                bytes.truncate(at);
                bytes.extend(part);
            }
        }
        bytes.truncate(1 << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::{TARGETS, Target, Until, run};
    use std::time::Duration;

    /// Short by default; `MESHSEAL_FUZZ_SECONDS` makes it so many seconds for each target, from another start each time.
    #[test]
    fn every_parser_ends_without_a_panic() {
        let seconds = std::env::var("MESHSEAL_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let until = seconds.map_or(Until::Cases(400), |seconds| Until::Time(Duration::from_secs(seconds)));
        let start = seconds.map_or(0x2545_f491_4f6c_dd1d, |_| crate::model::Time::now().0.unsigned_abs());
        println!("start {start}");
        for target in TARGETS {
            let cases = run(target, until, start);
            println!("{}: {cases} inputs", target.name);
            assert!(cases > 0);
        }
    }

    /// They are asked for by name, and are names of directories.
    #[test]
    fn each_target_has_a_name_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for Target { name, .. } in TARGETS {
            assert!(seen.insert(name), "{name} twice");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{name}");
        }
    }
}
