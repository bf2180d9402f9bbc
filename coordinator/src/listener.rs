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

use actors::{Active, AskError, Phase, RecordRefusal, Verified, VerifyError, VerifyEvidence};
use atls::{PeerCertificate, ServerConfig};
use attestation::{Claims, Evidence, ReportData};
use endorsements::Reach;
use manifest::{EvidenceHash, RequestId};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{
    grpc::status::Failure,
    metrics::{self, Metrics, Refusal},
    sources::{Sources, UnderWay},
    wiring::{Actors, now},
};

/// What a listener asks of its clients.
#[derive(Clone, Copy)]
pub(crate) enum PeerPolicy {
    /// Nothing; a key counts where a request needs one.
    User,
    /// Evidence that the manifest accepts.
    Mesh,
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) handshakes: usize,
    pub(crate) handshakes_per_source: usize,
    pub(crate) connections: usize,
    pub(crate) connections_per_source: usize,
}

pub(crate) struct Listener {
    pub(crate) name: &'static str,
    pub(crate) tls: ServerConfig,
    pub(crate) policy: PeerPolicy,
    pub(crate) limits: Limits,
    pub(crate) actors: Actors,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Who is at the other end, for the request handlers.
#[derive(Clone)]
pub(crate) enum Peer {
    /// Of the user listener: the certificate it showed, if any.
    User(Option<Arc<PeerCertificate>>),
    /// Of the mesh listener: proven by evidence.
    Workload(Arc<Workload>),
    /// Of the mesh listener: not judged, because there was too much to do.
    Busy(AskError),
    /// Of the mesh listener: refused; every request is answered with the reason.
    Refused(Arc<Refused>),
}

/// Why a workload was refused.
#[derive(Clone)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    /// The checks that its evidence did not pass, if that is why.
    pub(crate) refusal: Option<attestation::Refusal>,
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self { reason, refusal: None }
    }
}

/// What somebody who wants to be a workload showed.
pub(crate) struct Shown {
    /// The key that the evidence is about, SubjectPublicKeyInfo DER. That the caller holds it was checked.
    pub(crate) spki_der: Vec<u8>,
    pub(crate) evidence: Option<Evidence>,
    /// What the evidence must be over.
    pub(crate) expected: ReportData,
    /// What it answers: recorded, so that an auditor can repeat the verification.
    pub(crate) nonce: Vec<u8>,
}

impl From<PeerCertificate> for Shown {
    fn from(certificate: PeerCertificate) -> Self {
        let expected = certificate.report_data();
        let PeerCertificate { spki_der, evidence, nonce, .. } = certificate;
        Self { spki_der, evidence, expected, nonce: nonce.as_bytes().to_vec() }
    }
}

/// A verified workload, and what was in force when it was verified.
pub(crate) struct Workload {
    pub(crate) active: Arc<Active>,
    pub(crate) claims: Claims,
    pub(crate) evidence: Vec<u8>,
    pub(crate) spki_der: Vec<u8>,
    pub(crate) nonce: Vec<u8>,
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
        self.actors.metrics.refused.get_or_create(&Refusal { listener: self.name, reason }).inc();
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        source: SocketAddr,
        place: (OwnedSemaphorePermit, UnderWay),
    ) -> Option<Connection> {
        let _ = stream.set_nodelay(true); // only a matter of speed
        let active = match (self.policy, &self.actors.snapshot.borrow().phase) {
            (PeerPolicy::User, _) => None,
            (PeerPolicy::Mesh, Phase::Active(active)) => Some(Arc::clone(active)),
            (PeerPolicy::Mesh, _) => {
                tracing::debug!(%source, "no manifest in force: workload told to wait");
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
        let handshakes = &self.actors.metrics.handshakes;
        handshakes.get_or_create(label).observe(started.elapsed().as_secs_f64());
        let peer = match active {
            None => Peer::User(accepted.peer.map(Arc::new)),
            Some(active) => self.actors.judge(accepted.peer?.into(), active, source).await,
        };
        let open = self.actors.metrics.connections.get_or_create_owned(label);
        open.inc();
        Some(Connection { stream: accepted.stream, peer, open, _place: place })
    }
}

impl Actors {
    /// What is in force, if the caller was judged by it: connections outlive manifests, so whoever was judged by
    /// an earlier one has to connect again. (Each manifest, and each recovery by an owner, has its own mesh CA.)
    pub(crate) fn in_force(&self, judged_by: &Active) -> Result<Arc<Active>, Failure> {
        let Phase::Active(active) = self.snapshot.borrow().phase.clone() else {
            return Err(Failure::NeedsRecovery);
        };
        if active.ca.mesh_der() != judged_by.ca.mesh_der() {
            let text = "the manifest has changed since this connection was made; connect again";
            return Err(Failure::Unavailable(text.into()));
        }
        Ok(active)
    }

    /// The same, where this replica must also be sure that no other one has replaced it.
    pub(crate) fn check_in_force(&self, judged_by: &Active) -> Result<(), Failure> {
        self.standing.check_current()?;
        self.in_force(judged_by).map(drop)
    }

    /// Verifies a workload's evidence by the manifest in force. A refusal is recorded.
    pub(crate) async fn judge(
        &self,
        Shown { spki_der, evidence, expected, nonce }: Shown,
        active: Arc<Active>,
        source: SocketAddr,
    ) -> Peer {
        let Some(evidence) = evidence else {
            return self
                .refuse("the client's certificate carries no evidence".to_owned(), None, &active, source)
                .await;
        };
        let hash = EvidenceHash::of(&evidence.document);
        let manifest = Arc::clone(&active.manifest);
        let request = VerifyEvidence { evidence, expected, manifest, now: now(), vendor_asked: false };
        let started = Instant::now();
        let verdict = self.verify(request).await;
        let outcome = if matches!(verdict, Ok(Ok(_))) { "accepted" } else { "refused" };
        Metrics::took(&self.metrics.verification, outcome, started.elapsed());
        let reason = match verdict {
            Ok(Ok(Verified { claims, document }))
                if active.manifest.policies.contains_key(&claims.policy_hash()) =>
            {
                let workload = Workload { active, claims, evidence: document, spki_der, nonce };
                return Peer::Workload(Arc::new(workload));
            }
            Ok(Ok(Verified { claims, .. })) => format!(
                "policy {} is not in the current manifest (generation {}, {} policies): \
                 generate and set the manifest again, or restart the pod with the policy it lists",
                claims.policy_hash(),
                active.generation,
                active.manifest.policies.len()
            ),
            Ok(Err(VerifyError::Refused(refusal))) => {
                let refused = Refused { reason: refusal.to_string(), refusal: Some(refusal) };
                return self.refuse(refused, Some(hash), &active, source).await;
            }
            Ok(Err(error)) => error.to_string(),
            Err(busy) => return Peer::Busy(busy),
        };
        self.refuse(reason, Some(hash), &active, source).await
    }

    /// Judges evidence; if the vendor has to be asked for something first, on a thread that may wait.
    pub(crate) async fn verify(
        &self,
        request: VerifyEvidence,
    ) -> Result<Result<Verified, VerifyError>, AskError> {
        let VerifyEvidence { expected, now, .. } = request;
        let manifest = Arc::clone(&request.manifest);
        let lacking = match self.verifiers.ask(request).await? {
            Err(VerifyError::Lacking(lacking)) => lacking,
            judged => return Ok(judged),
        };
        let endorsements = Arc::clone(&self.endorsements);
        let evidence = lacking.evidence.clone();
        let asked = tokio::task::spawn_blocking(move || endorsements.complete(evidence, now, Reach::Network));
        // A panic there is a bug; the evidence is judged as it came.
        let evidence = asked.await.map_or(lacking.evidence, |completed| completed.evidence);
        self.verifiers.ask(VerifyEvidence { evidence, expected, manifest, now, vendor_asked: true }).await
    }

    async fn refuse(
        &self,
        refused: impl Into<Refused>,
        evidence: Option<EvidenceHash>,
        active: &Active,
        source: SocketAddr,
    ) -> Peer {
        let refused = Arc::new(refused.into());
        let reason = &refused.reason;
        tracing::warn!(%source, %reason, "workload refused");
        self.metrics.attestation_failures.inc();
        let Ok(request) = keys::random().map(RequestId::from_bytes) else {
            return Peer::Refused(refused);
        };
        let engine = Arc::clone(&active.engine);
        let record = RecordRefusal {
            source: source.ip().to_string(),
            reason: reason.clone(),
            evidence,
            request,
            engine,
        };
        match self.journal.ask(record).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "refusal not recorded"),
            Err(error) => tracing::error!(%error, "refusal not recorded"),
        }
        Peer::Refused(refused)
    }
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
