//! A connection of attested TLS: before its other end is judged, and after.

use std::{fmt, sync::Arc, time::Duration};

use atls::{ClientConfig, ConnectionKey, PeerCertificate};
use attestation::{Claims, Issuer};
use hyper_util::rt::TokioIo;
use manifest::Timestamp;
use tokio::{net::TcpStream, sync::Mutex};
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::{dial::dial, error::CallError, trust::Trust};

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until the other side accepts the connection.
    pub dial: Duration,
    /// The handshake, the Coordinator's evidence included.
    pub handshake: Duration,
    /// Until a request is answered, or its answer begins.
    pub request: Duration,
}

/// Who calls, and how patiently.
#[derive(Clone)]
pub struct Caller {
    /// The key that the caller proves to hold.
    pub key: Arc<ConnectionKey>,
    /// Makes the caller's own evidence, where the Coordinator asks for some.
    pub issuer: Option<Arc<dyn Issuer>>,
    /// How long each step may take.
    pub deadlines: Deadlines,
}

/// A connection whose other end holds the key of its certificate. Nobody has looked at its evidence yet, so nothing can
/// be sent through it.
pub struct Unjudged {
    address: String,
    stream: TlsStream<TcpStream>,
    peer: PeerCertificate,
    request: Duration,
}

/// A connection to a Coordinator of a manifest.
#[derive(Clone)]
pub struct Attested {
    channel: Channel,
    claims: Claims,
}

impl fmt::Debug for Attested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attested(..)")
    }
}

impl Unjudged {
    /// Dials host:port and does the handshake.
    pub async fn connect(address: &str, caller: &Caller, now: Timestamp) -> Result<Self, CallError> {
        let stream = dial(address, caller.deadlines.dial).await?;
        Self::open(stream, address, caller, now).await
    }

    /// Does the handshake over a connection that stands. `address` is what errors call it.
    pub async fn open(
        stream: TcpStream,
        address: &str,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Self, CallError> {
        let config = ClientConfig {
            key: Arc::clone(&caller.key),
            issuer: caller.issuer.clone(),
            handshake_timeout: caller.deadlines.handshake,
        };
        let (stream, peer) = atls::connect(stream, &config, now)
            .await
            .map_err(|error| CallError::handshake(address, error))?;
        Ok(Self { address: address.to_owned(), stream, peer, request: caller.deadlines.request })
    }

    /// Demands that the other end is a Coordinator of the manifest, by evidence for this very connection.
    pub async fn judge(self, trust: &Trust, now: Timestamp) -> Result<Attested, CallError> {
        let (evidence, expected) = (self.peer.evidence.clone(), self.peer.report_data());
        let claims = trust.judge_on_a_thread(&self.address, evidence, expected, now).await?;
        Ok(Attested { channel: self.unjudged().await?, claims })
    }

    /// For callers that take whoever answers: a pod that was given no manifest judges the certificate that it gets
    /// instead, and tests know whom they started.
    pub async fn unjudged(self) -> Result<Channel, CallError> {
        let Self { address, stream, request, .. } = self;
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_| {
            let once = Arc::clone(&once);
            // Another connection would have to be judged anew.
            async move { once.lock().await.take().ok_or_else(|| std::io::Error::other("connection closed")) }
        });
        let endpoint = Endpoint::from_static("http://coordinator").timeout(request);
        let connected = endpoint.connect_with_connector(connector).await;
        connected.map_err(|error| CallError::Http2 { address, error })
    }
}

impl Attested {
    /// Dials, does the handshake, judges.
    pub async fn connect(
        address: &str,
        caller: &Caller,
        trust: &Trust,
        clock: fn() -> Timestamp,
    ) -> Result<Self, CallError> {
        Unjudged::connect(address, caller, clock()).await?.judge(trust, clock()).await
    }

    /// What the evidence proved.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// For the clients of each API.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}
