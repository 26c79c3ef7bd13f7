//! Accepting and bounding connections: who may ask, how many at once, how long a request may take to arrive.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{EventSource, Query, Socket, routes};

const MAX_CONNECTIONS: usize = 64;
const MAX_FOLLOWERS: usize = 32;
const MAX_HEADER_BYTES: usize = 16 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What the routes answer from.
#[derive(Debug, Clone)]
pub struct Server {
    pub(super) queries: mpsc::Sender<Query>,
    pub(super) events: Arc<dyn EventSource>,
    pub(super) followers: Arc<Semaphore>,
    pub(super) stop: CancellationToken,
}

impl Server {
    /// A server that asks the judge task over `queries` and reads records from `events`, until `stop` is cancelled.
    #[must_use]
    pub fn new(queries: mpsc::Sender<Query>, events: Arc<dyn EventSource>, stop: CancellationToken) -> Self {
        Self { queries, events, followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)), stop }
    }

    /// Answers until stopped; followers are told by the end of their stream.
    pub async fn serve(self, socket: Socket) {
        let stop = self.stop.clone();
        let router = routes::router(self);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
                accepted = socket.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => match peer(&stream) {
                        Some(peer) => {
                            let router = router.clone().layer(Extension(peer));
                            connections.spawn(connection(stream, router, stop.clone()));
                        }
                        None => tracing::warn!("status socket: a connection of another user was refused"),
                    },
                    Err(error) => {
                        // Out of descriptors, most likely: accepting again at once would spin.
                        tracing::warn!("status socket: accept: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        let drain = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_GRACE, drain).await.is_err() {
            tracing::debug!("status socket: connections still open at the end were cut");
        }
    }
}

/// Who is at the other end of the socket, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) uid: u32,
    /// 0 where it is in a pid namespace that this process does not see.
    pub(super) pid: u32,
}

/// Root and the agent's own user may ask; the mode of the socket says the same, but modes can be changed.
fn peer(stream: &UnixStream) -> Option<Peer> {
    let own = rustix::process::geteuid().as_raw();
    let peer = stream.peer_cred().ok().filter(|peer| peer.uid() == 0 || peer.uid() == own)?;
    Some(Peer { uid: peer.uid(), pid: peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0) })
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    stop: CancellationToken,
) {
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("status socket: connection ended: {error}");
    }
}

/// Gives the bytes to a connection of a peer that says no more, and stops the server once that is answered; the answer.
#[cfg(any(test, feature = "fuzz"))]
pub(super) async fn answer_to(server: Server, bytes: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let (mut ours, theirs) = tokio::io::duplex(1 << 17);
    let stop = server.stop.clone();
    let router = routes::router(server).layer(Extension(Peer { uid: 0, pid: 0 }));
    let asked = async {
        let mut answer = Vec::new();
        // It may hang up on us before all was said.
        drop(ours.write_all(bytes).await);
        drop(ours.shutdown().await);
        // A follower is told more as long as the server runs.
        let follows = tokio::time::timeout(Duration::from_millis(3), ours.read_to_end(&mut answer));
        if follows.await.is_err() {
            stop.cancel();
            drop(ours.read_to_end(&mut answer).await);
        }
        answer
    };
    tokio::join!(connection(theirs, router, stop.clone()), asked).1
}
