//! Every listener: the gRPC services behind attested TLS, HTTP, the transit engine, probes.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use atls::{ClientAuth, ServerConfig};
use attestation::Issuer;
use manifest::PolicyHash;
use program::DoorLimits;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::transport::Server;

use crate::{
    budget::Budget,
    config::Config,
    desk::Desk,
    door::{Counted, Door, WhenFull},
    grpc::{HistoryApi, Intake, Listener, MeshApi, PeerPolicy, ProposalsApi, UserApi, path_aliases},
    http::{self, Api},
    limits::{PROBES, connections_within_descriptors},
    metrics::CountCalls,
    probes,
    replicas::{ClusterApi, ReplicaApi},
    transit,
};

/// Time for requests under way to finish after a signal.
pub(crate) const DRAIN: Duration = Duration::from_secs(20);
/// Idle time after which a client is asked whether it is still there (docs/spec/control-plane.md,
/// section 1.1).
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longest time for a request to arrive and be answered; of a stream, until its first message.
const REQUEST: Duration = Duration::from_secs(60);
/// Largest request head, in bytes.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 8;
/// Bytes of a request that may be on their way unasked; twice that for all requests of a connection.
const WINDOW: u32 = 256 << 10;
/// Connections that only owners may keep, on the user port, and only workloads on the mesh port.
const RESERVED: usize = 32;

type Servers = JoinSet<anyhow::Result<()>>;

/// Binds and serves until stopped. Each task ends when its requests under way are answered.
pub(crate) async fn start(
    config: &Config,
    own_policy: PolicyHash,
    issuer: &Arc<dyn Issuer>,
    desk: &Desk,
    stopped: &watch::Receiver<bool>,
) -> anyhow::Result<Servers> {
    let connections = connections_within_descriptors(config.max_connections, RESERVED)?;
    let limits = DoorLimits {
        handshakes: config.max_handshakes,
        handshakes_per_source: config.max_handshakes_per_source,
        connections,
        connections_per_source: config.max_connections_per_source,
        reserved: 0,
    };
    let budget = Budget::new();
    tracing::info!(
        request_mib = Budget::TOTAL >> 20,
        connections_per_listener = connections,
        "what requests and connections may take together"
    );
    let door = |name| Door {
        name,
        limits,
        when_full: WhenFull::Refuse,
        keeper: Counted::new(&desk.metrics, name),
        stop: stopped.clone(),
    };
    let mut servers = JoinSet::new();
    grpc(&mut servers, config, issuer, desk, &budget, door).await?;

    if let Some(address) = config.beside_user_api(config.http_listen, 1314) {
        let (socket, api) =
            (bind("http", address).await?, Api::new(desk.clone(), Arc::clone(issuer), budget.clone())?);
        servers.spawn(http::serve(door("http"), budget.clone(), socket, api));
    }
    if let Some(address) = config.beside_user_api(config.transit_listen, 8200) {
        let socket = bind("transit", address).await?;
        servers.spawn(transit::serve(door("transit"), budget.clone(), socket, desk.clone(), own_policy));
    }
    // Last, because an answer there says that the others listen.
    let probe = bind("probe", config.probe_listen).await?;
    let state_dir = config.metrics.is_some().then(|| config.state_dir.clone());
    let door = Door { limits: PROBES, when_full: WhenFull::EndOldest, ..door("probe") };
    servers.spawn(probes::serve(door, probe, desk.clone(), state_dir));
    Ok(servers)
}

async fn grpc(
    servers: &mut Servers,
    config: &Config,
    issuer: &Arc<dyn Issuer>,
    desk: &Desk,
    budget: &Budget,
    door: impl Fn(&'static str) -> Door,
) -> anyhow::Result<()> {
    let user = bind("user", config.user_listen).await?;
    let mesh = bind("mesh", config.mesh_listen).await?;
    tracing::info!(user = %user.local_addr()?, mesh = %mesh.local_addr()?, "listening");

    let listener = |name, client_auth, policy| {
        let tls = ServerConfig {
            issuer: Arc::clone(issuer),
            client_auth,
            handshake_timeout: Duration::from_secs(config.handshake_seconds),
        };
        let door = door(name);
        let limits = DoorLimits { reserved: RESERVED, ..door.limits };
        Listener { door: Door { limits, ..door }, tls, policy, desk: desk.clone() }
    };
    let server = || {
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(DRAIN))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .timeout(REQUEST)
            .layer(path_aliases())
            .layer(CountCalls(desk.metrics.grpc.clone()))
            .layer(Intake { desk: desk.clone(), budget: budget.clone() })
    };
    let user = listener("user", ClientAuth::Optional, PeerPolicy::User).incoming(user);
    let user = server()
        .add_service(UserApi::service(desk.clone(), budget.clone()))
        .add_service(HistoryApi::service(desk.clone()))
        .add_service(ProposalsApi::service(desk.clone()))
        .add_service(ClusterApi::service(desk.clone()))
        .serve_with_incoming_shutdown(user, wait_for(desk.stop.clone()));
    let mesh = listener("mesh", ClientAuth::Required, PeerPolicy::Mesh).incoming(mesh);
    let mesh = server()
        .add_service(MeshApi::service(desk.clone()))
        .add_service(ReplicaApi::service(desk.clone()))
        .serve_with_incoming_shutdown(mesh, wait_for(desk.stop.clone()));
    servers.spawn(async move { user.await.context("user API") });
    servers.spawn(async move { mesh.await.context("mesh API") });
    Ok(())
}

async fn bind(name: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("--{name}-listen {address}"))
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
