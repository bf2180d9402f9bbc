//! Mutual TLS with the mesh PKI: the certificate is the transit engine's login.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use manifest::{PolicyHash, Timestamp};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    clock::now,
    desk::{Current, Desk, TransitClient},
};

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the server's own certificate is valid, and when it is renewed.
const LIFETIME: Duration = Duration::from_hours(48);
const RENEW: Duration = Duration::from_hours(24);

/// Accepts connections of workloads.
pub(super) struct TransitTls {
    desk: Desk,
    /// This Coordinator's own policy, whose names its certificate says.
    own_policy: PolicyHash,
    /// The configuration for the mesh CA in force.
    config: Mutex<Option<Config>>,
}

struct Config {
    /// The mesh CA that it was made for.
    mesh_ca: Vec<u8>,
    tls: Arc<rustls::ServerConfig>,
    made: Timestamp,
}

impl TransitTls {
    pub(super) fn new(desk: Desk, own_policy: PolicyHash) -> Self {
        Self { desk, own_policy, config: Mutex::default() }
    }

    /// A handshake. Without a manifest in force there is no mesh CA, and the connection ends.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> anyhow::Result<(TlsStream<TcpStream>, TransitClient)> {
        let current = self.desk.current_for_transit()?;
        let handshake = TlsAcceptor::from(self.tls_for(&current).await?).accept(stream);
        let stream =
            tokio::time::timeout(HANDSHAKE, handshake).await.context("handshake took too long")??;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = certificates.first().context("no client certificate")?;
        let client = TransitClient::new(leaf, &current)?;
        Ok((stream, client))
    }

    async fn tls_for(&self, current: &Current) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let made = now();
        if let Some(known) = &*self.config.lock().unwrap_or_else(PoisonError::into_inner)
            && known.mesh_ca == current.ca.mesh_der()
            && made < known.made.plus(RENEW)
        {
            return Ok(Arc::clone(&known.tls));
        }
        let tls = Arc::new(self.new_tls(current).await?);
        let mesh_ca = current.ca.mesh_der().to_vec();
        let config = Config { mesh_ca, tls: Arc::clone(&tls), made };
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config);
        Ok(tls)
    }

    async fn new_tls(&self, active: &Current) -> anyhow::Result<rustls::ServerConfig> {
        let key = atls::ConnectionKey::generate()?;
        let certificate =
            self.desk.transit_certificate(active, &self.own_policy, key.spki_der(), LIFETIME).await?;
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
}
