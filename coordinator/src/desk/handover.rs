//! Handing over: the secrets of this Coordinator, for another one that was admitted by its evidence.

use std::sync::Arc;

use actors::{Active, HandedOver};
use storage_schema::EventStore;

use super::{failure::Failure, handles::Desk, peer::Workload};

impl<L: EventStore> Desk<L> {
    /// The secrets, for a replica that joins. It is served during a fork as well, see
    /// [`super::Standing::confirmed`].
    pub(crate) async fn hand_over(&self, peer: &Workload) -> Result<HandedOver, Failure> {
        let confirmed = self.confirmed_for(&peer.active)?;
        let secrets = self.secrets.hand_over(&confirmed, peer).await?;
        self.confirmed_for(&peer.active)?;
        tracing::info!(policy = %peer.claims.policy_hash(), "secrets handed to a peer");
        Ok(secrets)
    }

    /// The secrets, for a peer that cannot take part in ending a fork, because it exchanges no heads: it gets
    /// nothing during one.
    pub(crate) async fn hand_over_unless_forked(&self, peer: &Workload) -> Result<HandedOver, Failure> {
        self.current_for(&peer.active)?;
        let secrets = self.hand_over(peer).await?;
        self.current_for(&peer.active)?;
        Ok(secrets)
    }

    /// Lets a peer read what only replicas may: it must be a Coordinator by the manifest in force.
    pub(crate) fn check_replica(&self, peer: &Workload) -> Result<Arc<Active>, Failure> {
        let active = self.in_force_for(&peer.active)?;
        if !active.is_coordinator(&peer.claims.policy_hash()) {
            return Err(Failure::Denied("only a Coordinator may ask for this".into()));
        }
        Ok(active)
    }
}
