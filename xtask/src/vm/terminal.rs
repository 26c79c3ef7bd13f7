//! The terminal of a person who runs a shell in a guest.

use std::io;

use anyhow::{Context as _, Result};
use rustix::termios::{self, OptionalActions, Termios};

/// Rows and columns of the terminal on stdout; 24 × 80 where it does not say.
pub(crate) fn size() -> (u16, u16) {
    match termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// The terminal passes every key on as it is; as before again when this is dropped.
#[derive(Debug)]
#[must_use = "the terminal is as before when this is dropped"]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn enter() -> Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("cannot read the terminal's state")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("cannot set the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        let _gone = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
