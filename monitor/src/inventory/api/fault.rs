//! Why the API told nothing.

use std::time::Duration;

/// Longest text of a server that is repeated.
const WORDS_MAX: usize = 200;

/// What went wrong between the agent and the API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// How to reach it cannot be found out: files, kubeconfig, environment.
    #[error("{0}")]
    Access(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Unreachable(String),
    /// It took the connection and says nothing, or too little.
    #[error("nothing heard within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// It does not know the token (401).
    #[error("it does not accept the credentials (401)")]
    Unauthorized,
    /// The token may not do this (403).
    #[error("not allowed (403): {0}")]
    Forbidden(String),
    /// There is no such thing (404).
    #[error("not found (404): {0}")]
    NotFound(String),
    /// What was resumed from is not kept any more (410).
    #[error("the position to resume from has expired (410)")]
    Gone,
    /// Another answer that is no success.
    #[error("HTTP {0}: {1}")]
    Refused(u16, String),
    /// More bytes than are taken.
    #[error("an answer of more than {0} bytes")]
    TooLarge(usize),
    /// Not what the API speaks.
    #[error("the answer is not of the Kubernetes API: {0}")]
    Malformed(String),
}

impl Fault {
    /// A stable word for status and metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Access(_) => "no_access",
            Self::Unreachable(_) => "unreachable",
            Self::Silent(_) => "silent",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::Gone => "expired",
            Self::Refused(..) => "refused",
            Self::TooLarge(_) => "too_large",
            Self::Malformed(_) => "malformed",
        }
    }

    /// Of an answer with that status.
    pub(super) fn of_status(code: u16, body: &[u8]) -> Self {
        let said = serde_json::from_slice::<kube::core::Status>(body).map(|status| status.message);
        let said = bounded(&said.unwrap_or_default());
        match code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden(said),
            404 => Self::NotFound(said),
            410 => Self::Gone,
            code => Self::Refused(code, said),
        }
    }

    pub(super) fn malformed(error: &impl std::fmt::Display) -> Self {
        Self::Malformed(bounded(&error.to_string()))
    }
}

/// As much of somebody else's text as is repeated, on one line.
pub(super) fn bounded(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(WORDS_MAX).collect()
}

/// An error and what lies under it.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    bounded(&text)
}
