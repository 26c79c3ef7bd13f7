//! `meshseal sign`: a DSSE envelope around a statement, or more signatures on an envelope.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, Format, output};
use crate::baseline::{
    Error, Signed, SigningKey, dsse, read_bounded, signed, statement, trust, uninstall, write_atomic,
};

#[derive(Debug, clap::Args)]
#[command(
    override_usage = "meshseal sign --key PEM... STATEMENT -o FILE\n       meshseal sign --attach SIGNATURE... STATEMENT -o FILE"
)]
pub(super) struct Args {
    /// Private keys: Ed25519 or ECDSA P-256 in PEM.
    #[arg(long = "key", required_unless_present = "attach", num_args = 1.., value_name = "PEM")]
    keys: Vec<PathBuf>,
    /// Signatures that other tools made over the statement: `ssh-keygen -Y sign -n baseline@meshseal.dev`, a bundle of
    /// `cosign sign-blob`, or bare as `openssl dgst -sign` writes them.
    #[arg(long, num_args = 1.., value_name = "SIGNATURE")]
    attach: Vec<PathBuf>,
    /// The statement, or an envelope that is to have more signatures.
    #[arg(value_name = "STATEMENT")]
    statement: Option<PathBuf>,
    /// The envelope.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(args: &Args, format: Format) -> Result<ExitCode, Failure> {
    let (mut keys, mut attach) = (args.keys.clone(), args.attach.clone());
    // `--key PEM... STATEMENT`: where nothing else is the statement, the last word is.
    let input = match &args.statement {
        Some(path) => path.clone(),
        None if keys.len() > 1 => keys.pop().unwrap_or_default(),
        None if attach.len() > 1 => attach.pop().unwrap_or_default(),
        None => return Err(Failure::new("arguments", "STATEMENT", "required but not given")),
    };
    let keys = keys.iter().map(|path| SigningKey::read(path)).collect::<Result<Vec<_>, _>>()?;
    let mut signed = read(&input)?;
    for file in &attach {
        attach_file(&mut signed, file)?;
    }
    signed.sign(&keys)?;
    write_atomic(&args.output, &signed.to_envelope()?, 0o644)?;
    let claims = signed::claims(&signed);
    match format {
        Format::Text => output::line(&output::one_line(&format!(
            "signed {}, now by {}",
            args.output.display(),
            claims.join(", ")
        )))?,
        Format::Json => output::line(&serde_json::json!({ "signers": claims }).to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A statement or an envelope; nothing is checked.
pub(super) fn open(path: &Path) -> Result<Signed, Error> {
    let bytes = read_bounded(path, dsse::MAX_ENVELOPE)?;
    let signed =
        if statement::looks_like_statement(&bytes) { Signed::bare(bytes) } else { Signed::read(&bytes) };
    signed.map_err(|e| e.in_file(path.display()))
}

/// The same, its payload checked by the reader that will judge it.
pub(super) fn read(path: &Path) -> Result<Signed, Error> {
    let bytes = read_bounded(path, dsse::MAX_ENVELOPE)?;
    let read = || {
        let signed =
            if dsse::looks_like_envelope(&bytes) { Signed::read(&bytes)? } else { Signed::bare(bytes)? };
        if trust::is_keys_statement(&signed.payload) {
            trust::Rotation::parse(&signed.payload)?;
        } else if uninstall::is_uninstall_statement(&signed.payload) {
            uninstall::Uninstall::parse(&signed.payload)?;
        } else {
            statement::parse(&signed.payload)?;
        }
        Ok(signed)
    };
    read().map_err(|e: Error| e.in_file(path.display()))
}

/// Adds the signatures of a file.
pub(super) fn attach_file(signed: &mut Signed, file: &Path) -> Result<(), Error> {
    let bytes = read_bounded(file, dsse::MAX_ENVELOPE)?;
    signed.attach(&bytes).map_err(|e| e.in_file(file.display()))
}
