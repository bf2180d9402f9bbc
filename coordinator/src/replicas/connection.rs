//! An attested connection to a peer: each side proves to be a Coordinator.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use atls::ConnectionKey;
use attestation::Issuer;
use coordinator_client::{Attested, Caller, Deadlines, Trust};
use manifest::Manifest;
use program::now;
use storage_schema::{BlobHash, EventStore as _};
use tonic::transport::Channel;
use wire::replica::replica_client::ReplicaClient;

use super::discovery::Discovery;
use crate::desk::Desk;

const DEADLINES: Deadlines = Deadlines {
    dial: Duration::from_secs(2),
    handshake: Duration::from_secs(20),
    request: Duration::from_secs(10),
};

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
        let caller = Caller {
            key: Arc::new(ConnectionKey::generate()?),
            issuer: Some(Arc::clone(&self.issuer)),
            deadlines: DEADLINES,
        };
        // Not by the verifiers' pool: its mailbox may be full of workloads, and replicas must hear from one another.
        // There is one such question at a time for each task here, so vendors are asked little.
        let endorsements = Arc::clone(&self.desk.endorsements);
        let trust = Trust { manifest: Arc::clone(manifest), endorsements };
        let peer = Attested::connect(address, &caller, &trust, now).await?;
        Ok(ReplicaClient::new(peer.channel()))
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
