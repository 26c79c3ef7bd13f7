//! `meshseal baseline keys`: a statement that changes whose signatures count, to be signed with the keys that count now.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Format, output};
use crate::baseline::keys::label;
use crate::baseline::trust::{NAME, Rotation, Trust};
use crate::baseline::{Error, Signed, TrustedKey, dsse, read_bounded, write_atomic};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Public keys that count from then on, all of them, or directories of *.pub files.
    #[arg(long = "trusted-key", required = true, num_args = 1.., value_name = "PUB")]
    keys: Vec<PathBuf>,
    /// Distinct keys that must sign from then on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), value_name = "K")]
    require_signatures: u32,
    /// Revision, higher than that of the keys statement before.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    revision: u64,
    /// The statement.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let keys = TrustedKey::read_all(&args.keys)?;
    let statement = Rotation::statement(args.revision, args.require_signatures, &keys)?;
    write_atomic(&args.output, &statement, 0o644)?;
    match format {
        Format::Text => {
            let labels: Vec<String> = keys.iter().map(|key| label(key.name(), key.id())).collect();
            output::line(&output::one_line(&format!(
                "{NAME} revision {} in {}: {} of {}; sign it with the keys that count now",
                args.revision,
                args.output.display(),
                args.require_signatures,
                labels.join(", ")
            )))?;
        }
        Format::Json => {
            let ids: Vec<&str> = keys.iter().map(TrustedKey::id).collect();
            let answer = serde_json::json!({
                "name": NAME, "revision": args.revision, "require_signatures": args.require_signatures, "keys": ids,
            });
            output::line(&answer.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The keys of the command line, changed by signed keys statements in this order.
#[derive(Debug, clap::Args)]
pub(super) struct Keys {
    /// Public keys trusted to sign: PEM, OpenSSH .pub or allowed_signers files, or directories of *.pub files.
    #[arg(long = "trusted-key", num_args = 1.., value_name = "PUB")]
    pub(super) trusted_keys: Vec<PathBuf>,
    /// Distinct trusted keys that must have signed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..), value_name = "K")]
    pub(super) require_signatures: u16,
    /// Signed statements that changed the trusted keys since, oldest first (`meshseal baseline keys`).
    #[arg(long = "rotation", num_args = 1.., value_name = "FILE")]
    rotations: Vec<PathBuf>,
}

impl Keys {
    /// Whose signatures count.
    pub(super) fn trust(&self) -> Result<Trust, Error> {
        let keys = TrustedKey::read_all(&self.trusted_keys)?;
        let mut trust = Trust::new(keys, usize::from(self.require_signatures));
        for file in &self.rotations {
            let bytes = read_bounded(file, dsse::MAX_ENVELOPE)?;
            Signed::read(&bytes)
                .and_then(|signed| trust.rotate(&signed, true))
                .map_err(|e| e.in_file(file.display()))?;
        }
        Ok(trust)
    }
}
