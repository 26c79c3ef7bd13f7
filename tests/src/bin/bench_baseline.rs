//! What `cargo xtask bench baseline` runs: makes a baseline of many objects, or loads one and tells time and memory.
//!
//! Two processes, so that what it takes to make one is not in the memory that is measured.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use monitor::baseline::statement::{self, Statement};
use monitor::baseline::{SigningKey, TrustedKey, dsse, read_bounded};
use serde_json::json;

/// Ed25519, of no worth: both halves of the bench know it.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["make", file, objects] => make(Path::new(file), objects.parse().context("a number of objects")?),
        ["load", file] => load(Path::new(file)),
        _ => bail!("make FILE OBJECTS, or load FILE"),
    }
}

/// Files as pods on a node have them, with paths as long as the kubelet's.
fn make(file: &Path, objects: u64) -> Result<()> {
    let objects: Vec<_> = (0..objects)
        .map(|at| {
            let pod = at / 20;
            json!({
                "class": "sealed", "gid": 1337, "mode": "0644", "uid": 0, "type": "file",
                "path": format!(
                    "/var/lib/kubelet/pods/{pod:08x}-0000-4000-8000-{pod:012x}/etc-hosts/conf.d/{at:06}.json"
                ),
                "sha256": format!("{at:064x}"), "size": at, "writers": ["kubelet"],
            })
        })
        .collect();
    let predicate = json!({ "name": "bench", "revision": 1, "objects": objects });
    let statement = Statement::of(serde_json::from_value(predicate)?)?.to_json()?;
    let key = SigningKey::from_pem(KEY.as_bytes())?;
    std::fs::write(file, dsse::sign(&statement, &[key])?)?;
    Ok(())
}

fn load(file: &Path) -> Result<()> {
    let trusted: [TrustedKey; 1] = [SigningKey::from_pem(KEY.as_bytes())?.public().clone()];
    let before = resident()?;
    let started = Instant::now();
    let envelope = read_bounded(file, dsse::MAX_ENVELOPE)?;
    let verified = dsse::verify(&envelope, &trusted, 1)?;
    drop(envelope);
    let baseline = statement::parse(&verified.payload)?;
    let seconds = started.elapsed().as_secs_f64();
    drop(verified);
    let after = resident()?;
    let paths: usize = baseline.objects.iter().map(|object| object.path.as_bytes().len()).sum();
    let objects = baseline.objects.len();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = (after.saturating_sub(before).saturating_sub(paths)) as f64 / objects as f64;
    println!("{}", json!({ "objects": objects, "seconds": seconds, "bytes_per_object": bytes }));
    Ok(())
}

/// Resident bytes of this process, what the allocator keeps for later given back.
fn resident() -> Result<usize> {
    // SAFETY: no argument is a pointer, and glibc locks its arenas itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).context("pages in /proc/self/statm")?.parse()?;
    Ok(pages * rustix::param::page_size())
}
