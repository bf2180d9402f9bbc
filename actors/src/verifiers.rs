//! `Verifiers`: judging evidence costs a quarter of a millisecond of CPU and more, so it happens on a
//! pool. The pool never waits for a network: evidence that lacks what only the vendor has goes back.

use std::sync::Arc;

use actix::{Actor, Handler, Message, SyncContext};
use attestation::{Claims, Evidence, Refusal, ReportData};
use endorsements::{Completed, Endorsements, Reach};
use manifest::{Manifest, PolicyHash, Timestamp};

use crate::{Traced, supervision::rebuild_on_panic};

/// One worker of the pool. Start with `SyncArbiter::start`.
pub struct Verifiers {
    endorsements: Arc<Endorsements>,
}

impl Verifiers {
    /// A worker that completes evidence from what is known.
    pub fn new(endorsements: Arc<Endorsements>) -> Self {
        Self { endorsements }
    }
}

impl Actor for Verifiers {
    type Context = SyncContext<Self>;
}

/// Why there are no claims.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The evidence.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Endorsements are missing that the vendor may have; not judged yet.
    #[error("endorsements are missing: {}", .0.lacking.join(", "))]
    Lacking(Completed),
    /// The manifest does not list the policy that the evidence names. Its signatures were not looked at, because
    /// that would not change the verdict.
    #[error("policy {0} is not in the current manifest")]
    UnlistedPolicy(PolicyHash),
    /// Not the peer's doing.
    #[error("the verifier is restarting; try again")]
    Restarting,
}

/// Claims, and the evidence that proves them: with everything that was added to it.
pub struct Verified {
    /// What was proven.
    pub claims: Claims,
    /// By which document.
    pub document: Vec<u8>,
}

/// Judges evidence by the reference values of a manifest.
#[derive(Message)]
#[rtype(result = "Result<Verified, VerifyError>")]
pub struct VerifyEvidence {
    /// The evidence.
    pub evidence: Evidence,
    /// What it must be bound to.
    pub expected: ReportData,
    /// By whose reference values.
    pub manifest: Arc<Manifest>,
    /// When.
    pub now: Timestamp,
    /// Whether the vendor was asked already: then what is missing is a reason to refuse.
    pub vendor_asked: bool,
}

impl Handler<Traced<VerifyEvidence>> for Verifiers {
    type Result = Result<Verified, VerifyError>;

    fn handle(
        &mut self,
        Traced { message: msg, span, .. }: Traced<VerifyEvidence>,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let judge = || span.in_scope(|| self.judge(msg));
        rebuild_on_panic(ctx, judge).ok_or(VerifyError::Restarting)?
    }
}

impl Verifiers {
    fn judge(&self, msg: VerifyEvidence) -> Result<Verified, VerifyError> {
        let VerifyEvidence { evidence, expected, manifest, now, vendor_asked } = msg;
        let completed = self.endorsements.complete(evidence, now, Reach::Memory);
        if !vendor_asked && !completed.lacking.is_empty() {
            let reference = &manifest.reference_values;
            let policy = attestation::plausible(&completed.evidence, &expected, reference)?;
            if !manifest.policies.contains_key(&policy) {
                return Err(VerifyError::UnlistedPolicy(policy));
            }
            return Err(VerifyError::Lacking(completed));
        }
        let evidence = completed.evidence;
        let claims = attestation::verify(&evidence, &expected, &manifest.reference_values, now)?;
        Ok(Verified { claims, document: evidence.document })
    }
}
