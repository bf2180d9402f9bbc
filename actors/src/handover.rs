//! `Handover`: the secrets of a Coordinator, for another Coordinator.
//!
//! This is the giving side. What is received becomes an [`crate::Adopt`] for the ledger; finding peers
//! and talking to them is the coordinator's (`coordinator/src/replicas`).

use std::sync::Arc;

use actix::{Actor, Context, Handler, Message, ResponseFuture, Supervised};
use attestation::Claims;
use keys::{KeyError, ReplicaSecret, Salt, Seed};
use manifest::{PolicyHash, RequestId, TransitionHash};
use storage_schema::{EventStore, Fact};
use tracing::Instrument as _;

use crate::{
    Active, Append, AskError, Clock, Journal, JournalError, Mailbox, Traced, supervision::survive_panic,
};

/// Asks for the secrets on behalf of a verified peer.
#[derive(Message)]
#[rtype(result = "Result<HandedOver, HandOverError>")]
pub struct HandOver {
    /// What was in force when the peer was verified.
    pub active: Arc<Active>,
    /// What was verified.
    pub claims: Claims,
    /// The request.
    pub request: RequestId,
}

/// The secrets. They leave the process only after the event of it is on disk.
pub struct HandedOver {
    /// The seed.
    pub seed: Seed,
    /// The salt.
    pub salt: Salt,
    /// The mesh CA key, SEC1 PEM.
    pub mesh_key_pem: String,
    /// The secret that opens the next change.
    pub replica_secret: ReplicaSecret,
    /// The transition that these belong to.
    pub transition: TransitionHash,
    /// The manifest in force.
    pub manifest: Vec<u8>,
}

/// Why a peer got nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// A workload, but not a Coordinator.
    #[error("policy {0} does not have the role coordinator in the current manifest")]
    NotACoordinator(PolicyHash),
    /// A key operation.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The event was not recorded.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another actor is busy or being rebuilt.
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// Hands the secrets to peers.
pub struct Handover<S: EventStore, C: Clock + Unpin> {
    journal: Mailbox<Journal<S, C>>,
}

impl<S: EventStore, C: Clock + Unpin> Handover<S, C> {
    /// Handover that records what it does in this journal.
    pub fn new(journal: Mailbox<Journal<S, C>>) -> Self {
        Self { journal }
    }
}

impl<S: EventStore, C: Clock + Unpin> Actor for Handover<S, C> {
    type Context = Context<Self>;
}

impl<S: EventStore, C: Clock + Unpin> Supervised for Handover<S, C> {}

impl<S: EventStore, C: Clock + Unpin> Handler<Traced<HandOver>> for Handover<S, C> {
    type Result = ResponseFuture<Result<HandedOver, HandOverError>>;

    fn handle(
        &mut self,
        Traced { message: msg, span, .. }: Traced<HandOver>,
        _: &mut Self::Context,
    ) -> Self::Result {
        let journal = self.journal.clone();
        let work = async move {
            let HandOver { active, claims, request } = msg;
            let policy = claims.policy_hash();
            if !active.is_coordinator(&policy) {
                return Err(HandOverError::NotACoordinator(policy));
            }
            let mesh_key_pem = active.ca.mesh_key().to_sec1_pem()?.to_string();
            let fact = Fact::RecoveryGranted { policy, platform: claims.platform().to_string() };
            let engine = Arc::clone(&active.engine);
            let append = Append { facts: vec![fact], blobs: Vec::new(), request, engine };
            journal.ask(append).await??;
            Ok(HandedOver {
                seed: active.engine.seed().clone(),
                salt: *active.engine.salt(),
                mesh_key_pem,
                replica_secret: active.replica_secret.clone(),
                transition: active.transition,
                manifest: active.manifest.bytes().to_vec(),
            })
        };
        let work = survive_panic::<Self, _>(work.instrument(span));
        Box::pin(async { work.await.unwrap_or(Err(AskError::Restarting.into())) })
    }
}
