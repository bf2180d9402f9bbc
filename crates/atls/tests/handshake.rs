//! Both sides of the handshake, over a socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use atls::{AcceptError, ClientAuth, ClientConfig, ConnectionKey, NonceError, ServerConfig, accept, connect};
use attestation::{
    Issuer, SnpEvidence,
    simulated::{SimulatedKind, SimulatedMachine},
};
use manifest::{PolicyHash, Timestamp};
use tokio::net::{TcpListener, TcpStream};

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const LIMIT: Duration = Duration::from_secs(20);

fn guest(policy: &[u8]) -> Arc<dyn Issuer> {
    let directory = tempfile::tempdir().unwrap();
    Arc::new(
        SimulatedMachine::create(directory.path(), SimulatedKind::Snp, NOW)
            .unwrap()
            .guest(PolicyHash::of(policy)),
    )
}

fn server(client_auth: ClientAuth) -> ServerConfig {
    ServerConfig { issuer: guest(b"server"), client_auth, handshake_timeout: LIMIT }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_gets_evidence_that_is_bound_to_this_connection() {
    let (client, accepted) = pair().await;
    let key = Arc::new(ConnectionKey::generate().unwrap());
    let config =
        ClientConfig { key: Arc::clone(&key), issuer: Some(guest(b"client")), handshake_timeout: LIMIT };
    let listener = server(ClientAuth::Required);
    let (connected, accepted) = tokio::join!(connect(client, &config, NOW), accept(accepted, &listener, NOW));
    let peer = accepted.unwrap().peer.unwrap();
    assert_eq!(peer.spki_der, key.spki_der());
    for side in [connected.unwrap().1, peer] {
        let evidence = SnpEvidence::from_protobuf(&side.evidence.as_ref().unwrap().document).unwrap();
        assert_eq!(&evidence.report[0x50..0x90], side.report_data().as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_keys_of_every_kind_are_accepted_without_evidence() {
    let listener = server(ClientAuth::Optional);
    let (p384, _) = keys::generate_workload_owner_key().unwrap();
    let (rsa, _) = keys::generate_seedshare_owner_key().unwrap();
    for pem in [p384, rsa] {
        let (client, accepted) = pair().await;
        let key = Arc::new(ConnectionKey::from_pem(&pem).unwrap());
        let config = ClientConfig { key: Arc::clone(&key), issuer: None, handshake_timeout: LIMIT };
        let (connected, accepted) =
            tokio::join!(connect(client, &config, NOW), accept(accepted, &listener, NOW));
        connected.unwrap();
        let peer = accepted.unwrap().peer.unwrap();
        assert_eq!((peer.spki_der, peer.evidence), (key.spki_der(), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_tls_and_silence_are_refused() {
    let listener = server(ClientAuth::Optional);
    let (client, accepted) = pair().await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let plain = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(plain));
    let (refused, accepted) = tokio::join!(connector.connect(name, client), accept(accepted, &listener, NOW));
    assert!(refused.is_err());
    assert!(matches!(accepted.err(), Some(AcceptError::Nonce(NonceError::Missing))));

    let (_silent, other) = tokio::io::duplex(64);
    let hasty = ServerConfig { handshake_timeout: Duration::from_millis(1), ..listener };
    assert!(matches!(accept(other, &hasty, NOW).await.err(), Some(AcceptError::Timeout(_))));
}
