//! What ingress and egress share: identity, bounds on connections and handshakes, counters.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use continuity::{NotCounted, PeerIdentity};
use program::{Sources, UnderWay};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    access_log::{Access, AccessLog},
    identity::{Current, Identity},
    metrics::{Metrics, Way},
    renewal::Renewal,
    tunnel::{Carried, HandshakeError, PumpError},
};

/// A peer that was silent for so long is asked whether it is there, and given up when it does not answer.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// So long what was sent may wait to be taken by the other side.
const UNANSWERED: Duration = Duration::from_secs(60);
const BEFORE_NEXT_ACCEPT: Duration = Duration::from_millis(100);

/// Bounds and deadlines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at once, both ways together.
    pub(crate) connections: usize,
    /// Connections at once that have not finished their handshake.
    pub(crate) handshakes: usize,
    /// Connections at once from one source.
    pub(crate) connections_per_source: usize,
    /// Of those, such that have not finished their handshake.
    pub(crate) handshakes_per_source: usize,
    /// Longest handshake.
    pub(crate) handshake: Duration,
    /// Longest wait for a connection, to a peer or the application.
    pub(crate) connect: Duration,
}

/// What ingress and egress share.
pub(crate) struct Gate {
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<Metrics>,
    identity: Current,
    renewal: Renewal,
    access_log: AccessLog,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    /// Beyond its connections a source is turned away. Beyond its handshakes it waits for its own to end: a peer that
    /// begins many at once is slowed, and nobody else is.
    sources: Arc<Sources<Semaphore>>,
}

/// A place among the connections.
pub(crate) struct Place {
    _connection: OwnedSemaphorePermit,
    source: UnderWay<Semaphore>,
}

/// A place among the handshakes: of the source, and of all.
pub(crate) type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Gate {
    pub(crate) fn new(
        limits: Limits,
        metrics: Arc<Metrics>,
        identity: Current,
        renewal: Renewal,
        access_log: AccessLog,
    ) -> Self {
        Self {
            limits,
            metrics,
            identity,
            renewal,
            access_log,
            connections: Arc::new(Semaphore::new(limits.connections)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            sources: Sources::sharing(limits.connections_per_source, move || {
                Semaphore::new(limits.handshakes_per_source)
            }),
        }
    }

    /// The newest identity. There is one: listeners open after the first was loaded.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.borrow().clone()
    }

    /// Waits until the peer of a connection that stands counts no more. Without a certificate it never did.
    pub(crate) async fn shut_out(&self, peer: Option<PeerIdentity>) -> NotCounted {
        let Some(peer) = peer else { return std::future::pending().await };
        let mut identity = self.identity.clone();
        loop {
            // First: the list may have changed since the handshake.
            let counts = match &*identity.borrow_and_update() {
                Some(identity) => identity.still_counts(&peer),
                None => Ok(()),
            };
            if let Err(reason) = counts {
                return reason;
            }
            if identity.changed().await.is_err() {
                return std::future::pending().await; // this program ends
            }
        }
    }

    /// The next connection. Nobody is accepted for whom there is no place: they wait in the kernel's queue,
    /// which is bounded, too. Who comes from a source that has enough is turned away.
    pub(crate) async fn accept(&self, listener: &TcpListener, way: Way) -> (TcpStream, Place) {
        loop {
            let Ok(connection) = Arc::clone(&self.connections).acquire_owned().await else {
                std::future::pending().await // never: the semaphore is not closed
            };
            match listener.accept().await {
                Ok((stream, address)) => match self.sources.begin(address.ip()) {
                    Some(source) => {
                        prepare(&stream);
                        return (stream, Place { _connection: connection, source });
                    }
                    None => self.turn_away(&stream, address, way),
                },
                Err(error) => {
                    tracing::error!("cannot accept a connection: {error}"); // such as no more descriptors
                    tokio::time::sleep(BEFORE_NEXT_ACCEPT).await;
                }
            }
        }
    }

    fn turn_away(&self, stream: &TcpStream, source: SocketAddr, way: Way) {
        self.metrics.of(way).failed("too_many");
        tracing::debug!(%source, "connection reset: too many from there");
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }

    /// Waits for a place among the handshakes, as long as a handshake may take.
    pub(crate) async fn turn(&self, place: &Place) -> Result<Turn, HandshakeError> {
        let turn = async {
            let of_source = Arc::clone(place.source.shared()).acquire_owned().await;
            // Only then: what one source waits for does not hold up the others.
            let of_all = Arc::clone(&self.handshakes).acquire_owned().await;
            of_source.ok().zip(of_all.ok())
        };
        let turn = tokio::time::timeout(self.limits.handshake, turn).await.ok().flatten();
        turn.ok_or(HandshakeError::NoTurn(self.limits.handshake))
    }

    /// Connects within the time limit.
    pub(crate) async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let connecting = tokio::time::timeout(self.limits.connect, TcpStream::connect(address));
        let stream = connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        prepare(&stream);
        Ok(stream)
    }

    /// A connection to a port of the application, or through an egress entry, from now on.
    pub(crate) fn access(&self, way: Way, place: String, source: Option<SocketAddr>) -> Access {
        Access::new(way, place, source, self.access_log.clone(), Arc::clone(&self.metrics))
    }

    /// Counts and tells of a side that does not answer.
    pub(crate) fn unreachable(&self, way: Way, access: Access, error: &io::Error) {
        self.metrics.of(way).failed("unreachable");
        access.refused("unreachable", &error.to_string());
    }

    /// Counts and tells of a handshake that failed.
    pub(crate) fn handshake_failed(&self, way: Way, access: Access, error: &HandshakeError) {
        self.metrics.of(way).failed(error.kind());
        access.refused(error.kind(), &error.to_string());
        if error.is_about_the_ca() {
            self.renewal.ask();
        }
        match error {
            // Probes of the cluster and port scanners come and go.
            HandshakeError::Io(_) => tracing::debug!("no handshake: {error}"),
            _ => tracing::warn!("handshake refused: {error}"),
        }
    }

    /// Counts and tells of a tunnel's end.
    pub(crate) fn ended(&self, way: Way, access: Access, carried: Carried, outcome: Result<(), PumpError>) {
        let counters = self.metrics.of(way);
        counters.closed(carried);
        let kind = match &outcome {
            Err(PumpError::ShutOut(_)) => "counts_no_more",
            _ => "cut_off",
        };
        let why = outcome.as_ref().err().map(|error| (kind, error.to_string()));
        access.ended(carried, why.as_ref().map(|(kind, reason)| (*kind, reason.as_str())));
        if let Err(PumpError::ShutOut(reason)) = &outcome {
            counters.failed("counts_no_more");
            tracing::warn!("connection ended: {reason}");
        } else if let Err(error) = outcome {
            counters.failed("cut_off");
            tracing::debug!(carried.into, carried.out, "connection cut off: {error}");
        }
    }

    /// Waits until no connection is left.
    pub(crate) async fn drained(&self) {
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        let _ = self.connections.acquire_many(all).await;
    }
}

/// A side that vanished is given up within a minute, whether data is under way or not (the kernel's own patience is a
/// quarter of an hour), and no small message waits for the next.
fn prepare(stream: &TcpStream) {
    let keepalive =
        TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNANSWERED));
    let _ = stream.set_nodelay(true);
}

/// What a client says as the server's name: the host that was configured.
pub(crate) fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}
