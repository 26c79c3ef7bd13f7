//! Requests as the fuzzers make them: the bytes of a whole connection, over which nobody needs to be believed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::server::answer_to;
use super::{EventSource, Proof, Server};
use crate::journal::evidence::Evidence;
use crate::model::Time;

/// A journal of one record.
#[derive(Debug)]
struct One(watch::Sender<u64>);

impl EventSource for One {
    fn read_from(&self, seq: u64, max: usize) -> io::Result<Vec<(u64, Bytes)>> {
        Ok(if seq <= 1 && max > 0 { vec![(1, Bytes::from_static(b"{}"))] } else { Vec::new() })
    }

    fn seq_at_time(&self, time: Time) -> io::Result<u64> {
        Ok(if time.0 <= 0 { 1 } else { 2 })
    }

    fn durable(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn checkpoint(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    fn proof(&self, _seq: u64) -> io::Result<Option<Proof>> {
        Ok(None)
    }

    fn evidence(&self, _violation: &str, _seqs: &[u64]) -> io::Result<Option<Evidence>> {
        Ok(None)
    }
}

thread_local! {
    /// One for all inputs: to make one takes longer than most of them.
    static RUNTIME: Option<Runtime> = Builder::new_current_thread().enable_all().build().ok();
}

pub(crate) fn fuzz(bytes: &[u8]) {
    // The judge has gone: what is asked of it is refused, once the request was understood.
    let (queries, _) = mpsc::channel(1);
    let server = Server::new(queries, Arc::new(One(watch::channel(1).0)), CancellationToken::new());
    let answer = RUNTIME.with(|runtime| {
        let answer = async { tokio::time::timeout(Duration::from_secs(5), answer_to(server, bytes)).await };
        runtime.as_ref().map(|runtime| runtime.block_on(answer))
    });
    let Some(answer) = answer else { return };
    assert!(answer.is_ok(), "no end of the connection within 5 s");
    let answer = answer.unwrap_or_default();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
}
