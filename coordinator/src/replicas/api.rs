//! What a replica answers: to its peers on the mesh port, to users about itself on the user port.

use std::{sync::Arc, time::Instant};

use actors::Active;
use storage_schema::{BlobHash, EventStore as _, StoreError, StreamId};
use tonic::{Request, Response, Status};
use wire::replica::{
    BlobRequest, BlobResponse, Head, HeldRequest, HeldResponse, JoinRequest, JoinResponse, Peer as WirePeer,
    SegmentsRequest, SegmentsResponse, StatusRequest, StatusResponse, Store as WireStore,
    cluster_server::{Cluster, ClusterServer},
    replica_server::{Replica, ReplicaServer},
};

use super::heads::{judge, own_head};
use crate::{
    desk::{Desk, Failure},
    grpc::workload,
};

/// Largest request, in bytes: a signed head.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Longest page of segments, in bytes.
const SEGMENTS_BYTES: usize = 2 << 20;
/// Most streams that are asked about at once.
pub(super) const MOST_STREAMS: usize = 1000;

/// On the mesh port.
pub(crate) struct ReplicaApi(Desk);

impl ReplicaApi {
    pub(crate) fn service(desk: Desk) -> ReplicaServer<Self> {
        ReplicaServer::new(Self(desk)).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl Replica for ReplicaApi {
    #[tracing::instrument(skip_all, fields(request))]
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let peer = workload(&request)?;
        let head = own_head(&self.0).await?;
        let secrets = self.0.hand_over(&peer).await?;
        Ok(Response::new(JoinResponse {
            seed: secrets.seed.expose().to_vec(),
            salt: secrets.salt.as_bytes().to_vec(),
            mesh_ca_key: secrets.mesh_key_pem.into(),
            replica_secret: secrets.replica_secret.expose().to_vec(),
            transition: secrets.transition.as_bytes().to_vec(),
            signed_head: head.signed_head,
        }))
    }

    #[tracing::instrument(skip_all)]
    async fn exchange(&self, request: Request<Head>) -> Result<Response<Head>, Status> {
        let active = self.check_replica(&request)?;
        let ours = own_head(&self.0).await?;
        let (desk, theirs) = (self.0.clone(), request.into_inner());
        // Judged on its own, so that a head that is only ahead of us does not keep the peer waiting.
        tokio::spawn(async move {
            if let Err(error) = judge(&desk, &active, &theirs, "a peer that asked").await {
                tracing::warn!(error = %format!("{error:#}"), "head of a peer refused");
            }
        });
        Ok(Response::new(ours))
    }

    #[tracing::instrument(skip_all)]
    async fn held(&self, request: Request<HeldRequest>) -> Result<Response<HeldResponse>, Status> {
        self.check_replica(&request)?;
        let streams = &request.get_ref().streams;
        if streams.len() > MOST_STREAMS {
            let text = format!("{} streams at once, {MOST_STREAMS} are the most", streams.len());
            return Err(Failure::Malformed(text).into());
        }
        let held = |name: &String| Ok(self.0.standing.held(&stream_named(name)?));
        let segments = streams.iter().map(held).collect::<Result<_, Failure>>()?;
        Ok(Response::new(HeldResponse { replica: self.0.replica.as_bytes().to_vec(), segments }))
    }

    #[tracing::instrument(skip_all)]
    async fn segments(
        &self,
        request: Request<SegmentsRequest>,
    ) -> Result<Response<SegmentsResponse>, Status> {
        let SegmentsRequest { stream, index } = request.get_ref();
        let (stream, index) = (stream_named(stream)?, *index);
        // Of the own copy alone: asking on would go round in circles.
        let read = move |desk: &Desk| desk.store.local().read(&stream, index, SEGMENTS_BYTES);
        let page = self.for_replica(&request, read).await?;
        Ok(Response::new(SegmentsResponse { segments: page.into_iter().map(|(_, bytes)| bytes).collect() }))
    }

    #[tracing::instrument(skip_all)]
    async fn blob(&self, request: Request<BlobRequest>) -> Result<Response<BlobResponse>, Status> {
        let hash = <[u8; 32]>::try_from(request.get_ref().hash.as_slice());
        let hash = hash.map_err(|_| Failure::Malformed("a blob's name has 32 bytes".into()))?;
        let read = move |desk: &Desk| desk.store.local().get_blob(&BlobHash::from_bytes(hash));
        Ok(Response::new(BlobResponse { content: self.for_replica(&request, read).await? }))
    }
}

impl ReplicaApi {
    /// The manifest in force, if the caller is a Coordinator by it.
    fn check_replica<T>(&self, request: &Request<T>) -> Result<Arc<Active>, Failure> {
        self.0.check_replica(workload(request)?.as_ref())
    }

    /// Runs `work` where blocking is allowed, for a peer that is a Coordinator.
    async fn for_replica<T, R: Send + 'static>(
        &self,
        request: &Request<T>,
        work: impl FnOnce(&Desk) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, Failure> {
        self.check_replica(request)?;
        self.0.blocking(move |desk| Ok(work(desk)?)).await
    }
}

fn stream_named(name: &str) -> Result<StreamId, Failure> {
    name.parse().map_err(|error| Failure::Malformed(format!("stream: {error}")))
}

/// On the user port.
pub(crate) struct ClusterApi(Desk);

impl ClusterApi {
    pub(crate) fn service(desk: Desk) -> ClusterServer<Self> {
        ClusterServer::new(Self(desk)).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

fn milliseconds(since: std::time::Duration) -> u64 {
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl Cluster for ClusterApi {
    #[tracing::instrument(skip_all)]
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let desk = self.0.clone();
        let asked = tokio::task::spawn_blocking(move || desk.standing.etcd().map(|etcd| etcd.health()));
        let health = asked.await.map_err(|error| Failure::Fault(error.to_string()))?;
        let (standing, snapshot) = (&self.0.standing, self.0.snapshot.borrow().clone());
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut store =
            WireStore { engine: "sled".into(), refusals: self.0.store.refusals(), ..WireStore::default() };
        match health {
            None => {}
            Some(Ok(health)) => {
                store.engine = "etcd".into();
                (store.members, store.answering) = (count(health.members), count(health.answering));
                (store.bytes, store.bytes_in_use) = (health.bytes, health.bytes_in_use);
                store.complaints = health.alarms;
            }
            Some(Err(error)) => {
                store.engine = "etcd".into();
                store.complaints.push(error.to_string());
            }
        }
        store.complaints.extend(standing.failing());
        let now = Instant::now();
        let peers = standing.peers().into_iter().map(|(address, peer)| WirePeer {
            address,
            replica: peer.replica,
            control_events: peer.control_events,
            answered_ms: peer.answered.map(|at| milliseconds(now.duration_since(at))),
            error: peer.error,
        });
        Ok(Response::new(StatusResponse {
            replica: self.0.replica.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.0.readiness().word().to_owned(),
            generation: snapshot.state.entries().len() as u64,
            control_events: standing.control_events(),
            confirmed_ms: standing.age().map(milliseconds),
            store: Some(store),
            peers: peers.collect(),
            alarms: standing.alarms(),
            incomplete_streams: standing.incomplete(),
            evicted_policies: count(snapshot.state.evicted().policies.len()),
            evicted_keys: count(snapshot.state.evicted().keys.len()),
        }))
    }
}
