//! Starts the actors and the servers, and stops them in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor as _, Supervisor, SyncArbiter};
use actors::{
    Authority, Handover, Journal, Ledger, LedgerError, Mailbox, OnCommit, ReplicaKey, Verifiers,
    verify_streams,
};
use anyhow::{Context as _, ensure};
use attestation::{Issuer, ReportData};
use endorsements::{EndorsedIssuer, Endorsements};
use manifest::{PolicyHash, ReplicaId, Timestamp};
use storage_schema::{Archive, Trouble};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

use crate::{
    checkpoints,
    clock::{SystemClock, now},
    config::Config,
    desk::{Desk, Secrets, Store},
    health,
    metrics::Metrics,
    replicas,
    servers::{self, DRAIN},
};

/// Time between two looks at whose uses of transit keys are to be recorded.
const COUNTED: Duration = Duration::from_mins(1);
/// Longest wait for the event store at the start; whoever started this may start it again.
const START: Duration = Duration::from_mins(10);
/// How often it is said that something is waited for.
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// Time between two looks at what endorsements are due.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// A clock before this is wrong: 2026-11-24.
const BUILT: Timestamp = Timestamp::from_millis(1_795_478_400_000);

/// Questions that an actor has waiting or under way before it answers "try again".
const ROOM: usize = 8192;
/// The same for manifest changes and recoveries, which are few and may be 16 MiB each.
const LEDGER_ROOM: usize = 16;

pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    ensure!(now() > BUILT, "the clock says {}, which is before this program was made: set it first", now());
    let mut options = config.replicas.clone();
    options.own = Some(config.mesh_listen);
    let discovery = replicas::Discovery::new(&options)?;
    let issuer = config.evidence.issuer()?;
    let own_policy = own_policy(Arc::clone(&issuer)).await?;
    let (stop, stopped) = watch::channel(false);
    let desk = actor_system(config.clone(), Arc::clone(&issuer), stopped.clone()).await?;
    let endorsements = Arc::clone(&desk.endorsements);
    let issuer: Arc<dyn Issuer> = Arc::new(EndorsedIssuer::new(issuer, Arc::clone(&endorsements), now));

    let mut servers = servers::start(&config, own_policy, &issuer, &desk, &stopped).await?;
    let every = Duration::from_secs(config.checkpoint_seconds);
    tokio::spawn(refresh(endorsements, stopped.clone()));
    tokio::spawn(replicas::keep(desk.clone(), Arc::clone(&issuer), options, discovery, stopped.clone()));
    tokio::spawn(health::watch(desk.clone(), stopped.clone()));
    tokio::spawn(record_transit_uses(desk.clone(), stopped.clone()));
    let checkpoints = tokio::spawn(checkpoints::keep(desk.clone(), every, stopped));

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
        if let Err(error) = desk.record_transit_uses(now(), true).await {
            tracing::warn!(%error, "the last uses of transit keys are not on record");
        }
        let _ = checkpoints.await; // a panic there was logged, and must not keep us from closing
        checkpoints::close(&desk).await;
    };
    if tokio::time::timeout(DRAIN, close).await.is_err() {
        tracing::warn!("no last checkpoint within {DRAIN:?}");
    }
    Ok(())
}

/// The log holds no secrets, but who got what is nobody else's business.
fn own_directory(directory: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    if let Err(error) = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)) {
        // A volume that somebody else owns.
        tracing::warn!(directory = %directory.display(), %error, "other users may read the state directory");
    }
    Ok(())
}

/// This Coordinator's policy as its evidence names it. A machine that makes none ends the start here,
/// not at the first handshake.
async fn own_policy(issuer: Arc<dyn Issuer>) -> anyhow::Result<PolicyHash> {
    let evidence = move || issuer.issue(&ReportData::own());
    let evidence = tokio::task::spawn_blocking(evidence).await.context("making evidence")??;
    attestation::named_policy(&evidence).context("this machine's own evidence names no policy")
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

/// Records what transit keys were used for, interval by interval.
async fn record_transit_uses(desk: Desk, mut stopped: watch::Receiver<bool>) {
    while tokio::time::timeout(COUNTED, stopped.wait_for(|stopped| *stopped)).await.is_err() {
        if let Err(error) = desk.record_transit_uses(now(), false).await {
            tracing::debug!(%error, "uses of transit keys wait to be recorded");
        }
    }
}

/// Starts the actors on a thread of their own, where they live until the process ends; their pools
/// have further threads. The listeners run on the runtime's.
async fn actor_system(
    config: Config,
    issuer: Arc<dyn Issuer>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Desk> {
    let (started, desk) = oneshot::channel();
    let thread = move || {
        actix::System::new().block_on(async move {
            // Fails only when nobody waits for the actors any more.
            let _ = started.send(start_actors(&config, issuer, stop));
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("actors".into()).spawn(thread).context("cannot start the actors")?;
    desk.await.context("the actors' thread ended")?
}

fn start_actors(
    config: &Config,
    issuer: Arc<dyn Issuer>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Desk> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let replica = ReplicaId::from_bytes(keys::random()?);
    own_directory(&config.state_dir)?;
    let (store, standing) = replicas::open_store(&config.state_dir, &config.replicas)?;
    let store = Arc::new(store);
    let cache = config.state_dir.join("endorsements");
    let endorsements = Arc::new(config.endorsements.open(Some(cache)).context("endorsement cache")?);
    let issuer = Arc::new(EndorsedIssuer::new(issuer, Arc::clone(&endorsements), now));
    let replica_key = Arc::new(ReplicaKey::generate(issuer)?);
    let (publish, snapshot) = watch::channel(Ledger::<Store, SystemClock>::nothing());
    let publish = Arc::new(publish);
    // Once here, so that a log that cannot be trusted is an error at start, not a crash later.
    let archive = Arc::new(Archive::new(Arc::clone(&store)));
    let unverified = patiently(Some(START), || {
        let opened = Ledger::open(Arc::clone(&store), SystemClock, replica, Arc::clone(&publish))?;
        verify_streams(&archive, opened.log_key(), &snapshot.borrow().state)
    })?;
    if !unverified.is_empty() {
        tracing::info!(streams = unverified.len(), "fetched from other replicas later: etcd gave them up");
    }
    standing.set_unverified(unverified);
    tracing::info!(%replica, manifests = snapshot.borrow().state.entries().len(), "event log verified");

    let (ledger_store, bootstrap_key) = (Arc::clone(&store), config.bootstrap_key.clone());
    let (allow_insecure, for_ledger) = (config.allow_insecure, Arc::clone(&replica_key));
    let ledger = SyncArbiter::start(1, move || {
        let open = || Ledger::open(Arc::clone(&ledger_store), SystemClock, replica, Arc::clone(&publish));
        #[expect(clippy::expect_used, reason = "a log that went bad since the start: serving must stop")]
        patiently(None, open)
            .expect("the event log verifies, as it did at the start")
            .with_bootstrap_key(bootstrap_key.clone())
            .with_insecure_allowed(allow_insecure)
            .with_replica_key(Some(Arc::clone(&for_ledger)))
    });
    let ledger = Mailbox::new(ledger, LEDGER_ROOM);
    let known = Arc::clone(&endorsements);
    let verifiers = SyncArbiter::start(threads, move || Verifiers::new(Arc::clone(&known)));
    let verifiers = Mailbox::new(verifiers, ROOM);
    let for_journal = Arc::clone(&archive);
    let metrics = Metrics::default();
    let measure = metrics.clone();
    let on_commit: OnCommit = Arc::new(move |commit| measure.commit_seen(commit));
    let journal = Supervisor::start(move |_| {
        Journal::new(&for_journal, SystemClock, replica, Some(replica_key), on_commit)
    });
    let journal = Mailbox::new(journal, ROOM);
    let for_authority = journal.clone();
    let authority = Supervisor::start(move |_| Authority::new(for_authority, SystemClock, threads));
    let authority = Mailbox::new(authority, ROOM);
    let recovery = Mailbox::new(Handover::new(journal.clone()).start(), ROOM);
    let certificate_lifetime =
        config.certificate_seconds.map_or(keys::DEFAULT_LEAF_LIFETIME, Duration::from_secs);
    Ok(Desk {
        certificate_lifetime,
        replica,
        standing,
        metrics,
        store,
        archive,
        endorsements,
        stop,
        snapshot,
        ledger,
        journal,
        verifiers,
        secrets: Secrets::new(authority, recovery),
        challenges: Arc::default(),
        recoveries: Arc::default(),
        vendors: Arc::default(),
        transit_uses: Arc::default(),
    })
}

/// Tries until the shared store answers: without it nothing can be known about the log. Without a limit only where ending
/// would lose the seed, which is in the memory of this process.
fn patiently<T>(
    limit: Option<Duration>,
    mut open: impl FnMut() -> Result<T, LedgerError>,
) -> Result<T, LedgerError> {
    let began = Instant::now();
    let mut said: Option<Instant> = None;
    loop {
        match open() {
            Err(error)
                if error.trouble() == Trouble::Unavailable
                    && limit.is_none_or(|limit| began.elapsed() < limit) =>
            {
                if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    said = Some(Instant::now());
                    tracing::warn!(%error, waited = ?began.elapsed(), ?limit, "waiting for the event store");
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            outcome => return outcome,
        }
    }
}
