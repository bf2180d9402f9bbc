//! The accepting side: one rustls configuration per connection, because the certificate holds
//! evidence over the client's nonce, which is only known once the hello was read.

use std::{sync::Arc, time::Duration};

use attestation::{IssueError, Issuer};
use manifest::Timestamp;
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        Acceptor, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{CertificateError, ConnectionKey, Nonce, NonceError, PeerCertificate};

/// Longest wait for a client's hello, which costs nothing to make. The rest may take as long as evidence
/// takes; but whoever does not even say hello shall not hold a place meanwhile.
const HELLO: Duration = Duration::from_secs(5);

/// Whether a client must show a certificate. Either way one is asked for, because clients read
/// the server's nonce from that request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// It may come without.
    Optional,
    /// No certificate, no connection.
    Required,
}

/// What a listener needs to accept connections.
#[derive(Clone)]
pub struct ServerConfig {
    /// Makes this side's evidence.
    pub issuer: Arc<dyn Issuer>,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
    /// Longest handshake, evidence included; slow platforms need tens of seconds.
    pub handshake_timeout: Duration,
}

/// A finished handshake. The peer holds its key; its evidence is not judged yet.
pub struct Accepted<S> {
    /// The encrypted connection.
    pub stream: TlsStream<S>,
    /// The client's certificate, if it showed one.
    pub peer: Option<PeerCertificate>,
}

/// Why a handshake ended early.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Not finished in time.
    #[error("handshake took longer than {0:?}")]
    Timeout(Duration),
    /// TLS itself.
    #[error("handshake failed: {0}")]
    Tls(#[from] std::io::Error),
    /// The configuration was refused by rustls.
    #[error("handshake failed: {0}")]
    Rustls(#[from] rustls::Error),
    /// The hello has no usable nonce.
    #[error(transparent)]
    Nonce(#[from] NonceError),
    /// A certificate, ours or theirs.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// This side's evidence could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The random number generator or the blocking pool is gone.
    #[error("{0} is not available")]
    Broken(&'static str),
}

/// Accepts one connection. `now` dates the certificate and judges the peer's.
pub async fn accept<S>(stream: S, config: &ServerConfig, now: Timestamp) -> Result<Accepted<S>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limit = config.handshake_timeout;
    tokio::time::timeout(limit, handshake(stream, config, now))
        .await
        .map_err(|_| AcceptError::Timeout(limit))?
}

async fn handshake<S>(stream: S, config: &ServerConfig, now: Timestamp) -> Result<Accepted<S>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let start = tokio::time::timeout(HELLO, hello).await.map_err(|_| AcceptError::Timeout(HELLO))??;
    let hello = start.client_hello();
    let alpn = hello.alpn().into_iter().flatten();
    let client_nonce = Nonce::from_hello(alpn, hello.server_name())?;
    let nonce = Nonce::random().map_err(|_| AcceptError::Broken("the random number generator"))?;

    let key = ConnectionKey::generate()?;
    let data = key.report_data(&client_nonce);
    let issuer = Arc::clone(&config.issuer);
    let evidence = tokio::task::spawn_blocking(move || issuer.issue(&data))
        .await
        .map_err(|_| AcceptError::Broken("the blocking pool"))??;
    let certificate = key.certificate(Some(evidence), now)?;

    let tls = tls_config(&key, certificate, nonce, config.client_auth)?;
    let stream = start.into_stream(Arc::new(tls)).await?;
    let peer = match stream.get_ref().1.peer_certificates() {
        Some([certificate, ..]) => Some(PeerCertificate::parse(certificate, nonce, now)?),
        _ => None,
    };
    Ok(Accepted { stream, peer })
}

fn tls_config(
    key: &ConnectionKey,
    certificate: CertificateDer<'static>,
    nonce: Nonce,
    client_auth: ClientAuth,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let provider = provider();
    let verifier = KeyPossession {
        names: [nonce.to_name()],
        mandatory: client_auth == ClientAuth::Required,
        provider: Arc::clone(&provider),
    };
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(vec![certificate], key.private_key())?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    Ok(tls)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Checks that the client holds the key of its certificate; the certificate itself is read after
/// the handshake.
#[derive(Debug)]
struct KeyPossession {
    names: [DistinguishedName; 1],
    mandatory: bool,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for KeyPossession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.names
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is off".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
