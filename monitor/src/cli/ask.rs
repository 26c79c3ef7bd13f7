//! What all commands that ask the agent share: which socket, and how to wait for the answer.

use std::path::PathBuf;

use super::Failure;
use crate::config::DEFAULT_SOCKET;
use crate::status::client::{Client, ClientError};

/// Which agent to ask.
#[derive(Debug, Clone, clap::Args)]
pub struct Socket {
    /// The agent's socket [default: $MESHSEAL_SOCKET, else /run/meshseal/agent.sock].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Socket {
    /// The option, else `MESHSEAL_SOCKET`, else the default.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let given = self.socket.clone().or_else(|| {
            std::env::var_os("MESHSEAL_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from)
        });
        given.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.what, error.place, error.expected)
    }
}

/// Runs a conversation with the agent to its end.
///
/// # Errors
/// No answer, or what `talk` returns.
pub fn ask<T>(socket: &Socket, talk: impl AsyncFnOnce(Client) -> Result<T, Failure>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("runtime", "this process", error))?;
    runtime.block_on(async { talk(Client::connect(&socket.path()).await?).await })
}

/// The answer's bytes as a line of text: JSON as the server wrote it.
///
/// # Errors
/// The answer is not UTF-8.
pub fn text(answer: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(answer).map_err(|_| Failure::new("agent", "answer", "is not UTF-8, expected JSON"))
}
