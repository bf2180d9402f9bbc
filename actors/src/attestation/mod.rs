//! `Verifiers`: judging evidence costs half a millisecond of CPU, so it happens on a pool.

use actix::{Actor, Handler, Message, SyncContext};
use attestation::{Claims, Evidence, Refusal, ReportData};
use manifest::{Manifest, Timestamp};
use std::sync::Arc;

use crate::{Traced, supervision::rebuild_on_panic};

/// One worker of the pool. Start with `SyncArbiter::start`.
#[derive(Debug, Default)]
pub struct Verifiers;

impl Actor for Verifiers {
    type Context = SyncContext<Self>;
}

/// Why there are no claims.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The evidence.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not the peer's doing.
    #[error("the verifier is restarting; try again")]
    Restarting,
}

/// Judges evidence by the reference values of a manifest.
#[derive(Message)]
#[rtype(result = "Result<Claims, VerifyError>")]
pub struct VerifyEvidence {
    /// The evidence.
    pub evidence: Evidence,
    /// What it must be bound to.
    pub expected: ReportData,
    /// By whose reference values.
    pub manifest: Arc<Manifest>,
    /// When.
    pub now: Timestamp,
}

impl Handler<Traced<VerifyEvidence>> for Verifiers {
    type Result = Result<Claims, VerifyError>;

    fn handle(
        &mut self,
        Traced { message: msg, span }: Traced<VerifyEvidence>,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let reference = &msg.manifest.reference_values;
        let judge =
            || span.in_scope(|| attestation::verify(&msg.evidence, &msg.expected, reference, msg.now));
        Ok(rebuild_on_panic(ctx, judge).ok_or(VerifyError::Restarting)??)
    }
}
