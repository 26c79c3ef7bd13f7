//! YAML from outside: bounded in size, depth and aliases, never waiting on a FIFO, and every refusal with its line and
//! key.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

use crate::text::one_line;

/// Files that people write are some kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why a text is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Line, from 1.
    pub(crate) line: Option<u64>,
    /// What was found and what was expected.
    pub(crate) message: String,
}

impl Refusal {
    fn of(message: impl Into<String>) -> Self {
        Self { line: None, message: message.into() }
    }
}

/// Reads a file of text; `noun` says what it should be, such as `config file`.
pub(crate) fn read(file: &Path, noun: &str) -> Result<String, String> {
    let refuse = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => format!("no such file, expected a {noun}"),
        ErrorKind::PermissionDenied => format!("permission denied, expected a readable {noun}"),
        _ => format!("cannot be read ({error}), expected a {noun}"),
    };
    // O_NONBLOCK: opening a FIFO nobody writes to would wait for ever.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = match OpenOptions::new().read(true).custom_flags(flags).open(file) {
        Ok(opened) => opened,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err("is a socket or device, expected a regular file".to_owned());
        }
        Err(error) => return Err(refuse(error)),
    };
    let metadata = opened.metadata().map_err(refuse)?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let is = match kind {
            kind if kind.is_dir() => "directory",
            kind if kind.is_fifo() => "FIFO",
            kind if kind.is_socket() => "socket",
            _ => "device",
        };
        return Err(format!("is a {is}, expected a regular file"));
    }
    let mut bytes = Vec::new();
    opened.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(refuse)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(format!("too large, expected at most {MAX_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not text, expected YAML in UTF-8".to_owned())
}

/// How plain words are read: YAML 1.1 has more booleans (`y`, `no`, `off`) and octal numbers than 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 1.1.
    Old,
    /// 1.2.
    Core,
}

/// Reads a value out of one document.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, noun: &str) -> Result<T, Refusal> {
    parse_as(text, noun, options())
}

/// Reads a value out of one document, by that version of YAML.
pub(crate) fn parse_by<T: DeserializeOwned>(text: &str, noun: &str, version: Version) -> Result<T, Refusal> {
    let mut options = options();
    options.strict_booleans = version == Version::Core;
    options.legacy_octal_numbers = version == Version::Old;
    parse_as(text, noun, options)
}

fn parse_as<T: DeserializeOwned>(
    text: &str,
    noun: &str,
    options: serde_saphyr::Options,
) -> Result<T, Refusal> {
    if text.contains('\0') {
        return Err(Refusal::of("is not text, expected YAML in UTF-8"));
    }
    let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.trim_start_matches('\u{feff}').lines().all(blank) {
        return Err(Refusal::of("is empty, expected 'apiVersion: meshseal/v1' at least"));
    }
    let mut path = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |de| {
        serde_path_to_error::deserialize::<_, T>(de).map_err(|error| {
            // `Spanned` shows as a step of its own.
            path = error.path().to_string();
            path.truncate(path.strip_suffix(".value").unwrap_or(&path).len());
            error.into_inner()
        })
    });
    parsed.map_err(|error| {
        let line = error.location().map(|at| at.line()).filter(|&line| line > 0);
        Refusal { line, message: describe(&error, &path, noun) }
    })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 50_000,
            max_nodes: 20_000,
            max_depth: 16,
            flow_nesting_limit: 16,
            max_aliases: 100,
            max_anchors: 100,
            max_recorded_anchor_events: 10_000,
            max_documents: 2,
        },
        with_snippet: false,
    }
}

/// One sentence on one line, whatever is in the names of keys: what was found at which key, and what was expected.
pub(crate) fn describe(error: &Error, path: &str, noun: &str) -> String {
    one_line(&described(error, path, noun))
}

fn described(error: &Error, path: &str, noun: &str) -> String {
    let (section, key) = match path.rsplit_once('.') {
        Some((section, key)) => (format!(" in {section}"), key),
        None => (String::new(), path),
    };
    let at = if path.is_empty() || path == "." { "the document".to_owned() } else { format!("'{path}'") };
    match error.without_snippet() {
        Error::SerdeUnknownField { field, expected, .. } => {
            let section = if key == field { section } else { format!(" in {path}") };
            let section = if section == " in ." { String::new() } else { section };
            let expected = if expected.is_empty() { "no keys".to_owned() } else { expected.join(", ") };
            let one_of = if expected == "no keys" { "" } else { "one of " };
            format!("unknown key '{field}'{section}, expected {one_of}{expected}")
        }
        Error::SerdeMissingField { field, .. } => {
            format!("{at}: missing key '{field}', expected it to be set")
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("key '{key}' is given twice, expected it once")
        }
        Error::InvalidScalar { ty, .. } => format!("wrong type at {at}, expected {}", kind(ty)),
        Error::Unexpected { expected, .. } => format!("wrong type at {at}, expected {}", kind(expected)),
        Error::SerdeInvalidType { unexpected, expected, .. } => {
            format!("wrong type at {at}: found {unexpected}, expected {}", kind(expected))
        }
        Error::NullIntoString { .. } => format!("no value at {at}, expected text"),
        Error::MultipleDocuments { .. } => "more than one YAML document, expected one".to_owned(),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            format!("too deep, or too many nodes or aliases, expected a plain {noun}")
        }
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            format!("an alias within its own anchor, expected a plain {noun}")
        }
        Error::AliasError { error, .. } => described(error, path, noun),
        other => {
            let text = other.to_string();
            // The scanner's own limit, which comes before the budget's and has no variant of its own.
            if text.starts_with("recursion limit exceeded") {
                return format!("too deep, or too many nodes or aliases, expected a plain {noun}");
            }
            format!("not valid YAML: {}", text.lines().next().unwrap_or_default())
        }
    }
}

/// The type in words of YAML rather than of Rust and its parser.
fn kind(expected: &str) -> &str {
    match expected {
        "u32" | "u64" => "a whole number",
        "mapping start" | "mapping" => "a mapping",
        "sequence start" | "sequence" | "a sequence" => "a list",
        "string scalar" | "scalar" | "string" | "a string" => "text",
        text if text.starts_with("struct ") => "a mapping",
        other => other,
    }
}
