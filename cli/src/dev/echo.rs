//! Two workloads talking: rustls with the files that the initializers wrote, HTTP by hyper.

use std::{convert::Infallible, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use keys::{CaKey, LeafRequest, MeshCa, Salt, Seed, SeedEngine};
use program::now;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::WebPkiServerVerifier,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const LIMIT: Duration = Duration::from_secs(10);

/// What a workload presents, and whom it believes.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    mesh_ca: RootCertStore,
}

impl Identity {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let tls = directory.join("tls-config");
        Ok(Self {
            chain: CertificateDer::pem_file_iter(tls.join("certChain.pem"))?.collect::<Result<_, _>>()?,
            key: PrivateKeyDer::from_pem_file(tls.join("key.pem"))?,
            mesh_ca: roots(&std::fs::read(tls.join("mesh-ca.pem"))?)?,
        })
    }
}

fn roots(pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        store.add(certificate?)?;
    }
    Ok(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// One request from the workload in `client` to the one in `server`; returns the echo.
pub(super) async fn between(client: &Path, server: &Path, name: &str) -> anyhow::Result<String> {
    call(Identity::read(client)?, server, name).await
}

async fn call(client: Identity, server: &Path, name: &str) -> anyhow::Result<String> {
    let server = Identity::read(server)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(server.mesh_ca), provider()).build()?;
    let tls = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(server.chain, server.key)?;
    let socket = TcpListener::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    let serve = async {
        let (stream, _) = socket.accept().await?;
        let stream = TlsAcceptor::from(Arc::new(tls)).accept(stream).await?;
        let echo = service_fn(|request: Request<hyper::body::Incoming>| async {
            let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
            Ok::<_, Infallible>(Response::new(Full::new(body.unwrap_or_default())))
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), echo).await?;
        anyhow::Ok(())
    };
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(client.mesh_ca)
        .with_client_auth_cert(client.chain, client.key)?;
    let name = ServerName::try_from(name.to_owned())?;
    let request = async {
        let stream =
            TlsConnector::from(Arc::new(tls)).connect(name, TcpStream::connect(address).await?).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let body = Full::new(Bytes::from_static(b"hello over mutual TLS"));
        let request = Request::post("/").header("host", "echo").body(body)?;
        let answer = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
        drop(sender);
        connection.await??;
        anyhow::Ok(String::from_utf8(answer.to_vec())?)
    };
    let (served, answer) =
        tokio::time::timeout(LIMIT, async { tokio::join!(serve, request) }).await.context("no answer")?;
    served?; // the server's reason, if it refused, says more than the client's
    answer
}

/// A client whose certificate has the right shape but comes from another mesh CA; returns why the
/// workload in `server` refused it.
pub(super) async fn foreign_client(server: &Path, name: &str) -> anyhow::Result<String> {
    let engine = SeedEngine::new(Seed::generate()?, Salt::generate()?)?;
    let elsewhere = MeshCa::new(&engine, CaKey::generate()?, now())?;
    let key = atls::ConnectionKey::generate()?;
    let sans = ["frontend".to_owned()];
    let request = LeafRequest {
        spki_der: &key.spki_der(),
        sans: &sans,
        workload_secret_id: None,
        claims: &[],
        lifetime: keys::DEFAULT_LEAF_LIFETIME,
    };
    let leaf = elsewhere.issue(&request, now())?;
    let client = Identity {
        chain: vec![leaf.der.into()],
        key: key.private_key(),
        mesh_ca: Identity::read(server)?.mesh_ca,
    };
    match call(client, server, name).await {
        Ok(_) => bail!("a client with a certificate from elsewhere was served"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Checks that a workload's certificate is valid under the deployment's root.
pub(super) fn chains_to_root(directory: &Path, root_pem: &str) -> anyhow::Result<()> {
    let identity = Identity::read(directory)?;
    let [leaf, intermediates @ ..] = identity.chain.as_slice() else { bail!("the chain file is empty") };
    ensure!(!intermediates.is_empty(), "the chain file lacks the intermediate");
    let roots = Arc::new(roots(root_pem.as_bytes())?);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?;
    let name = directory.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
    let name = ServerName::try_from(name.context("no name")?.to_owned())?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(now().as_secs()));
    rustls::client::danger::ServerCertVerifier::verify_server_cert(
        verifier.as_ref(),
        leaf,
        intermediates,
        &name,
        &[],
        at,
    )?;
    Ok(())
}
