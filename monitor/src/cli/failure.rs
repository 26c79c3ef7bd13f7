//! How a command fails: one line `meshseal: <what>: <where>: <expected>` on stderr, and in JSON mode
//! `{"error":{...}}` on stdout too.

use std::fmt;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde::{Deserialize, Serialize};

use super::{Format, output};

/// Why a command could not do what it was asked. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong or which part it concerns: `config`, `agent`, `baseline`, ...
    pub what: String,
    /// Where: a file (with line), a socket, an option.
    #[serde(rename = "where")]
    pub place: String,
    /// What was found and what was expected instead.
    pub expected: String,
    /// Exit status; 2 unless the contract says otherwise.
    #[serde(skip, default = "usage_status")]
    pub status: u8,
    /// The reader of stdout went away: nothing is said about that.
    #[serde(skip)]
    pub(super) pipe_closed: bool,
}

const fn usage_status() -> u8 {
    2
}

impl Failure {
    /// A failure with exit status 2.
    #[must_use]
    pub fn new(what: impl Into<String>, place: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Self {
            what: what.into(),
            place: place.to_string(),
            expected: expected.to_string(),
            status: usage_status(),
            pipe_closed: false,
        }
    }

    /// The same with another exit status.
    #[must_use]
    pub fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    /// Prints it and returns the exit status.
    #[must_use]
    pub fn report(&self, format: Format) -> ExitCode {
        if self.pipe_closed {
            return ExitCode::SUCCESS;
        }
        output::error_line(&self.to_string());
        if format.is_json() {
            // The error is on stderr already; if stdout is gone too there is nobody left to tell.
            let _gone = output::line(&serde_json::json!({ "error": self }).to_string());
        }
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = format!("meshseal: {}: {}: {}", self.what, self.place, self.expected);
        f.write_str(&output::one_line(&line))
    }
}

impl std::error::Error for Failure {}

/// Reports wrong arguments (or prints the help or version that was asked for).
pub(super) fn usage(error: &clap::Error, format: Format) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render().to_string();
            output::text(&text).map_or_else(|failure| failure.report(format), |()| ExitCode::SUCCESS)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::error_line(&error.render().to_string());
            Failure::new("arguments", "meshseal", "no command given, expected one; see meshseal --help")
                .report(format)
        }
        _ => usage_failure(error).report(format),
    }
}

fn usage_failure(error: &clap::Error) -> Failure {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(all)) => Some(all.join(", ")),
        _ => None,
    };
    let (argument, value) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    let place = argument
        .clone()
        .or_else(|| context(ContextKind::InvalidSubcommand))
        .unwrap_or_else(|| "command line".to_owned());
    let hint = "see meshseal --help";
    let expected = match (error.kind(), value) {
        (ErrorKind::UnknownArgument, _) => match context(ContextKind::SuggestedArg) {
            Some(other) => format!("unknown argument, expected {other}?"),
            None => format!("unknown argument, {hint}"),
        },
        (ErrorKind::InvalidSubcommand, _) => match context(ContextKind::SuggestedSubcommand) {
            Some(other) => format!("unknown command, expected {other}?"),
            None => format!("unknown command, {hint}"),
        },
        (ErrorKind::MissingSubcommand, _) => format!("a subcommand is missing, {hint}"),
        (ErrorKind::MissingRequiredArgument, _) => "required but not given".to_owned(),
        (ErrorKind::InvalidValue, Some(value)) if value.is_empty() => "a value is missing".to_owned(),
        (ErrorKind::InvalidValue, Some(value)) => match context(ContextKind::ValidValue) {
            Some(valid) => format!("'{value}' is no valid value, expected one of {valid}"),
            None => format!("'{value}' is no valid value"),
        },
        (ErrorKind::ValueValidation, Some(value)) => {
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("'{value}' is no valid value: {why}")
        }
        (ErrorKind::ArgumentConflict, _) => match context(ContextKind::PriorArg) {
            Some(prior) => format!("cannot be used with {prior}"),
            None => "cannot be given more than once".to_owned(),
        },
        (kind, _) => kind.as_str().unwrap_or("wrong arguments").to_owned(),
    };
    Failure::new("arguments", place, expected)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{Failure, usage_failure};
    use crate::cli::Cli;

    fn refused(line: &str) -> String {
        let error = Cli::command().try_get_matches_from(line.split(' ')).unwrap_err();
        usage_failure(&error).to_string()
    }

    #[test]
    fn wrong_arguments_make_one_line() {
        assert_eq!(
            refused("meshseal version --nonsense"),
            "meshseal: arguments: --nonsense: unknown argument, see meshseal --help"
        );
        assert_eq!(
            refused("meshseal statsu"),
            "meshseal: arguments: statsu: unknown command, expected status?"
        );
        assert_eq!(
            refused("meshseal version --format yaml"),
            "meshseal: arguments: --format <FORMAT>: 'yaml' is no valid value, expected one of text, json, sarif, markdown"
        );
    }

    #[test]
    fn a_hostile_place_stays_on_one_line() {
        let failure = Failure::new("seal", "/a\nmeshseal: forged\u{1b}[2J", "expected a file");
        assert_eq!(failure.to_string(), "meshseal: seal: /a\\x0ameshseal: forged\\x1b[2J: expected a file");
    }
}
