//! Mutual TLS with the mesh PKI: the certificate is the transit engine's login.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actors::{Active, IssueServiceCert, Phase};
use anyhow::Context as _;
use manifest::{PolicyHash, Role, Timestamp};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Client;
use crate::{
    grpc::user_api::request_id,
    wiring::{Actors, now},
};

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the server's own certificate is valid, and when it is renewed.
const LIFETIME: Duration = Duration::from_hours(48);
const RENEW: Duration = Duration::from_hours(24);

/// Accepts connections of workloads.
pub(crate) struct TransitTls {
    actors: Actors,
    /// This Coordinator's own policy, whose names its certificate says.
    own_policy: PolicyHash,
    /// The configuration for the mesh CA in force.
    current: Mutex<Option<Current>>,
}

#[derive(Clone)]
struct Current {
    active: Arc<Active>,
    config: Arc<rustls::ServerConfig>,
    made: Timestamp,
}

/// What is in force, if anything is, and this replica knows that no other one has replaced it.
pub(super) fn in_force(actors: &Actors) -> Option<Arc<Active>> {
    match &actors.snapshot.borrow().phase {
        Phase::Active(active) if actors.standing.is_current() => Some(Arc::clone(active)),
        Phase::Active(_) | Phase::NeedsRecovery | Phase::Uninitialised => None,
    }
}

impl TransitTls {
    pub(crate) fn new(actors: Actors, own_policy: PolicyHash) -> Self {
        Self { actors, own_policy, current: Mutex::default() }
    }

    /// A handshake. Without a manifest in force there is no mesh CA, and the connection ends.
    pub(crate) async fn accept(&self, stream: TcpStream) -> anyhow::Result<(TlsStream<TcpStream>, Client)> {
        let Current { active, config, .. } = self.current().await?;
        let handshake = TlsAcceptor::from(config).accept(stream);
        let stream =
            tokio::time::timeout(HANDSHAKE, handshake).await.context("handshake took too long")??;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = certificates.first().context("no client certificate")?;
        let secret_id = keys::workload_secret_id_of(leaf)?;
        let until = keys::valid_until(leaf)?;
        Ok((stream, Client { secret_id, active, until }))
    }

    async fn current(&self) -> anyhow::Result<Current> {
        let active = in_force(&self.actors).context("no manifest in force")?;
        let known = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known
            && known.active.ca.mesh_der() == active.ca.mesh_der()
            && now() < known.made.plus(RENEW)
        {
            return Ok(known);
        }
        let made = now();
        let config = Arc::new(self.config(&active).await?);
        let current = Current { active, config, made };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current.clone());
        Ok(current)
    }

    async fn config(&self, active: &Arc<Active>) -> anyhow::Result<rustls::ServerConfig> {
        let key = atls::ConnectionKey::generate()?;
        let request = IssueServiceCert {
            active: Arc::clone(active),
            service: "transit",
            sans: self.names(active),
            spki_der: key.spki_der(),
            lifetime: LIFETIME,
            request: request_id().map_err(|_| anyhow::anyhow!("no random numbers"))?,
        };
        let certificate = self.actors.authority.ask(request).await??;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(active.ca.mesh_der().to_vec()))?;
        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
        let chain =
            [certificate.der, active.ca.intermediate_der().to_vec()].map(CertificateDer::from).to_vec();
        let key: PrivateKeyDer<'static> = key.private_key();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.send_tls13_tickets = 0; // a resumed session would outlive a manifest change
        Ok(config)
    }

    fn names(&self, active: &Active) -> Vec<String> {
        let policies = &active.manifest.policies;
        let any = || policies.values().find(|entry| entry.role == Role::Coordinator);
        let own = policies.get(&self.own_policy).or_else(any);
        own.map(|entry| entry.sans.clone()).unwrap_or_default()
    }
}
