//! Every parser of what comes from outside, as a function of bytes: for the fuzzers, and for a short run in the unit tests.
//!
//! `cargo xtask test --full` runs them for long: guided by coverage where rustup's nightly and cargo-fuzz are there (`fuzz/`),
//! by [`run`] elsewhere. A new parser gets a line in [`TARGETS`] and a file in `fuzz/fuzz_targets`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::baseline::{
    Form, Meaning, Signed, SigningKey, TrustedKey, identity, openssh, secret, statement, trust,
};
use crate::profile::Profiles;
use crate::{attribution, config, image, inventory, journal, manifest, model, profile, sensor};

/// A parser: it must end, without a panic, whatever it is given.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Well-formed input to start from.
    pub seeds: &'static [&'static [u8]],
    /// Takes one input.
    pub run: fn(&[u8]),
}

macro_rules! vector {
    ($name:literal) => {
        include_bytes!(concat!("../tests/vectors/", $name))
    };
}

const STATEMENT: &[u8] = vector!("statement.json");
const KEYS: &[&[u8]] = &[
    vector!("cosign.pub"),
    vector!("openssl-ed25519.pub"),
    vector!("ssh-ed25519.pub"),
    vector!("ssh-ecdsa.pub"),
    vector!("allowed_signers"),
    b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n",
];

/// For results that nobody looks at: the compiler must not leave the parsing out.
#[expect(clippy::needless_pass_by_value, reason = "it is to be dropped here")]
pub(crate) fn used<T>(value: T) {
    std::hint::black_box(&value);
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "dsse",
        seeds: &[vector!("securesystemslib.dsse.json"), vector!("cosign2-attest.dsse.json")],
        run: |bytes| {
            if let Ok(signed) = Signed::read(bytes) {
                let again = signed.to_envelope().and_then(|envelope| Signed::read(&envelope));
                assert_eq!(again.ok(), Some(signed), "what was read must be written and read the same");
            }
        },
    },
    Target {
        name: "bundle",
        seeds: &[
            vector!("cosign2-attest.json"),
            vector!("cosign2-blob-old.json"),
            vector!("cosign2-blob.json"),
            vector!("cosign3-blob.json"),
            vector!("cosign3-statement.json"),
        ],
        run: |bytes| {
            used(Signed::read(bytes));
            used(Signed::bare(STATEMENT.to_vec()).map(|mut signed| signed.attach(bytes)));
        },
    },
    Target {
        name: "sshsig",
        seeds: &[vector!("ssh-ed25519.sig"), vector!("ssh-ecdsa.sig"), vector!("ssh-wrong-namespace.sig")],
        run: |bytes| {
            let blob = std::str::from_utf8(bytes).ok().and_then(openssh::SshSignature::dearmour);
            for blob in [Some(bytes.to_vec()), blob].into_iter().flatten() {
                used(openssh::SshSignature::parse(&blob).map(|ssh| (ssh.key_id(), ssh.foreign_namespace())));
            }
        },
    },
    Target {
        name: "keys",
        seeds: KEYS,
        run: |bytes| {
            used(TrustedKey::parse(bytes).map(|keys| keys.iter().map(TrustedKey::label).collect::<Vec<_>>()));
            used(SigningKey::from_pem(bytes));
            used(secret::public_key_of(bytes));
            used(identity::extract(bytes));
            used(identity::certificates(bytes));
        },
    },
    Target {
        name: "statement",
        seeds: &[STATEMENT],
        run: |bytes| {
            used(statement::parse(bytes));
            used(trust::Rotation::parse(bytes));
        },
    },
    Target {
        name: "config",
        seeds: &[
            b"apiVersion: meshseal/v1\nmode: observe\nnode: n\nbaselines: {files: [/a], trustedKeys: [/k], requireSignatures: 2}\n",
            b"apiVersion: meshseal/v1\nnode: n\nscrub: { interval: 24h, ioBudget: 10MiB/s }\nexport:\n  otlp:\n    - { endpoint: \"http://127.0.0.1:4317\", protocol: grpc }\n",
        ],
        run: |bytes| {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Err(error) = config::parse(Path::new("/c.yaml"), text)
            {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        },
    },
    Target {
        name: "meaning",
        seeds: &[
            br#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "mtu": 1}, {"type": "istio-cni"}]}"#,
            b"a: [1, y, 0777, {b: c}]\n",
            vector!("openssl-ed25519.pub"),
            b"-----BEGIN CERTIFICATE-----\nMAEB\n-----END CERTIFICATE-----\n",
        ],
        run: |bytes| {
            for form in [Form::Pem, Form::Cni, Form::Json, Form::Yaml] {
                if let Ok(meaning) = Meaning::read(form, bytes) {
                    assert_eq!(meaning.differs(Ok(&meaning)), None, "it is as itself");
                    used((meaning.state(), meaning.without_it()));
                    used(meaning.differs(Err("why")));
                }
            }
        },
    },
    Target {
        name: "profile",
        seeds: &[
            include_bytes!("../profiles/istio-proxy.yaml"),
            include_bytes!("../profiles/cilium.yaml"),
            include_bytes!("../profiles/cert-manager-csi.yaml"),
        ],
        run: |bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match profile::parse("p.yaml", text) {
                Ok(profile) => used(serde_json::to_string(&profile)),
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        },
    },
    Target {
        name: "manifest",
        seeds: &[include_bytes!("../../tests/fixtures/manifests/every-kind.yaml")],
        run: |bytes| {
            let mut documents = Vec::new();
            if manifest::document::parse("m.yaml", bytes, &mut documents).is_ok()
                && let Ok(manifests) = manifest::Manifests::of(documents, "default")
                && let Ok(sealed) = manifest::seal(&manifests, &with_profiles())
            {
                let predicate = json!({ "name": "n", "revision": 1, "objects": sealed.objects });
                let text = serde_json::from_value(predicate).map(statement::Statement::of);
                let text = text.ok().and_then(Result::ok).and_then(|statement| statement.to_json().ok());
                let read = text.as_deref().map(statement::parse);
                assert!(read.as_ref().is_some_and(Result::is_ok), "what was sealed must be read: {read:?}");
            }
        },
    },
    Target { name: "layer", seeds: &[include_bytes!("../../fuzz/seeds/layer.tar")], run: image::fuzz_layer },
    Target { name: "archive", seeds: &[include_bytes!("../../fuzz/seeds/saved.tar")], run: image::fuzz_archive },
    Target { name: "journal", seeds: &[], run: journal::fuzz },
    Target {
        name: "checkpoint",
        seeds: &[b"meshseal/n/x\n12\nqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=\n\n\xe2\x80\x94 meshseal/n/x AAAAAAAAAAAAAAAAAAAA\n"],
        run: journal::fuzz_checkpoint,
    },
    Target { name: "kernel_record", seeds: &[&[0; 64], &[1; 4096]], run: sensor::hooks::decode::fuzz },
    Target { name: "fanotify", seeds: &[&[0; 24], &[64; 128]], run: sensor::fanotify::fuzz },
    Target {
        name: "btf",
        seeds: &[&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 16, 0, 0, 0, 8, 0, 0, 0]],
        run: |bytes| {
            used(sensor::btf::Btf::parse(bytes).map(|btf| (btf.layout(sensor::btf::LSM_PREFIX), btf.argument("f", "a"))));
        },
    },
    Target {
        name: "mountinfo",
        seeds: &[b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"],
        run: |bytes| {
            let mounts = inventory::mounts::Mounts::parse(bytes);
            let path = model::HostPath::new(bytes);
            for mount in mounts.all() {
                used(mounts.host_path(mount.dev, &path));
                used(mounts.path_in_fs(mount.id, &path));
            }
        },
    },
    Target {
        name: "proc",
        seeds: &[
            b"42 (a) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3",
            b"Name:\tx\nTgid:\t9\nPid:\t9\nTracerPid:\t3\nUid:\t1000\t0\t0\t0\n",
            b"12:memory:/kubepods/burstable/pod1\n1:name=systemd:/system.slice/x.service\n0::/\n",
        ],
        run: inventory::procs::fuzz,
    },
    Target {
        name: "kubernetes",
        seeds: &[
            br#"{"type":"ADDED","object":{"metadata":{"name":"p","namespace":"n","uid":"u","resourceVersion":"1","ownerReferences":[{"kind":"ReplicaSet","name":"r","uid":"o","controller":true}]},"spec":{"containers":[{"name":"c","image":"i","volumeMounts":[{"name":"v"}]}],"volumes":[{"name":"v","projected":{"sources":[{"configMap":{"name":"m","items":[{"path":"a"}]}}]}}]},"status":{"containerStatuses":[{"name":"c","containerID":"containerd://1","imageID":"i@sha256:0"}]}}}"#,
            br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"m"}}"#,
            br#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"p","namespace":"n","uid":"u"}}]}"#,
            b"current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {server: \"https://k\"}}]\nusers: [{name: u, user: {token: t}}]\n",
        ],
        run: inventory::api::fuzz,
    },
    Target {
        name: "cgroup",
        seeds: &[
            b"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice/cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope",
            b"/kubepods/besteffort/pod01234567-89ab-cdef-0123-456789abcdef/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ],
        run: |bytes| {
            let text = String::from_utf8_lossy(bytes);
            used(attribution::cgroup::parse(&text));
            used(attribution::cgroup::in_kubepods(&text));
            used(attribution::redact::cmdline(&[bytes.to_vec()]));
            assert_eq!(
                model::HostPath::from_text(&model::HostPath::new(bytes).to_string()).as_bytes(),
                bytes,
                "a path's text must lead back to it"
            );
        },
    },
];

/// Gives one input to the target of that name.
///
/// # Panics
/// There is no such target; or the parser panics, which is what is looked for.
#[expect(clippy::panic, reason = "a fuzzer wants to die of what it finds")]
pub fn one(name: &str, bytes: &[u8]) {
    match TARGETS.iter().find(|target| target.name == name) {
        Some(target) => (target.run)(bytes),
        None => panic!("no fuzz target {name}"),
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
    let empty: &[&[u8]] = &[&[]];
    let seeds = if target.seeds.is_empty() { empty } else { target.seeds };
    let mut cases = 0;
    let goes_on = |cases: u32| match until {
        Until::Cases(most) => cases < most,
        Until::Time(most) => started.elapsed() < most,
    };
    for seed in seeds {
        (target.run)(seed);
    }
    while goes_on(cases) {
        let mut bytes = random.pick(seeds).map_or_else(Vec::new, <[u8]>::to_vec);
        for _ in 0..=random.below(4) {
            random.change(&mut bytes, seeds);
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

fn with_profiles() -> manifest::Options {
    let profiles = std::sync::Arc::clone(Profiles::built_in());
    manifest::Options { profiles, ..manifest::Options::default() }
}

#[cfg(test)]
mod tests {
    use super::{TARGETS, Until, run};
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

    /// Each target has its file for cargo-fuzz, and each file its target.
    #[test]
    fn every_target_is_known_to_cargo_fuzz() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        files.sort();
        let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }
}
