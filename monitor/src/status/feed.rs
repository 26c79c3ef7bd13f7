//! Records as JSON lines or as an event stream, read from the journal as fast as the reader takes them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::routes::Refusal;
use super::{EventSource, Server};

/// Records read at once.
const BATCH: usize = 256;
/// An idle stream says something this often, so that a dead peer is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct Feed {
    source: Arc<dyn EventSource>,
    next: u64,
    /// Last record wanted, unless following.
    end: Option<u64>,
    left: u64,
    durable: watch::Receiver<u64>,
    stop: CancellationToken,
    /// Given back when the stream ends.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Answers with the records from `since` on: those there are (JSON lines), or also those to come (event stream).
pub(super) fn respond(
    server: &Server,
    since: u64,
    limit: Option<u64>,
    follow: bool,
) -> Result<Response, Refusal> {
    let permit = if follow {
        let permit = server.followers.clone().try_acquire_owned();
        Some(permit.map_err(|_| Refusal::busy("/v1/events", "too many followers, expected fewer"))?)
    } else {
        None
    };
    let mut durable = server.events.durable();
    let end = *durable.borrow_and_update();
    let feed = Feed {
        source: server.events.clone(),
        next: since,
        end: (!follow).then_some(end),
        left: limit.unwrap_or(u64::MAX),
        durable,
        stop: server.stop.clone(),
        _permit: permit,
    };
    let kind = if follow { "text/event-stream" } else { "application/jsonl" };
    let body = Body::from_stream(stream::unfold(Some(feed), step));
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

type Step = Option<(std::io::Result<Bytes>, Option<Feed>)>;

async fn step(feed: Option<Feed>) -> Step {
    let mut feed = feed?;
    loop {
        if feed.left == 0 || feed.end.is_some_and(|end| feed.next > end) {
            return None;
        }
        // Marked as seen before reading: what becomes durable meanwhile wakes the wait below.
        let durable = *feed.durable.borrow_and_update();
        if feed.next <= durable {
            let (source, next) = (feed.source.clone(), feed.next);
            let max = usize::try_from(feed.left).unwrap_or(BATCH).min(BATCH);
            let read = tokio::task::spawn_blocking(move || source.read_from(next, max)).await;
            match read.unwrap_or_else(|_| Err(std::io::Error::other("reader failed"))) {
                // The stream breaks off: a reader can tell that from its end.
                Err(error) => return Some((Err(error), None)),
                Ok(records) => {
                    let chunk = feed.take(records);
                    if !chunk.is_empty() {
                        return Some((Ok(chunk), Some(feed)));
                    }
                    if feed.end.is_some() {
                        return None;
                    }
                }
            }
        }
        let wait = wait(&mut feed).await;
        match wait {
            Ok(Some(chunk)) => return Some((Ok(chunk), Some(feed))),
            Ok(None) => {}
            Err(Over) => return None,
        }
    }
}

struct Over;

/// Waits for more records; what it returns is to be sent meanwhile.
async fn wait(feed: &mut Feed) -> Result<Option<Bytes>, Over> {
    tokio::select! {
        () = feed.stop.cancelled() => Err(Over),
        changed = feed.durable.changed() => changed.map(|()| None).map_err(|_| Over),
        () = tokio::time::sleep(KEEP_ALIVE) => Ok(Some(Bytes::from_static(b": keep-alive\n\n"))),
    }
}

impl Feed {
    fn take(&mut self, records: Vec<(u64, Bytes)>) -> Bytes {
        let mut chunk = BytesMut::new();
        for (seq, record) in records {
            if self.left == 0 || self.end.is_some_and(|end| seq > end) {
                self.left = 0;
                break;
            }
            if self.end.is_some() {
                chunk.extend_from_slice(&record);
                chunk.extend_from_slice(b"\n");
            } else {
                chunk.extend_from_slice(format!("id: {seq}\ndata: ").as_bytes());
                chunk.extend_from_slice(&record);
                chunk.extend_from_slice(b"\n\n");
            }
            self.next = seq.saturating_add(1);
            self.left -= 1;
        }
        chunk.freeze()
    }
}
