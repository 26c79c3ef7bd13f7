//! The two lawful writers of the story, under their own names: this xtask, started as `kubelet` or `pilot-agent`.
//!
//! They write as the real ones do (atomic_writer.go, pilot-agent's `OUTPUT_CERTS`), one order a line on stdin: `DIR<tab>STAGING`.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

type Write = fn(&Path, &Path) -> Result<()>;

/// Runs as the writer whose name this process was started by; `None` where it is plainly xtask.
pub(crate) fn main() -> Option<ExitCode> {
    let called = std::env::args_os().next().unwrap_or_else(|| OsString::from("xtask"));
    let write: Write = match Path::new(&called).file_name()?.as_bytes() {
        b"kubelet" => publish,
        b"pilot-agent" => renew,
        _ => return None,
    };
    Some(match serve(write) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", Path::new(&called).display());
            ExitCode::FAILURE
        }
    })
}

fn serve(write: Write) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.context("no orders")?;
        let (dir, staging) = line.split_once('\t').context("an order is DIR<tab>STAGING")?;
        write(Path::new(dir), Path::new(staging))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "done").and_then(|()| out.flush()).context("nobody listens")?;
    }
    Ok(())
}

/// The files to write, by name.
fn staged(staging: &Path) -> Result<Vec<(OsString, Vec<u8>, u32)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(staging).with_context(|| format!("cannot read {}", staging.display()))? {
        let entry = entry?;
        let mode = entry.metadata()?.permissions().mode() & 0o7777;
        files.push((entry.file_name(), fs::read(entry.path())?, mode));
    }
    files.sort();
    Ok(files)
}

/// A first publish, into a directory that may not be there yet.
pub(super) fn publish_into(volume: &Path, staging: &Path) -> Result<()> {
    super::places::make(volume)?;
    publish(volume, staging)
}

/// Certificates in their place before anything watches.
pub(super) fn renew_into(dir: &Path, staging: &Path) -> Result<()> {
    renew(dir, staging)
}

/// The kubelet's AtomicWriter: a new timestamped directory, one rename onto `..data`, and the old directory away.
fn publish(volume: &Path, staging: &Path) -> Result<()> {
    let files = staged(staging)?;
    let old = fs::read_link(volume.join("..data")).ok();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (day, second) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let name =
        format!("..{year}_{month:02}_{day:02}_{hour:02}_{minute:02}_{second:02}.{}", now.subsec_nanos());
    let dir = volume.join(&name);
    fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    for (file, bytes, mode) in &files {
        fs::write(dir.join(file), bytes)?;
        fs::set_permissions(dir.join(file), fs::Permissions::from_mode(*mode))?;
    }
    symlink(&name, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    for (file, _, _) in &files {
        if !volume.join(file).is_symlink() {
            symlink(Path::new("..data").join(file), volume.join(file))?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

/// pilot-agent's way to write certificates: each by a temporary file beside it and a rename.
fn renew(dir: &Path, staging: &Path) -> Result<()> {
    let mut files = staged(staging)?;
    // The key before the certificate that belongs to it.
    files.sort_by_key(|(name, _, _)| name != "key.pem");
    for (name, bytes, mode) in files {
        let mut temporary = name.clone();
        temporary.push(".tmp.104729");
        let temporary = dir.join(temporary);
        fs::File::create(&temporary)?.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, dir.join(name))?;
    }
    Ok(())
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`).
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_since_1970_as_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(20_512), (2026, 2, 28));
        assert_eq!(civil(19_782), (2024, 2, 29));
    }

    #[test]
    fn a_publish_leaves_one_revision_behind_links() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, staging) = (dir.path().join("volume"), dir.path().join("staging"));
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&staging).unwrap();
        for text in ["one", "two"] {
            fs::write(staging.join("a"), text).unwrap();
            publish(&volume, &staging).unwrap();
            assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), text);
            assert_eq!(fs::read_dir(&volume).unwrap().count(), 3);
        }
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
    }
}
