//! Meshseal's agent and command line.
//!
//! The data path, in the order of the folders:
//!
//! ```text
//! kernel hooks ─ring─▶ sensor ─▶ attribution ─▶ judge ─▶ journal ─┬▶ export (OTLP)
//!      ▲                                          ▲       │        └▶ fleet
//!      │ tags                                     │       └▶ status (socket, CLI)
//! inventory ◀─ baseline (verified) ───────────────┘
//! ```
//!
//! `manifest` and `image` make baselines of what was approved; `model` holds the words all of them share; `agent` wires them; `cli` and `config` are the way in.

pub mod agent;
pub mod attribution;
pub mod baseline;
pub mod cli;
pub mod config;
pub mod export;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod image;
pub mod inventory;
pub mod journal;
pub mod judge;
pub mod manifest;
pub mod model;
pub mod profile;
pub mod sensor;
pub mod status;
mod text;
mod yaml;
