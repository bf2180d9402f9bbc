//! The shell around [`State`]: decide, append, apply, publish. Straight-line blocking code on a
//! thread of its own, so no other message slips in between.

use std::sync::Arc;

use actix::{Actor, Handler, SyncContext};
use keys::{LogPublicKey, MeshCa, ReplicaSecret, SeedEngine};
use manifest::{Manifest, OwnerKey, ReplicaId, RequestId, TransitionHash};
use storage_schema::{BlobHash, Event, EventStore, Fact, Folded, Log, Signer, StreamId};
use tokio::sync::watch;

use super::{
    messages::{
        Adopt, AdoptError, ApproveProposal, Evict, Follow, LedgerError, ProposalReply, ProposeManifest,
        RecordHeads, Recover, RecoverError, RecoverReply, SeedShares, SetManifest, SetManifestError,
        SetManifestReply, Vouch, WithdrawProposal,
    },
    peers,
    replica_key::ReplicaKey,
    state::{Active, Entry, Phase, Snapshot, State},
    waiting::{ReceivedShares, Unsure},
};
use crate::{Clock, Traced, supervision::rebuild_on_panic};

/// Events of the control stream between two snapshots.
const SNAPSHOT_EVERY: u64 = 500;

/// The only writer of manifest history. Start with `SyncArbiter::start(1, ..)`.
pub struct Ledger<S, C> {
    pub(super) store: Arc<S>,
    pub(super) clock: C,
    pub(super) replica: ReplicaId,
    pub(super) log: Log<S>,
    pub(super) state: State,
    /// Must have signed the first manifest, if there is one.
    pub(super) bootstrap_key: Option<OwnerKey>,
    pub(super) allow_insecure: bool,
    /// What this process signs with, beside the log's key.
    pub(super) replica_key: Option<Arc<ReplicaKey>>,
    /// Parts of the seed that wait for others.
    pub(super) received: ReceivedShares,
    /// Older histories that owners accepted for the recovery that is under way.
    pub(super) accepted: Vec<Fact>,
    /// Changes whose outcome was not known, the latest last: a request that went astray may still arrive.
    pub(super) unsure: Vec<Unsure>,
    /// The seed shares of the first manifest, and which log they are of: encrypted to their owners, so no secret.
    pub(super) first_shares: Option<(LogPublicKey, SeedShares)>,
    /// Changes that were read and are not in force here yet.
    pub(super) untaken: Vec<Event>,
    /// Number of events when the last snapshot was made.
    snapshot_at: u64,
    published: Arc<watch::Sender<Snapshot>>,
}

impl<S: EventStore, C: Clock + Unpin> Actor for Ledger<S, C> {
    type Context = SyncContext<Self>;
}

impl<S: EventStore, C: Clock> Ledger<S, C> {
    /// Verifies and folds the control stream. Whoever holds the receiver sees every change; the
    /// keys in memory survive a restart of the actor, because they live in the snapshot.
    pub fn open(
        store: Arc<S>,
        clock: C,
        replica: ReplicaId,
        published: Arc<watch::Sender<Snapshot>>,
    ) -> Result<Self, LedgerError> {
        let Folded { log, projection: state, dropped } =
            Log::open_folded::<State>(Arc::clone(&store), StreamId::Control, None)?;
        if let Some(reason) = dropped {
            tracing::warn!(%reason, "snapshot dropped; the stream was replayed from its start");
        }
        let snapshot_at = log.head().size;
        let (bootstrap_key, allow_insecure, received, unsure) =
            (None, false, ReceivedShares::default(), Vec::new());
        let mut ledger = Self {
            store,
            clock,
            replica,
            log,
            state,
            bootstrap_key,
            allow_insecure,
            replica_key: None,
            received,
            accepted: Vec::new(),
            unsure,
            first_shares: None,
            untaken: Vec::new(),
            snapshot_at,
            published,
        };
        ledger.judge_introduced()?;
        let phase = match &ledger.published.borrow().phase {
            Phase::Active(active)
                // A change that was being made when the actor ended may be in the log already; its keys
                // come with the next look at it, or from a peer.
                if ledger.state.latest().map(|latest| latest.transition) == Some(active.transition) =>
            {
                Phase::Active(Arc::clone(active))
            }
            _ if ledger.state.latest().is_some() => Phase::NeedsRecovery,
            _ => Phase::Uninitialised,
        };
        ledger.publish(phase);
        Ok(ledger)
    }

    /// Accepts the first manifest only with this key's signature (EC, PKIX DER).
    #[must_use]
    pub fn with_bootstrap_key(self, bootstrap_key: Option<OwnerKey>) -> Self {
        Self { bootstrap_key, ..self }
    }

    /// Accepts manifests that believe unsigned evidence.
    #[must_use]
    pub fn with_insecure_allowed(self, allow_insecure: bool) -> Self {
        Self { allow_insecure, ..self }
    }

    /// Signs what it writes with this key as well.
    #[must_use]
    pub fn with_replica_key(self, replica_key: Option<Arc<ReplicaKey>>) -> Self {
        Self { replica_key, ..self }
    }

    pub(super) fn phase(&self) -> Phase {
        self.published.borrow().phase.clone()
    }

    /// The key that signed the control stream; `None` while it is empty.
    pub fn log_key(&self) -> Option<LogPublicKey> {
        self.log.key()
    }

    /// The snapshot of a Coordinator that has read nothing yet, for the channel's start.
    pub fn nothing() -> Snapshot {
        Snapshot { state: Arc::default(), phase: Phase::Uninitialised, peers: None }
    }

    pub(super) fn publish(&mut self, phase: Phase) {
        if matches!(phase, Phase::Active(_)) {
            self.store.trust();
            // Parts of the seed that were given for this recovery serve no other one.
            self.received = ReceivedShares::default();
            self.accepted.clear();
        }
        let known = self.published.borrow().peers.clone();
        let peers = match &phase {
            Phase::Active(active) => peers::signed(&self.state, active, known),
            Phase::NeedsRecovery | Phase::Uninitialised => None,
        };
        self.published.send_replace(Snapshot { state: Arc::new(self.state.clone()), phase, peers });
    }

    /// Durable first, visible second. After a failure nobody knows what is on disk: read it.
    ///
    /// This replica's key comes first: in a segment of its own, so that the manifest which accepts it is the one in
    /// force, or with the first manifest.
    pub(super) fn commit(
        &mut self,
        mut facts: Vec<Fact>,
        request: RequestId,
        engine: &SeedEngine,
    ) -> Result<Vec<Event>, LedgerError> {
        if let Some(introduction) = self.introduction(&facts)? {
            if self.state.latest().is_some() {
                self.write(vec![introduction], request, engine, true)?;
            } else {
                facts.push(introduction);
                return self.write(facts, request, engine, true);
            }
        }
        self.write(facts, request, engine, self.signs())
    }

    fn write(
        &mut self,
        facts: Vec<Fact>,
        request: RequestId,
        engine: &SeedEngine,
        signs: bool,
    ) -> Result<Vec<Event>, LedgerError> {
        let at = self.clock.now();
        let replica = self.replica;
        let events: Vec<Event> = facts.into_iter().map(|fact| Event { at, replica, request, fact }).collect();
        let own = self.replica_key.as_ref().filter(|_| signs).map(|own| own.key());
        self.log.append(&events, Signer { log: engine.log_key(), replica: own })?;
        for event in &events {
            self.state.apply(event);
        }
        self.state.judged_all(); // by this replica, before it wrote them
        let size = self.log.head().size;
        if size >= self.snapshot_at + SNAPSHOT_EVERY {
            match self.log.save_snapshot(&self.state, engine.log_key()) {
                Ok(()) => self.snapshot_at = size,
                Err(error) => tracing::warn!(%error, "no snapshot; the next start replays more"),
            }
        }
        Ok(events)
    }

    pub(super) fn blob(&self, what: &'static str, hash: [u8; 32]) -> Result<Arc<[u8]>, LedgerError> {
        let found = self.store.get_blob(&BlobHash::from_bytes(hash))?;
        found
            .map(Arc::from)
            .ok_or_else(|| LedgerError::BlobMissing { what, hash: BlobHash::from_bytes(hash).to_string() })
    }

    pub(super) fn manifest_of(&self, entry: &Entry) -> Result<Manifest, LedgerError> {
        Ok(Manifest::parse(&self.blob("manifest", *entry.manifest.as_bytes())?)?)
    }

    /// What is in force according to the folded state, with these keys.
    pub(super) fn activate(
        &self,
        engine: Arc<SeedEngine>,
        ca: MeshCa,
        replica_secret: ReplicaSecret,
    ) -> Result<Option<Active>, LedgerError> {
        let Some(latest) = self.state.latest() else { return Ok(None) };
        let mut manifests = Vec::new();
        let mut policies = std::collections::BTreeMap::new();
        for entry in self.state.entries() {
            manifests.push(self.blob("manifest", *entry.manifest.as_bytes())?);
            for hash in &entry.policies {
                policies.insert(*hash, self.blob("policy", *hash.as_bytes())?);
            }
        }
        Ok(Some(Active {
            generation: manifests.len() as u64,
            transition: latest.transition,
            signature: latest.signature.clone(),
            manifest: Arc::new(self.manifest_of(latest)?),
            engine,
            ca,
            replica_secret,
            manifests,
            policies: policies.into_values().collect(),
        }))
    }
}

impl<S: EventStore, C: Clock> Ledger<S, C> {
    fn record_heads(&mut self, msg: &RecordHeads) -> Result<(), LedgerError> {
        let Phase::Active(active) = self.phase() else { return Ok(()) };
        let heads = self.state.moved(msg.heads.clone());
        if heads.is_empty() {
            return Ok(());
        }
        self.commit(vec![Fact::Checkpoint { heads }], msg.request, &active.engine)?;
        self.publish(Phase::Active(active));
        Ok(())
    }
}

/// Answers a message with a method; a panic there costs the request that met it.
macro_rules! handler {
    ($message:ty, $method:ident, $reply:ty, $error:ty) => {
        impl<S: EventStore, C: Clock + Unpin> Handler<Traced<$message>> for Ledger<S, C> {
            type Result = Result<$reply, $error>;

            fn handle(&mut self, msg: Traced<$message>, ctx: &mut Self::Context) -> Self::Result {
                let Traced { message, span, .. } = msg;
                let work = || span.in_scope(|| self.on_the_latest(|ledger| ledger.$method(&message)));
                rebuild_on_panic(ctx, work).unwrap_or(Err(LedgerError::Restarting.into()))
            }
        }
    };
}

handler!(SetManifest, set_manifest, SetManifestReply, SetManifestError);
handler!(ProposeManifest, propose, ProposalReply, SetManifestError);
handler!(ApproveProposal, approve, ProposalReply, SetManifestError);
handler!(WithdrawProposal, withdraw, (), SetManifestError);
handler!(Vouch, vouch, (), SetManifestError);
handler!(Evict, evict, TransitionHash, SetManifestError);
handler!(Recover, recover, RecoverReply, RecoverError);
handler!(RecordHeads, record_heads, (), LedgerError);
handler!(Follow, follow, u64, LedgerError);
handler!(Adopt, adopt, (), AdoptError);
