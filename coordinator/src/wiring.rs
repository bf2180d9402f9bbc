//! Starts the actors and the listeners, and stops them in order.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actix::{Actor as _, Supervisor, SyncArbiter};
use actors::{
    Authority, Clock as _, Journal, Ledger, Mailbox, Recovery, Snapshot, SystemClock, Verifiers,
    verify_streams,
};
use anyhow::{Context as _, ensure};
use atls::{ClientAuth, ServerConfig};
use attestation::Issuer;
use endorsements::{EndorsedIssuer, EndorsementOptions, Endorsements};
use manifest::{ReplicaId, Timestamp};
use storage_schema::{Archive, SledStore};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

use crate::{
    checkpoints,
    config::Config,
    grpc::{HistoryApi, MeshApi, UserApi},
    listener::{Limits, Listener, PeerPolicy},
    probes,
};

/// Time for requests under way to finish after a signal.
const DRAIN: Duration = Duration::from_secs(20);

/// Time between two looks at what endorsements are due.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// A clock before this is wrong: 2026-11-24.
const BUILT: Timestamp = Timestamp::from_millis(1_795_478_400_000);

/// Questions that an actor has waiting or under way before it answers "try again".
const ROOM: usize = 8192;
/// The same for manifest changes and recoveries, which are few and may be 16 MiB each.
const LEDGER_ROOM: usize = 16;

pub(crate) type Store = SledStore;

/// What the edge talks to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Actors {
    pub(crate) store: Arc<Store>,
    pub(crate) archive: Arc<Archive<Store>>,
    pub(crate) endorsements: Arc<Endorsements>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) snapshot: watch::Receiver<Snapshot>,
    pub(crate) ledger: Mailbox<Ledger<Store, SystemClock>>,
    pub(crate) journal: Mailbox<Journal<Store, SystemClock>>,
    pub(crate) verifiers: Mailbox<Verifiers>,
    pub(crate) authority: Mailbox<Authority<Store, SystemClock>>,
    pub(crate) recovery: Mailbox<Recovery<Store, SystemClock>>,
}

pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    ensure!(now() > BUILT, "the clock says {}, which is before this program was made: set it first", now());
    let issuer = config.evidence.issuer()?;
    let (stop, stopped) = watch::channel(false);
    let actors = actor_system(config.state_dir.clone(), stopped.clone(), config.endorsements.clone()).await?;
    let endorsements = Arc::clone(&actors.endorsements);
    let issuer: Arc<dyn Issuer> = Arc::new(EndorsedIssuer::new(issuer, Arc::clone(&endorsements), now));

    let bind = async |name, address| {
        TcpListener::bind(address).await.with_context(|| format!("--{name}-listen {address}"))
    };
    let user = bind("user", config.user_listen).await?;
    let mesh = bind("mesh", config.mesh_listen).await?;
    let probe = bind("probe", config.probe_listen).await?;
    tracing::info!(user = %user.local_addr()?, mesh = %mesh.local_addr()?, "listening");

    let tls = |client_auth| ServerConfig {
        issuer: Arc::clone(&issuer),
        client_auth,
        handshake_timeout: Duration::from_secs(config.handshake_seconds),
    };
    let limits = Limits {
        handshakes: config.max_handshakes,
        handshakes_per_source: config.max_handshakes_per_source,
        connections: config.max_connections,
    };
    let listener =
        |tls, policy| Listener { tls, policy, limits, actors: actors.clone(), stop: stopped.clone() };
    let user_server = tonic::transport::Server::builder()
        .layer(crate::grpc::path_aliases())
        .add_service(UserApi::service(actors.clone()))
        .add_service(HistoryApi::service(actors.clone()))
        .serve_with_incoming_shutdown(
            listener(tls(ClientAuth::Optional), PeerPolicy::User).incoming(user),
            wait_for(stopped.clone()),
        );
    let mesh_server = tonic::transport::Server::builder()
        .layer(crate::grpc::path_aliases())
        .add_service(MeshApi::service(actors.clone()))
        .serve_with_incoming_shutdown(
            listener(tls(ClientAuth::Required), PeerPolicy::Mesh).incoming(mesh),
            wait_for(stopped.clone()),
        );
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(async move { user_server.await.context("user API") });
    servers.spawn(async move { mesh_server.await.context("mesh API") });
    servers.spawn(probes::serve(probe, actors.snapshot.clone(), stopped.clone()));
    let every = Duration::from_secs(config.checkpoint_seconds);
    tokio::spawn(refresh(endorsements, stopped.clone()));
    let checkpoints = tokio::spawn(checkpoints::keep(actors.clone(), every, stopped));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        Some(ended) = servers.join_next() => return ended.context("a listener panicked")?,
    }
    stop.send_replace(true);
    let drained = tokio::time::timeout(DRAIN, async { while servers.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("requests still under way after {DRAIN:?} were cut off");
    }
    let close = async {
        let _ = checkpoints.await; // a panic there was logged, and must not keep us from closing
        checkpoints::close(&actors).await;
    };
    if tokio::time::timeout(DRAIN, close).await.is_err() {
        tracing::warn!("no last checkpoint within {DRAIN:?}");
    }
    Ok(())
}

/// Asks the vendors anew for what is past half of its life.
async fn refresh(endorsements: Arc<Endorsements>, mut stopped: watch::Receiver<bool>) {
    while tokio::time::timeout(REFRESH, stopped.wait_for(|stopped| *stopped)).await.is_err() {
        let endorsements = Arc::clone(&endorsements);
        match tokio::task::spawn_blocking(move || endorsements.refresh(now())).await {
            Ok(refreshed) if refreshed.failed.is_empty() => {}
            Ok(refreshed) => tracing::warn!(failed = refreshed.failed.join("; "), "endorsements not renewed"),
            Err(error) => tracing::error!(%error, "renewing endorsements failed"),
        }
    }
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Starts the actors on a thread of their own, where they live until the process ends; their pools
/// have further threads. The listeners run on the runtime's.
async fn actor_system(
    state_dir: PathBuf,
    stop: watch::Receiver<bool>,
    endorsements: EndorsementOptions,
) -> anyhow::Result<Actors> {
    let (started, actors) = oneshot::channel();
    let thread = move || {
        actix::System::new().block_on(async move {
            // Fails only when nobody waits for the actors any more.
            let _ = started.send(start_actors(&state_dir, stop, &endorsements));
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("actors".into()).spawn(thread).context("cannot start the actors")?;
    actors.await.context("the actors' thread ended")?
}

fn start_actors(
    state_dir: &Path,
    stop: watch::Receiver<bool>,
    endorsements: &EndorsementOptions,
) -> anyhow::Result<Actors> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let replica = ReplicaId::from_bytes(keys::random()?);
    let store = Arc::new(SledStore::open(state_dir)?);
    let endorsements =
        endorsements.open(Some(state_dir.join("endorsements"))).context("endorsement cache")?;
    let endorsements = Arc::new(endorsements);
    let (publish, snapshot) = watch::channel(Ledger::<Store, SystemClock>::nothing());
    let publish = Arc::new(publish);
    // Once here, so that a log that cannot be trusted is an error at start, not a crash later.
    let opened = Ledger::open(Arc::clone(&store), SystemClock, replica, Arc::clone(&publish))?;
    let archive = Arc::new(Archive::new(Arc::clone(&store)));
    verify_streams(&archive, opened.log_key(), &snapshot.borrow().state)?;
    tracing::info!(%replica, manifests = snapshot.borrow().state.entries().len(), "event log verified");

    let ledger_store = Arc::clone(&store);
    let ledger = SyncArbiter::start(1, move || {
        #[expect(clippy::expect_used, reason = "a log that went bad since the start: serving must stop")]
        Ledger::open(Arc::clone(&ledger_store), SystemClock, replica, Arc::clone(&publish))
            .expect("the event log verifies, as it did at the start")
    });
    let ledger = Mailbox::new(ledger, LEDGER_ROOM);
    let known = Arc::clone(&endorsements);
    let verifiers = SyncArbiter::start(threads, move || Verifiers::new(Arc::clone(&known)));
    let verifiers = Mailbox::new(verifiers, ROOM);
    let journal_store = Arc::clone(&store);
    let journal = Supervisor::start(move |_| Journal::new(&journal_store, SystemClock, replica));
    let journal = Mailbox::new(journal, ROOM);
    let for_authority = journal.clone();
    let authority = Supervisor::start(move |_| Authority::new(for_authority, SystemClock, threads));
    let authority = Mailbox::new(authority, ROOM);
    let recovery = Mailbox::new(Recovery::new(journal.clone()).start(), ROOM);
    Ok(Actors {
        store,
        archive,
        endorsements,
        stop,
        snapshot,
        ledger,
        journal,
        verifiers,
        authority,
        recovery,
    })
}

/// The time, for the edge.
pub(crate) fn now() -> Timestamp {
    SystemClock.now()
}
