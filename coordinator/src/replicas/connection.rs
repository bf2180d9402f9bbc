//! An attested connection to a peer: each side proves to be a Coordinator.

use std::{sync::Arc, time::Duration};

use actors::VerifyEvidence;
use anyhow::{Context as _, bail};
use atls::{ClientConfig, ConnectionKey};
use attestation::Issuer;
use hyper_util::rt::TokioIo;
use manifest::{Manifest, Role};
use storage_schema::{BlobHash, EventStore as _};
use tokio::{net::TcpStream, sync::Mutex};
use tonic::transport::{Channel, Endpoint};
use wire::replica::replica_client::ReplicaClient;

use super::discovery::Discovery;
use crate::{clock::now, desk::Desk};

const CONNECT: Duration = Duration::from_secs(2);
const HANDSHAKE: Duration = Duration::from_secs(20);
const REQUEST: Duration = Duration::from_secs(10);

/// The other replicas.
pub(super) struct Peers {
    pub(super) desk: Desk,
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) discovery: Discovery,
}

impl Peers {
    /// Connects to a peer, which must be a Coordinator by `manifest`.
    pub(super) async fn connect(
        &self,
        address: &str,
        manifest: &Arc<Manifest>,
    ) -> anyhow::Result<ReplicaClient<Channel>> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
        let stream = stream.context("no connection in time")??;
        stream.set_nodelay(true)?;
        let source = stream.peer_addr()?.ip();
        let config = ClientConfig {
            key: Arc::new(ConnectionKey::generate()?),
            issuer: Some(Arc::clone(&self.issuer)),
            handshake_timeout: HANDSHAKE,
        };
        let (stream, peer) = atls::connect(stream, &config, now()).await?;
        let expected = peer.report_data();
        let evidence = peer.evidence.context("the peer sent no evidence")?;
        let request = VerifyEvidence {
            evidence,
            expected,
            manifest: Arc::clone(manifest),
            now: now(),
            vendor_asked: false,
        };
        let policy = self.desk.verify(request, source).await?.claims.policy_hash();
        if manifest.policies.get(&policy).map(|entry| entry.role) != Some(Role::Coordinator) {
            bail!("policy {policy} does not have the role coordinator in the manifest");
        }
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_| {
            let once = Arc::clone(&once);
            async move { once.lock().await.take().ok_or_else(|| std::io::Error::other("connection closed")) }
        });
        let endpoint = Endpoint::from_static("http://coordinator").timeout(REQUEST);
        Ok(ReplicaClient::new(endpoint.connect_with_connector(connector).await?))
    }

    /// The manifest of the history as the store shows it: who may be asked for secrets. It is not known
    /// to be genuine before they are there; then the log's signature ties the history to the seed.
    pub(super) async fn latest_manifest(&self) -> anyhow::Result<Option<Arc<Manifest>>> {
        let state = Arc::clone(&self.desk.snapshot.borrow().state);
        let Some(latest) = state.latest() else { return Ok(None) };
        let (store, hash) = (Arc::clone(&self.desk.store), BlobHash::from_bytes(*latest.manifest.as_bytes()));
        let blob = tokio::task::spawn_blocking(move || store.get_blob(&hash)).await??;
        let blob = blob.context("the store lacks the manifest in force")?;
        Ok(Some(Arc::new(Manifest::parse(&blob)?)))
    }
}
