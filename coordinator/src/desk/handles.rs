//! The desk itself: the actors that it asks, the store that it reads, and the place of this replica.

use std::{sync::Arc, time::Duration};

use actors::{Active, Append, Journal, JournalError, Ledger, Mailbox, NotInForce, Snapshot, Verifiers};
use endorsements::Endorsements;
use manifest::{KeyDigest, ReplicaId, RequestId};
use storage_schema::{Archive, EventStore, Fact, Replicated, SledStore};
use tokio::sync::watch;

use super::{
    failure::Failure,
    once::{AcceptedRecoveries, Challenges},
    secrets::Secrets,
    standing::{Confirmed, Current, Standing},
    transit_uses::TransitUses,
    vendors::Vendors,
};
use crate::{clock::SystemClock, metrics::Metrics};

/// The store of a Coordinator: its verified copy in `L`, and behind it the one that replicas share, if any.
pub(crate) type Store<L = SledStore> = Replicated<L>;

/// Everything that the use cases need. The type parameter is the local engine; tests use memory.
pub(crate) struct Desk<L: EventStore = SledStore> {
    pub(crate) certificate_lifetime: Duration,
    pub(crate) replica: ReplicaId,
    pub(crate) standing: Arc<Standing>,
    pub(crate) metrics: Metrics,
    pub(crate) store: Arc<Store<L>>,
    pub(crate) archive: Arc<Archive<Store<L>>>,
    pub(crate) endorsements: Arc<Endorsements>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) snapshot: watch::Receiver<Snapshot>,
    pub(crate) ledger: Mailbox<Ledger<Store<L>, SystemClock>>,
    pub(crate) journal: Mailbox<Journal<Store<L>, SystemClock>>,
    pub(crate) verifiers: Mailbox<Verifiers>,
    pub(crate) secrets: Secrets<L>,
    pub(crate) challenges: Arc<Challenges>,
    pub(crate) recoveries: Arc<AcceptedRecoveries>,
    pub(crate) vendors: Arc<Vendors>,
    pub(crate) transit_uses: Arc<TransitUses>,
}

impl<L: EventStore> Clone for Desk<L> {
    fn clone(&self) -> Self {
        Self {
            certificate_lifetime: self.certificate_lifetime,
            replica: self.replica,
            standing: Arc::clone(&self.standing),
            metrics: self.metrics.clone(),
            store: Arc::clone(&self.store),
            archive: Arc::clone(&self.archive),
            endorsements: Arc::clone(&self.endorsements),
            stop: self.stop.clone(),
            snapshot: self.snapshot.clone(),
            ledger: self.ledger.clone(),
            journal: self.journal.clone(),
            verifiers: self.verifiers.clone(),
            secrets: self.secrets.clone(),
            challenges: Arc::clone(&self.challenges),
            recoveries: Arc::clone(&self.recoveries),
            vendors: Arc::clone(&self.vendors),
            transit_uses: Arc::clone(&self.transit_uses),
        }
    }
}

impl<L: EventStore> Desk<L> {
    /// The manifest in force as far as this replica knows, which may be behind: enough for reading, and for
    /// admitting somebody who is checked again before anything is given away.
    pub(crate) fn in_force(&self) -> Result<Arc<Active>, NotInForce> {
        self.snapshot.borrow().require().map(Arc::clone)
    }

    /// The manifest in force, if the version of the HTTP API that was asked is one that it still allows.
    pub(crate) fn in_force_for_api(&self, version: u16) -> Result<Arc<Active>, Failure> {
        let active = self.in_force()?;
        let minimum = active.manifest.minimum_api();
        if version < minimum { Err(Failure::ApiTooOld { minimum, version }) } else { Ok(active) }
    }

    /// Whether the manifest names this key as somebody's who decides, recovers or audits: such callers keep room
    /// when strangers take all the rest.
    pub(crate) fn is_owner(&self, key: KeyDigest) -> bool {
        let snapshot = self.snapshot.borrow();
        snapshot.state.seed_shares().owners.contains(&key)
            || snapshot.active().is_some_and(|active| {
                active.manifest.may_audit(key)
                    || active.manifest.workload_owner_digests().any(|owner| owner == key)
            })
    }

    /// The manifest in force, where this replica knows that no other one has replaced it.
    pub(super) fn current(&self) -> Result<Current, Failure> {
        self.standing.current(&self.snapshot)
    }

    /// The same, for a caller who was judged by `judged_by`. Connections outlive manifests, so a caller who was
    /// judged by an earlier one has to connect again. (Each manifest, and each recovery by an owner, has its own
    /// mesh CA.)
    pub(super) fn current_for(&self, judged_by: &Active) -> Result<Current, Failure> {
        let current = self.current()?;
        same(&current, judged_by)?;
        Ok(current)
    }

    /// The manifest in force for handing over, see [`Standing::confirmed`].
    pub(super) fn confirmed_for(&self, judged_by: &Active) -> Result<Confirmed, Failure> {
        let confirmed = self.standing.confirmed(&self.snapshot)?;
        same(&confirmed, judged_by)?;
        Ok(confirmed)
    }

    /// The manifest in force, for a caller who only reads and was judged by `judged_by`.
    pub(super) fn in_force_for(&self, judged_by: &Active) -> Result<Arc<Active>, Failure> {
        let active = self.in_force()?;
        same(&active, judged_by)?;
        Ok(active)
    }

    /// Records what this replica itself did or noticed; no request caused it.
    pub(crate) async fn record(&self, active: &Active, facts: Vec<Fact>) -> Result<(), Failure> {
        let append = Append {
            facts,
            blobs: Vec::new(),
            request: RequestId::from_bytes([0; 16]),
            engine: Arc::clone(&active.engine),
        };
        let recorded: Result<(), JournalError> = self.journal.ask(append).await?;
        Ok(recorded?)
    }
}

fn same(now: &Active, judged_by: &Active) -> Result<(), Failure> {
    if now.ca.mesh_der() == judged_by.ca.mesh_der() { Ok(()) } else { Err(Failure::Replaced) }
}
