//! By what a Coordinator is judged. The one place that says who is one.

use std::sync::Arc;

use attestation::{Claims, Evidence, ReportData};
use endorsements::{Endorsements, Reach};
use manifest::{Manifest, PolicyHash, Role, Timestamp};

use crate::error::{CallError, Stranger};

/// The manifest that a caller trusts, and where he gets what vendors sign.
#[derive(Clone)]
pub struct Trust {
    /// Its reference values judge the evidence, its roles the policy.
    pub manifest: Arc<Manifest>,
    /// What evidence lacks is completed from here.
    pub endorsements: Arc<Endorsements>,
}

impl Trust {
    /// Judges evidence that must be bound to `expected`. Blocks: a vendor may have to be asked, which takes seconds.
    ///
    /// A vendor is asked only for evidence of which everything else is right. Otherwise whoever answers at an address
    /// could have any caller ask for certificates of processors that do not exist, until the vendor shuts him out.
    pub fn judge(
        &self,
        evidence: Option<Evidence>,
        expected: &ReportData,
        now: Timestamp,
    ) -> Result<Claims, Stranger> {
        let reference = &self.manifest.reference_values;
        let evidence = evidence.ok_or(Stranger::NoEvidence)?;
        let mut completed = self.endorsements.complete(evidence, now, Reach::Memory);
        if !completed.lacking.is_empty() {
            self.demand_role(attestation::plausible(&completed.evidence, expected, reference)?)?;
            completed = self.endorsements.complete(completed.evidence, now, Reach::Network);
        }
        let claims = attestation::verify(&completed.evidence, expected, reference, now)?;
        self.demand_role(claims.policy_hash())?;
        Ok(claims)
    }

    fn demand_role(&self, policy: PolicyHash) -> Result<(), Stranger> {
        match self.manifest.policies.get(&policy).map(|entry| entry.role) {
            Some(Role::Coordinator) => Ok(()),
            Some(Role::None) | None => Err(Stranger::NotACoordinator(policy)),
        }
    }

    /// The same on a thread that may wait.
    pub(crate) async fn judge_on_a_thread(
        &self,
        address: &str,
        evidence: Option<Evidence>,
        expected: ReportData,
        now: Timestamp,
    ) -> Result<Claims, CallError> {
        let trust = self.clone();
        let judged = tokio::task::spawn_blocking(move || trust.judge(evidence, &expected, now)).await;
        let judged = judged.map_err(|error| CallError::Bug(format!("judging the evidence: {error}")))?;
        judged.map_err(|reason| CallError::Stranger { address: address.to_owned(), reason })
    }
}
