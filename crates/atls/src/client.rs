//! The connecting side.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use attestation::Issuer;
use manifest::Timestamp;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{CertificateError, ConnectionKey, Nonce, PeerCertificate, server::provider};

/// What a client brings.
#[derive(Clone)]
pub struct ClientConfig {
    /// The key that the client proves to hold.
    pub key: Arc<ConnectionKey>,
    /// Makes this side's evidence; `None` when the server does not ask for any.
    pub issuer: Option<Arc<dyn Issuer>>,
    /// Longest handshake, the server's evidence included.
    pub handshake_timeout: Duration,
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not finished in time.
    #[error("handshake took longer than {0:?}")]
    Timeout(Duration),
    /// TLS itself, or the server hung up.
    #[error("handshake failed: {0}")]
    Tls(#[from] std::io::Error),
    /// The configuration was refused by rustls.
    #[error("handshake failed: {0}")]
    Rustls(#[from] rustls::Error),
    /// A certificate, ours or theirs.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// This side's certificate could not be made in the middle of the handshake.
    #[error("cannot answer the server's request for evidence: {0}")]
    Answer(String),
    /// TLS without a certificate.
    #[error("the server showed no certificate")]
    NoCertificate,
    /// The random number generator is gone.
    #[error("the random number generator is not available")]
    Random,
}

/// Connects over `stream`. The server holds its key; its evidence is not judged yet.
///
/// Must run on a multi-threaded runtime: evidence is made in the middle of the handshake, where
/// rustls cannot wait, so the thread hands its other tasks on.
pub async fn connect<S>(
    stream: S,
    config: &ClientConfig,
    now: Timestamp,
) -> Result<(TlsStream<S>, PeerCertificate), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let nonce = Nonce::random().map_err(|_| ConnectError::Random)?;
    let provider = provider();
    let answer = Arc::new(Answer { config: config.clone(), now, error: Mutex::new(None) });
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // the evidence is what is verified, after the handshake
        .with_custom_certificate_verifier(Arc::new(KeyPossession { provider }))
        .with_client_cert_resolver(Arc::clone(&answer) as Arc<dyn ResolvesClientCert>);
    tls.alpn_protocols = vec![nonce.to_alpn(), b"h2".to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_sni = false;

    let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let handshake = TlsConnector::from(Arc::new(tls)).connect(name, stream);
    let limit = config.handshake_timeout;
    let outcome = tokio::time::timeout(limit, handshake).await.map_err(|_| ConnectError::Timeout(limit))?;
    if let Some(reason) = answer.error.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(ConnectError::Answer(reason));
    }
    let stream = outcome?;
    let peer = match stream.get_ref().1.peer_certificates() {
        Some([certificate, ..]) => PeerCertificate::parse(certificate, nonce, now)?,
        _ => return Err(ConnectError::NoCertificate),
    };
    Ok((stream, peer))
}

/// Makes the client certificate once the server's nonce is known.
struct Answer {
    config: ClientConfig,
    now: Timestamp,
    /// Why it could not; rustls has no way to carry it.
    error: Mutex<Option<String>>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer(..)")
    }
}

impl Answer {
    fn certified_key(&self, names: &[&[u8]]) -> Result<CertifiedKey, String> {
        let nonce = Nonce::from_names(names).map_err(|error| error.to_string())?;
        let key = &self.config.key;
        let evidence = match &self.config.issuer {
            Some(issuer) => {
                let data = key.report_data(&nonce);
                Some(tokio::task::block_in_place(|| issuer.issue(&data)).map_err(|error| error.to_string())?)
            }
            None => None,
        };
        let certificate = key.certificate(evidence, self.now).map_err(|error| error.to_string())?;
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key.private_key())
            .map_err(|error| error.to_string())?;
        Ok(CertifiedKey::new(vec![certificate], signer))
    }
}

impl ResolvesClientCert for Answer {
    fn resolve(&self, names: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self.certified_key(names) {
            Ok(certified) => Some(Arc::new(certified)),
            Err(reason) => {
                *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Checks that the server holds the key of its certificate.
#[derive(Debug)]
struct KeyPossession {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for KeyPossession {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
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
