//! Who is admitted as a workload: evidence that the manifest in force accepts, and a policy that it lists.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use actors::{Active, AskError, RecordRefusal, Verified, VerifyError, VerifyEvidence};
use endorsements::Reach;
use manifest::{EvidenceHash, PolicyHash, Timestamp};
use storage_schema::EventStore;

use super::{
    handles::Desk,
    peer::{Presented, Turned, Workload},
    request::request_id,
};
use crate::metrics::Metrics;

/// Why evidence has no verdict in the caller's favour.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unverified {
    #[error(transparent)]
    Refused(#[from] VerifyError),
    #[error(transparent)]
    Busy(#[from] AskError),
}

impl<L: EventStore> Desk<L> {
    /// Verifies a workload's evidence by the manifest `active`. A refusal is recorded.
    pub(crate) async fn admit(
        &self,
        active: Arc<Active>,
        presented: Presented,
        source: SocketAddr,
        now: Timestamp,
    ) -> Result<Arc<Workload>, Turned> {
        let Presented { evidence, expected, spki_der, nonce, hpke_key } = presented;
        let Some(evidence) = evidence else {
            let reason = "the client's certificate carries no evidence".to_owned();
            return Err(self.turn_away(reason, None, None, &active, source).await);
        };
        let hash = Some(EvidenceHash::of(&evidence.document));
        let manifest = Arc::clone(&active.manifest);
        let request = VerifyEvidence { evidence, expected, manifest, now, vendor_asked: false };
        let started = Instant::now();
        let verdict = self.verify(request, source.ip()).await;
        let outcome = if verdict.is_ok() { "accepted" } else { "refused" };
        Metrics::took(&self.metrics.verification, outcome, started.elapsed());
        let listed = &active.manifest.policies;
        let (reason, failed) = match verdict {
            Ok(Verified { claims, document }) if listed.contains_key(&claims.policy_hash()) => {
                let evidence = document;
                return Ok(Arc::new(Workload { active, claims, evidence, spki_der, nonce, hpke_key }));
            }
            Ok(Verified { claims, .. }) => (unlisted(&claims.policy_hash(), &active), None),
            Err(Unverified::Refused(VerifyError::UnlistedPolicy(policy))) => {
                (unlisted(&policy, &active), None)
            }
            Err(Unverified::Refused(VerifyError::Refused(failed))) => (failed.to_string(), Some(failed)),
            Err(Unverified::Refused(error)) => (error.to_string(), None),
            Err(Unverified::Busy(busy)) => return Err(Turned::Busy(busy)),
        };
        Err(self.turn_away(reason, failed, hash, &active, source).await)
    }

    /// Judges evidence; if the vendor has to be asked for something first, by [`super::vendors`]. Only evidence that
    /// passed every check that needs no vendor comes that far: vendors shut out addresses that ask too much.
    pub(crate) async fn verify(
        &self,
        request: VerifyEvidence,
        source: IpAddr,
    ) -> Result<Verified, Unverified> {
        let VerifyEvidence { expected, now, .. } = request;
        let manifest = Arc::clone(&request.manifest);
        let lacking = match self.verifiers.ask(request).await? {
            Err(VerifyError::Lacking(lacking)) => lacking,
            judged => return Ok(judged?),
        };
        let endorsements = Arc::clone(&self.endorsements);
        let evidence = lacking.evidence.clone();
        let ask = move || endorsements.complete(evidence, now, Reach::Network);
        // Without an answer the evidence is judged as it came.
        let asked = self.vendors.ask(source, ask).await?;
        let evidence = asked.map_or(lacking.evidence, |completed| completed.evidence);
        let again = VerifyEvidence { evidence, expected, manifest, now, vendor_asked: true };
        Ok(self.verifiers.ask(again).await??)
    }

    async fn turn_away(
        &self,
        reason: String,
        failed: Option<attestation::Refusal>,
        evidence: Option<EvidenceHash>,
        active: &Active,
        source: SocketAddr,
    ) -> Turned {
        tracing::warn!(%source, %reason, "workload refused");
        self.metrics.attestation_failures.inc();
        if let Ok(request) = request_id() {
            let record = RecordRefusal {
                source: source.ip().to_string(),
                reason: reason.clone(),
                evidence,
                request,
                engine: Arc::clone(&active.engine),
            };
            match self.journal.ask(record).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "refusal not recorded"),
                Err(error) => tracing::error!(%error, "refusal not recorded"),
            }
        }
        Turned::Away { reason, failed }
    }
}

fn unlisted(policy: &PolicyHash, active: &Active) -> String {
    format!(
        "policy {policy} is not in the current manifest (generation {}, {} policies): \
         generate and set the manifest again, or restart the pod with the policy it lists",
        active.generation,
        active.manifest.policies.len()
    )
}
