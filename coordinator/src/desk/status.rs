//! What this Coordinator can do now, in one word, and the numbers that a scrape asks for.

use actors::Phase;
use storage_schema::EventStore;

use super::handles::Desk;
use crate::{clock::now, metrics::Gauges};

/// What this Coordinator can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// No manifest was ever set.
    NoManifest,
    /// There is a history, but the seed is not in memory.
    NeedsRecovery,
    /// A manifest is in force here, but it may have been replaced elsewhere: nothing is issued.
    Stale,
    /// The event store takes no writes, so nothing is issued.
    NoWrites,
    Ready,
}

impl Readiness {
    /// As clients see it; over HTTP these words are under the evidence.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::NoManifest => "no manifest configured",
            Self::NeedsRecovery => "coordinator is in recovery mode",
            Self::Stale => "stale",
            Self::NoWrites => "the event store takes no writes",
            Self::Ready => "ready",
        }
    }
}

impl<L: EventStore> Desk<L> {
    pub(crate) fn readiness(&self) -> Readiness {
        match &self.snapshot.borrow().phase {
            Phase::Uninitialised => Readiness::NoManifest,
            Phase::NeedsRecovery => Readiness::NeedsRecovery,
            Phase::Active(_) if !self.standing.is_current() => Readiness::Stale,
            Phase::Active(_) if self.standing.failing().is_some() => Readiness::NoWrites,
            Phase::Active(_) => Readiness::Ready,
        }
    }

    pub(crate) fn gauges(&self) -> Gauges {
        let snapshot = self.snapshot.borrow().clone();
        let actors = [
            ("ledger", self.ledger.under_way()),
            ("journal", self.journal.under_way()),
            ("verifiers", self.verifiers.under_way()),
        ];
        let until = |der: &[u8]| keys::valid_until(der).ok();
        let certificates = snapshot.active().map_or_else(Vec::new, |active| {
            let known = [("root", until(active.ca.root_der())), ("mesh", until(active.ca.mesh_der()))];
            known.into_iter().filter_map(|(ca, until)| Some((ca, until?))).collect()
        });
        let endorsements = self.endorsements.entries();
        let expiries = endorsements.values().filter_map(|entry| Some(entry.validity?.next_update));
        Gauges {
            generation: snapshot.active().map_or(0, |active| active.generation),
            is_ready: self.readiness() == Readiness::Ready,
            seed_shares_needed: snapshot.state.seed_shares().needed,
            proposals: snapshot.state.proposals().len(),
            evicted: snapshot.state.evicted().policies.len() + snapshot.state.evicted().keys.len(),
            storage_refused: self.store.refusals(),
            storage_alarms: self.standing.alarms().len(),
            incomplete_streams: self.standing.incomplete().unwrap_or_default(),
            view_age: self.standing.age(),
            certificates,
            endorsements: expiries.clone().min(),
            endorsements_expired: expiries.filter(|until| *until <= now()).count(),
            queues: actors.into_iter().chain(self.secrets.under_way()).collect(),
        }
    }
}
