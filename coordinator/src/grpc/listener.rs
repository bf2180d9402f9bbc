//! Makes connections of what a door lets in: a handshake of attested TLS with a deadline, and on the mesh port a
//! verdict on the client's evidence before its first request is read.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use atls::{PeerCertificate, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    intake::{Seat, is_owner},
    peer::{Peer, key_of},
};
use crate::{
    clock::now,
    desk::{Desk, Presented},
    door::{Door, Handshake, Place},
    metrics,
    patience::{Activity, Patient},
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
    pub(crate) door: Door,
    pub(crate) tls: ServerConfig,
    pub(crate) policy: PeerPolicy,
    pub(crate) desk: Desk,
}

/// One accepted connection.
pub(crate) struct Connection {
    stream: Patient<TlsStream<TcpStream>>,
    seat: Seat,
    _place: Place,
}

type Incoming = ReceiverStream<io::Result<Connection>>;

impl Listener {
    /// Accepts until stopped.
    pub(crate) fn incoming(self, socket: TcpListener) -> Incoming {
        let (ready, incoming) = mpsc::channel(self.door.limits.handshakes);
        let listener = Arc::new(self);
        let each = {
            let listener = Arc::clone(&listener);
            move |stream, source, place, handshake| {
                let (listener, ready) = (Arc::clone(&listener), ready.clone());
                async move {
                    let connection = listener.handshake(stream, source, place).await;
                    drop::<Handshake>(handshake);
                    if let Some(connection) = connection {
                        // Fails only when the server is gone, and the connection with it.
                        let _ = ready.send(Ok(connection)).await;
                    }
                }
            }
        };
        tokio::spawn(listener.door.clone().serve(socket, each));
        ReceiverStream::new(incoming)
    }

    async fn handshake(&self, stream: TcpStream, source: SocketAddr, place: Place) -> Option<Connection> {
        let active = match (self.policy, self.desk.in_force()) {
            (PeerPolicy::User, _) => None,
            (PeerPolicy::Mesh, Ok(active)) => Some(active),
            (PeerPolicy::Mesh, Err(reason)) => {
                tracing::debug!(%source, %reason, "workload told to wait");
                self.door.refused("no manifest in force");
                return None;
            }
        };
        let started = Instant::now();
        let accepted = match atls::accept(stream, &self.tls, now()).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%source, %error, "handshake refused");
                self.door.refused("handshake");
                return None;
            }
        };
        let label = &metrics::Listener { listener: self.door.name };
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
        let may_stay = match &peer {
            _ if !place.is_reserved => true,
            Peer::User(Some(certificate)) => is_owner(&self.desk, key_of(certificate)),
            Peer::Workload(_) => true,
            Peer::User(None) | Peer::Turned(_) => false,
        };
        if !may_stay {
            self.door.refused("too many at once");
            return None;
        }
        let activity = Activity::new();
        let stream = Patient::new(accepted.stream, Arc::clone(&activity));
        Some(Connection { stream, seat: Seat { peer, source: source.ip(), activity }, _place: place })
    }
}

/// Attested TLS: the certificate's own key and the nonce of this handshake are what the evidence is bound to.
fn presented(certificate: PeerCertificate) -> Presented {
    let expected = certificate.report_data();
    let PeerCertificate { evidence, spki_der, nonce, .. } = certificate;
    Presented { evidence, expected, spki_der, nonce: nonce.as_bytes().to_vec(), hpke_key: None }
}

impl Connected for Connection {
    type ConnectInfo = Seat;

    fn connect_info(&self) -> Seat {
        self.seat.clone()
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
