//! `Verifiers`: judging evidence costs half a millisecond of CPU, so it happens on a pool.

use actix::{Actor, Handler, Message, SyncContext};
use attestation::{Claims, Evidence, Refusal, ReportData};
use manifest::{Manifest, Timestamp};
use std::sync::Arc;

/// One worker of the pool. Start with `SyncArbiter::start`.
#[derive(Debug, Default)]
pub struct Verifiers;

impl Actor for Verifiers {
    type Context = SyncContext<Self>;
}

/// Judges evidence by the reference values of a manifest.
#[derive(Message)]
#[rtype(result = "Result<Claims, Refusal>")]
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

impl Handler<VerifyEvidence> for Verifiers {
    type Result = Result<Claims, Refusal>;

    fn handle(&mut self, msg: VerifyEvidence, _: &mut Self::Context) -> Self::Result {
        attestation::verify(&msg.evidence, &msg.expected, &msg.manifest.reference_values, msg.now)
    }
}
