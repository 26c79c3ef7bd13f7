//! Finding and reading the file, and the profiles it names.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Config, ConfigError, resolve, written::Written};
use crate::profile::Profiles;
use crate::yaml;

/// What is read when the command line names no file.
pub const DEFAULT_FILE: &str = "/etc/meshseal/config.yaml";

/// What a config file is called in refusals.
const NOUN: &str = "config file";

/// Where the configuration is to be taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This file.
    File(PathBuf),
    /// No file was named, and the default one does not exist.
    BuiltIn,
}

/// Picks the first of `candidates` that exists; without candidates [`DEFAULT_FILE`], or else the built-in defaults.
///
/// # Errors
/// Candidates were named and none exists.
pub fn choose(candidates: &[PathBuf]) -> Result<Source, ConfigError> {
    if candidates.is_empty() {
        let default = Path::new(DEFAULT_FILE);
        return Ok(if exists(default) { Source::File(default.to_owned()) } else { Source::BuiltIn });
    }
    if let Some(first) = candidates.iter().find(|file| exists(file)) {
        return Ok(Source::File(first.clone()));
    }
    let all: Vec<String> = candidates.iter().map(|file| file.display().to_string()).collect();
    Err(ConfigError::new(all.join(", "), None, "no such file, expected a config file"))
}

/// Anything but "there is nothing" exists: what cannot be read must be reported, not passed over.
fn exists(file: &Path) -> bool {
    !matches!(std::fs::metadata(file), Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// Loads the configuration an agent started with these `--config` options runs on.
///
/// # Errors
/// The file or a value in it is refused.
pub fn load(candidates: &[PathBuf]) -> Result<Config, ConfigError> {
    let mut config = match choose(candidates)? {
        Source::File(file) => load_file(&file)?,
        Source::BuiltIn => resolve::built_in()?,
    };
    config.candidates =
        if candidates.is_empty() { vec![PathBuf::from(DEFAULT_FILE)] } else { candidates.to_vec() };
    Ok(config)
}

/// Loads one file, and the profiles it names.
///
/// # Errors
/// The file, a value in it, or a profile is refused.
pub fn load_file(file: &Path) -> Result<Config, ConfigError> {
    let text = yaml::read(file, NOUN).map_err(|message| ConfigError::new(file.display(), None, message))?;
    let mut config = parse(file, &text)?;
    if !config.profile_files.is_empty() {
        config.profiles = Arc::new(Profiles::with(&config.profile_files)?);
    }
    Ok(config)
}

/// Parses and checks the text of `file`. The profiles it names are not read yet.
///
/// # Errors
/// The text or a value in it is refused.
pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let written: Written = yaml::parse(text, NOUN)
        .map_err(|refusal| ConfigError::new(file.display(), refusal.line, refusal.message))?;
    resolve::resolve(file, &written)
}
