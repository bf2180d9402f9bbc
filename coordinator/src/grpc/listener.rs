//! Accepts connections: bounded in number, each handshake on its own task and with a deadline,
//! evidence judged on the verifiers' pool before the first request is read.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use atls::{PeerCertificate, ServerConfig};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::peer::Peer;
use crate::{
    clock::now,
    desk::{Desk, Presented},
    limits::Limits,
    metrics::{self, Refusal},
    sources::{Sources, UnderWay},
};

/// What a listener asks of its clients.
#[derive(Clone, Copy)]
pub(crate) enum PeerPolicy {
    /// Nothing; a key counts where a request needs one.
    User,
    /// Evidence that the manifest accepts.
    Mesh,
}

pub(crate) struct Listener {
    pub(crate) name: &'static str,
    pub(crate) tls: ServerConfig,
    pub(crate) policy: PeerPolicy,
    pub(crate) limits: Limits,
    pub(crate) desk: Desk,
    pub(crate) stop: watch::Receiver<bool>,
}

/// One accepted connection.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    open: Gauge,
    _place: (OwnedSemaphorePermit, UnderWay),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

type Incoming = ReceiverStream<io::Result<Connection>>;

impl Listener {
    /// Accepts until stopped.
    pub(crate) fn incoming(self, socket: TcpListener) -> Incoming {
        let (ready, incoming) = mpsc::channel(self.limits.handshakes);
        tokio::spawn(Arc::new(self).accept(socket, ready));
        ReceiverStream::new(incoming)
    }

    async fn accept(self: Arc<Self>, socket: TcpListener, ready: mpsc::Sender<io::Result<Connection>>) {
        let connections = Arc::new(Semaphore::new(self.limits.connections));
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes));
        let sources = Sources::new(self.limits.handshakes_per_source);
        // Whoever completes a handshake holds a place for as long as it likes: not all of them.
        let open_from = Sources::new(self.limits.connections_per_source);
        let mut stop = self.stop.clone();
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = stop.wait_for(|stopped| *stopped) => return,
            };
            match accepted {
                Ok((stream, source)) => {
                    let (under_way, open) = (sources.begin(source.ip()), open_from.begin(source.ip()));
                    let Some((under_way, open)) = under_way.zip(open) else {
                        self.refused("too many from one source");
                        tracing::debug!(%source, "connection dropped: too many under way from there");
                        continue;
                    };
                    let (listener, ready) = (Arc::clone(&self), ready.clone());
                    tokio::spawn(async move {
                        let connection = listener.handshake(stream, source, (permit, open)).await;
                        drop((handshake, under_way));
                        if let Some(connection) = connection {
                            // Fails only when the server is gone, and the connection with it.
                            let _ = ready.send(Ok(connection)).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn refused(&self, reason: &'static str) {
        self.desk.metrics.refused.get_or_create(&Refusal { listener: self.name, reason }).inc();
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        source: SocketAddr,
        place: (OwnedSemaphorePermit, UnderWay),
    ) -> Option<Connection> {
        let _ = stream.set_nodelay(true); // only a matter of speed
        let active = match (self.policy, self.desk.in_force()) {
            (PeerPolicy::User, _) => None,
            (PeerPolicy::Mesh, Ok(active)) => Some(active),
            (PeerPolicy::Mesh, Err(reason)) => {
                tracing::debug!(%source, %reason, "workload told to wait");
                self.refused("no manifest in force");
                return None;
            }
        };
        let started = Instant::now();
        let accepted = match atls::accept(stream, &self.tls, now()).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%source, %error, "handshake refused");
                self.refused("handshake");
                return None;
            }
        };
        let label = &metrics::Listener { listener: self.name };
        let handshakes = &self.desk.metrics.handshakes;
        handshakes.get_or_create(label).observe(started.elapsed().as_secs_f64());
        let peer = match active {
            None => Peer::User(accepted.peer.map(Arc::new)),
            Some(active) => {
                let presented = presented(accepted.peer?);
                match self.desk.admit(active, presented, source, now()).await {
                    Ok(workload) => Peer::Workload(workload),
                    Err(turned) => Peer::Turned(Arc::new(turned)),
                }
            }
        };
        let open = self.desk.metrics.connections.get_or_create_owned(label);
        open.inc();
        Some(Connection { stream: accepted.stream, peer, open, _place: place })
    }
}

/// Attested TLS: the certificate's own key and the nonce of this handshake are what the evidence is bound to.
fn presented(certificate: PeerCertificate) -> Presented {
    let expected = certificate.report_data();
    let PeerCertificate { evidence, spki_der, nonce, .. } = certificate;
    Presented { evidence, expected, spki_der, nonce: nonce.as_bytes().to_vec(), hpke_key: None }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
