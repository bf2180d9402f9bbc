//! Every listener: the gRPC services behind attested TLS, HTTP, the transit engine, probes.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use atls::{ClientAuth, ServerConfig};
use attestation::Issuer;
use manifest::PolicyHash;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tonic::transport::Server;

use crate::{
    config::Config,
    desk::Desk,
    grpc::{HistoryApi, Listener, MeshApi, PeerPolicy, ProposalsApi, UserApi, path_aliases},
    http::{self, Api, Web},
    limits::Limits,
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
const MAX_STREAMS: u32 = 32;

type Servers = JoinSet<anyhow::Result<()>>;

/// Binds and serves until stopped. Each task ends when its requests under way are answered.
pub(crate) async fn start(
    config: &Config,
    own_policy: PolicyHash,
    issuer: &Arc<dyn Issuer>,
    desk: &Desk,
    stopped: &watch::Receiver<bool>,
) -> anyhow::Result<Servers> {
    let limits = Limits {
        handshakes: config.max_handshakes,
        handshakes_per_source: config.max_handshakes_per_source,
        connections: config.max_connections,
        connections_per_source: config.max_connections_per_source,
    };
    let mut servers = JoinSet::new();
    grpc(&mut servers, config, issuer, desk, limits).await?;

    let web = |name, route| Web { name, limits, metrics: desk.metrics.clone(), stop: stopped.clone(), route };
    if let Some(address) = config.beside_user_api(config.http_listen, 1314) {
        let (socket, api) = (bind("http", address).await?, Api::new(desk.clone(), Arc::clone(issuer))?);
        servers.spawn(web("http", http::route).serve_plain(socket, http::routes(&api)));
    }
    if let Some(address) = config.beside_user_api(config.transit_listen, 8200) {
        let (socket, web) = (bind("transit", address).await?, web("transit", transit::route));
        servers.spawn(transit::serve(web, socket, desk.clone(), own_policy));
    }
    // Last, because an answer there says that the others listen.
    let probe = bind("probe", config.probe_listen).await?;
    servers.spawn(probes::serve(probe, desk.clone(), config.metrics.is_some(), stopped.clone()));
    Ok(servers)
}

async fn grpc(
    servers: &mut Servers,
    config: &Config,
    issuer: &Arc<dyn Issuer>,
    desk: &Desk,
    limits: Limits,
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
        Listener { name, tls, policy, limits, desk: desk.clone(), stop: desk.stop.clone() }
    };
    let server = || {
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(DRAIN))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(MAX_STREAMS)
            .timeout(REQUEST)
            .layer(path_aliases())
            .layer(CountCalls(desk.metrics.grpc.clone()))
    };
    let user = listener("user", ClientAuth::Optional, PeerPolicy::User).incoming(user);
    let user = server()
        .add_service(UserApi::service(desk.clone()))
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
