//! A tunnel: TLS towards the peer, the application's own bytes towards the application.

mod offer;
mod pump;
mod session;

use std::{io, time::Duration};

use continuity::{NotCounted, PeerIdentity};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, OtherError, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, ServerName},
    server::UnbufferedServerConnection,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::peer::names;
use offer::Offer;
pub(crate) use pump::{Carried, PumpError};
use session::{Connection, Session};

/// Longest handshake message that rustls takes, and the record that ends it, in bytes.
const MAX_HANDSHAKE: usize = (64 << 10) + (18 << 10);
const FIRST_READ: usize = 4 << 10;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// TLS: the certificate of either side, or the protocol.
    #[error("{}", reason(.0))]
    Tls(#[from] Error),
    /// The network.
    #[error("connection lost in the handshake: {0}")]
    Io(#[from] io::Error),
    /// Too slow.
    #[error("handshake took longer than {0:?}")]
    Timeout(Duration),
    /// Too many at once.
    #[error("no place among the handshakes for {0:?}")]
    NoTurn(Duration),
    /// A handshake without end.
    #[error("handshake is longer than {MAX_HANDSHAKE} bytes")]
    TooLong,
}

impl HandshakeError {
    /// Whether one side's certificate comes from a CA that the other does not know: what happens when one
    /// of them has not yet noticed a change of the manifest.
    pub(crate) fn is_about_the_ca(&self) -> bool {
        matches!(
            self,
            Self::Tls(
                Error::InvalidCertificate(CertificateError::UnknownIssuer)
                    | Error::AlertReceived(AlertDescription::UnknownCA)
            )
        )
    }

    /// A word for the metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Tls(Error::NoCertificatesPresented) => "no_certificate",
            Self::Tls(Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
                if reason.is::<NotCounted>() { "counts_no_more" } else { "peer_not_allowed" }
            }
            Self::Tls(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => "expired",
            Self::Tls(Error::InvalidCertificate(_)) => "bad_certificate",
            Self::Tls(Error::AlertReceived(_)) => "refused_by_peer",
            Self::Tls(_) | Self::TooLong => "not_tls",
            Self::Io(_) => "lost",
            Self::Timeout(_) => "timeout",
            Self::NoTurn(_) => "too_many",
        }
    }
}

/// rustls shows a verifier's own error with its type names only.
fn reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => reason.to_string(),
        error => error.to_string(),
    }
}

/// A finished handshake.
pub(crate) struct Tunnel<C> {
    session: Session<C>,
    peer: TcpStream,
    /// What the peer sent along with the end of its handshake.
    early: Vec<u8>,
    closed: bool,
}

impl<C: Connection> Tunnel<C> {
    /// Who the peer is; none: it showed no certificate, and needs none.
    pub(crate) fn peer(&self) -> Option<PeerIdentity> {
        self.session.peer()
    }

    /// Names of the peer's certificate; none if it showed none.
    pub(crate) fn peer_names(&self) -> Option<Vec<String>> {
        let leaf = self.session.peer_certificate()?;
        Some(names(&CertificateDer::from(leaf)).unwrap_or_default())
    }
}

/// Takes a client's handshake.
pub(crate) async fn accept(
    mut peer: TcpStream,
    config: std::sync::Arc<ServerConfig>,
    limit: Duration,
) -> Result<Tunnel<UnbufferedServerConnection>, HandshakeError> {
    let taken = async {
        let mut incoming = Vec::new();
        let chosen = loop {
            match offer::read(&config, &incoming) {
                Offer::Choose(chosen) => break chosen,
                Offer::Incomplete => read_more(&mut peer, &mut incoming).await?,
            }
        };
        let config = match chosen {
            Some(protocol) => {
                let mut config = ServerConfig::clone(&config);
                config.alpn_protocols = vec![protocol];
                std::sync::Arc::new(config)
            }
            None => config,
        };
        let session = Session::new(UnbufferedServerConnection::new(config)?);
        handshake(peer, session, incoming).await
    };
    within(limit, taken).await
}

/// Reads what comes next of a handshake.
async fn read_more(peer: &mut TcpStream, incoming: &mut Vec<u8>) -> Result<(), HandshakeError> {
    if incoming.len() > MAX_HANDSHAKE {
        return Err(HandshakeError::TooLong);
    }
    incoming.reserve(FIRST_READ);
    if peer.read_buf(incoming).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}

/// Begins a handshake with a server.
pub(crate) async fn connect(
    peer: TcpStream,
    config: std::sync::Arc<ClientConfig>,
    name: ServerName<'static>,
    limit: Duration,
) -> Result<Tunnel<UnbufferedClientConnection>, HandshakeError> {
    let session = Session::new(UnbufferedClientConnection::new(config, name)?);
    within(limit, handshake(peer, session, Vec::new())).await
}

async fn within<T>(
    limit: Duration,
    handshake: impl Future<Output = Result<T, HandshakeError>>,
) -> Result<T, HandshakeError> {
    tokio::time::timeout(limit, handshake).await.unwrap_or(Err(HandshakeError::Timeout(limit)))
}

async fn handshake<C: Connection>(
    mut peer: TcpStream,
    mut session: Session<C>,
    mut incoming: Vec<u8>,
) -> Result<Tunnel<C>, HandshakeError> {
    let (mut outgoing, mut early) = (Vec::new(), Vec::new());
    loop {
        let fed = session.feed(&mut incoming, &mut early, &mut outgoing);
        if !outgoing.is_empty() {
            // An alert that cannot be delivered changes nothing: the error says why.
            let sent = peer.write_all(&outgoing).await;
            outgoing.clear();
            if fed.is_ok() {
                sent?;
            }
        }
        let progress = fed?;
        incoming.drain(..progress.used);
        if !session.is_handshaking() {
            incoming.shrink_to_fit();
            early.shrink_to_fit();
            session.partial = incoming;
            return Ok(Tunnel { session, peer, early, closed: progress.closed });
        }
        read_more(&mut peer, &mut incoming).await?;
    }
}
