//! The shell around [`State`]: decide, append, apply, publish. Straight-line blocking code on a
//! thread of its own, so no other message slips in between.

use std::sync::Arc;

use actix::{Actor, Handler, SyncContext};
use keys::{CaKey, LogPublicKey, MeshCa, ReplicaSecret, Salt, Seed, SeedEngine};
use manifest::{Manifest, ReplicaId, RequestId, Timestamp};
use storage_schema::{Authorisation, BlobHash, Event, EventStore, Fact, Folded, Log, StreamId};
use tokio::sync::watch;

use super::{
    messages::{
        LedgerError, RecordHeads, Recover, RecoverError, SeedShare, SeedShares, SetManifest,
        SetManifestError, SetManifestReply,
    },
    state::{Active, Entry, Phase, Snapshot, State},
};
use crate::{Clock, Traced, supervision::rebuild_on_panic};

/// Events of the control stream between two snapshots.
const SNAPSHOT_EVERY: u64 = 500;

/// The only writer of manifest history. Start with `SyncArbiter::start(1, ..)`.
pub struct Ledger<S, C> {
    store: Arc<S>,
    clock: C,
    replica: ReplicaId,
    log: Log<S>,
    state: State,
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
        let ledger = Self { store, clock, replica, log, state, snapshot_at, published };
        let phase = match &ledger.published.borrow().phase {
            Phase::Active(active)
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

    /// The key that signed the control stream; `None` while it is empty.
    pub fn log_key(&self) -> Option<LogPublicKey> {
        self.log.key()
    }

    /// The snapshot of a Coordinator that has read nothing yet, for the channel's start.
    pub fn nothing() -> Snapshot {
        Snapshot { state: Arc::default(), phase: Phase::Uninitialised }
    }

    fn publish(&self, phase: Phase) {
        self.published.send_replace(Snapshot { state: Arc::new(self.state.clone()), phase });
    }

    /// Durable first, visible second. After a failure nobody knows what is on disk: read it.
    fn commit(
        &mut self,
        facts: Vec<Fact>,
        request: RequestId,
        engine: &SeedEngine,
    ) -> Result<(), LedgerError> {
        let at = self.clock.now();
        if self.log.is_poisoned() {
            let state = &mut self.state;
            self.log.catch_up(|_, event| state.apply(&event))?;
        }
        let replica = self.replica;
        let events: Vec<Event> = facts.into_iter().map(|fact| Event { at, replica, request, fact }).collect();
        self.log.append(&events, engine.log_key())?;
        for event in &events {
            self.state.apply(event);
        }
        let size = self.log.head().size;
        if size >= self.snapshot_at + SNAPSHOT_EVERY {
            match self.log.save_snapshot(&self.state, engine.log_key()) {
                Ok(()) => self.snapshot_at = size,
                Err(error) => tracing::warn!(%error, "no snapshot; the next start replays more"),
            }
        }
        Ok(())
    }

    fn blob(&self, what: &'static str, hash: [u8; 32]) -> Result<Arc<[u8]>, LedgerError> {
        let found = self.store.get_blob(&BlobHash::from_bytes(hash))?;
        found
            .map(Arc::from)
            .ok_or_else(|| LedgerError::BlobMissing { what, hash: BlobHash::from_bytes(hash).to_string() })
    }

    fn manifest_of(&self, entry: &Entry) -> Result<Manifest, LedgerError> {
        Ok(Manifest::parse(&self.blob("manifest", *entry.manifest.as_bytes())?)?)
    }

    /// What is in force according to the folded state, with these keys.
    fn activate(
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

    fn set_manifest(&mut self, cmd: &SetManifest) -> Result<SetManifestReply, SetManifestError> {
        let phase = self.published.borrow().phase.clone();
        let current = match &phase {
            Phase::Active(active) => Some(active),
            Phase::Uninitialised => None,
            Phase::NeedsRecovery => return Err(SetManifestError::NeedsRecovery),
        };
        let (transition, authorised_by) =
            self.state.decide_set_manifest(cmd, current.map(|active| active.manifest.as_ref()))?;
        let now = self.clock.now();
        let (engine, secret) = match current {
            Some(active) => (Arc::clone(&active.engine), active.replica_secret.clone()),
            None => fresh_keys()?,
        };
        let shares = match authorised_by {
            Authorisation::First => Some(seed_shares(&engine, &cmd.manifest)?),
            _ => None,
        };
        let mesh_key = CaKey::generate().map_err(LedgerError::from)?;
        let (ca, fact) = self.manifest_set(cmd, authorised_by, &engine, &secret, mesh_key, now)?;
        let mut facts = vec![fact];
        if let Some(shares) = &shares {
            let owners = shares.shares.iter().map(|share| share.owner.digest()).collect();
            facts.push(Fact::SeedSharesCreated { owners });
        }
        self.commit(facts, cmd.request, &engine)?;

        let public = ca.public().clone();
        let next = secret.ratchet(&transition).map_err(LedgerError::from)?;
        if let Some(active) = self.activate(engine, ca, next)? {
            self.publish(Phase::Active(Arc::new(active)));
        }
        tracing::info!(%transition, manifest = %cmd.manifest.hash(), "manifest set");
        Ok(SetManifestReply { transition, root_pem: public.root_pem, mesh_pem: public.mesh_pem, shares })
    }

    fn manifest_set(
        &self,
        cmd: &SetManifest,
        authorised_by: Authorisation,
        engine: &SeedEngine,
        secret: &ReplicaSecret,
        mesh_key: CaKey,
        now: Timestamp,
    ) -> Result<(MeshCa, Fact), LedgerError> {
        let previous = self.state.latest().map(|entry| entry.transition);
        let transition = manifest::TransitionHash::chain(previous, cmd.manifest.hash());
        let wrapped_mesh_key = secret.wrap(&mesh_key, &transition)?;
        let ca = MeshCa::new(engine, mesh_key, now)?;
        self.store.put_blob(cmd.manifest.bytes())?;
        let mut policies = Vec::with_capacity(cmd.policies.len());
        for policy in &cmd.policies {
            let hash = self.store.put_blob(policy)?;
            policies.push(manifest::PolicyHash::from_bytes(*hash.as_bytes()));
        }
        let fact = Fact::ManifestSet {
            generation: self.state.entries().len() as u64 + 1,
            manifest: cmd.manifest.hash(),
            policies,
            previous,
            transition,
            transition_signature: engine.transaction_key().sign(&transition)?,
            authorised_by,
            wrapped_mesh_key,
            root_ca: ca.root_der().to_vec(),
            mesh_ca: ca.mesh_der().to_vec(),
        };
        Ok((ca, fact))
    }

    fn recover(&mut self, cmd: &Recover) -> Result<manifest::TransitionHash, RecoverError> {
        match self.published.borrow().phase {
            Phase::NeedsRecovery => {}
            Phase::Active(_) => return Err(RecoverError::AlreadyRecovered),
            Phase::Uninitialised => return Err(RecoverError::NothingToRecover),
        }
        let latest = self.state.latest().ok_or(RecoverError::NothingToRecover)?.clone();
        let current = self.manifest_of(&latest)?;
        let owner = cmd.caller.ok_or(RecoverError::NoKey)?;
        let transition = self.state.decide_recover(owner, &current)?;
        let engine = SeedEngine::new(cmd.seed.clone(), cmd.salt).map_err(LedgerError::from)?;
        if Some(engine.log_key().public()) != self.log.key() {
            return Err(RecoverError::WrongSeed("it does not yield the key that signed the event log"));
        }
        engine
            .transaction_key()
            .public()
            .verify(&transition, &latest.signature)
            .map_err(|_| RecoverError::WrongSeed("it does not yield the key that signed the transition"))?;

        // A seedshare owner must not be able to derive the mesh CA key, so both are new.
        let secret = ReplicaSecret::generate().map_err(LedgerError::from)?;
        let mesh_key = CaKey::generate().map_err(LedgerError::from)?;
        let wrapped_mesh_key = secret.wrap(&mesh_key, &transition).map_err(LedgerError::from)?;
        let ca = MeshCa::new(&engine, mesh_key, self.clock.now()).map_err(LedgerError::from)?;
        let fact = Fact::RecoveredByUser {
            owner,
            transition,
            wrapped_mesh_key,
            root_ca: ca.root_der().to_vec(),
            mesh_ca: ca.mesh_der().to_vec(),
        };
        self.commit(vec![fact], cmd.request, &engine)?;
        let next = secret.ratchet(&transition).map_err(LedgerError::from)?;
        if let Some(active) = self.activate(Arc::new(engine), ca, next)? {
            self.publish(Phase::Active(Arc::new(active)));
        }
        tracing::info!(%transition, %owner, "recovered by a seedshare owner");
        Ok(transition)
    }
}

impl<S: EventStore, C: Clock> Ledger<S, C> {
    fn record_heads(&mut self, msg: RecordHeads) -> Result<(), LedgerError> {
        let Phase::Active(active) = self.published.borrow().phase.clone() else { return Ok(()) };
        let heads = self.state.moved(msg.heads);
        if heads.is_empty() {
            return Ok(());
        }
        self.commit(vec![Fact::Checkpoint { heads }], msg.request, &active.engine)?;
        self.publish(Phase::Active(active));
        Ok(())
    }
}

fn fresh_keys() -> Result<(Arc<SeedEngine>, ReplicaSecret), LedgerError> {
    let engine = SeedEngine::new(Seed::generate()?, Salt::generate()?)?;
    Ok((Arc::new(engine), ReplicaSecret::generate()?))
}

fn seed_shares(engine: &SeedEngine, manifest: &Manifest) -> Result<SeedShares, SetManifestError> {
    let share = |(index, owner): (usize, &manifest::OwnerKey)| {
        let ciphertext = keys::encrypt_seed_share(engine.seed(), owner.der())
            .map_err(|error| SetManifestError::SeedshareOwnerKey { index, error })?;
        Ok(SeedShare { owner: owner.clone(), ciphertext })
    };
    let shares = manifest.seedshare_owner_pub_keys.iter().enumerate().map(share);
    Ok(SeedShares { shares: shares.collect::<Result<_, SetManifestError>>()?, salt: *engine.salt() })
}

impl<S: EventStore, C: Clock + Unpin> Handler<Traced<SetManifest>> for Ledger<S, C> {
    type Result = Result<SetManifestReply, SetManifestError>;

    fn handle(
        &mut self,
        Traced { message, span }: Traced<SetManifest>,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let work = || span.in_scope(|| self.set_manifest(&message));
        rebuild_on_panic(ctx, work).unwrap_or(Err(LedgerError::Restarting.into()))
    }
}

impl<S: EventStore, C: Clock + Unpin> Handler<Traced<Recover>> for Ledger<S, C> {
    type Result = Result<manifest::TransitionHash, RecoverError>;

    fn handle(&mut self, Traced { message, span }: Traced<Recover>, ctx: &mut Self::Context) -> Self::Result {
        let work = || span.in_scope(|| self.recover(&message));
        rebuild_on_panic(ctx, work).unwrap_or(Err(LedgerError::Restarting.into()))
    }
}

impl<S: EventStore, C: Clock + Unpin> Handler<Traced<RecordHeads>> for Ledger<S, C> {
    type Result = Result<(), LedgerError>;

    fn handle(
        &mut self,
        Traced { message, span }: Traced<RecordHeads>,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let work = || span.in_scope(|| self.record_heads(message));
        rebuild_on_panic(ctx, work).unwrap_or(Err(LedgerError::Restarting))
    }
}
