//! The verifier: authenticity first, then the manifest's reference values.

use manifest::{PolicyHash, ReferenceValues, Timestamp};

use crate::{
    Claims, Evidence, EvidenceOid, ReportData,
    checklist::{Check, Checklist, Refusal, Stop},
    insecure, snp, tdx,
};

/// Evidence with everything that was checked about it.
pub struct Appraisal {
    /// Every check that was made, in order; where several entries of the manifest were tried, those
    /// of the one that fits, or else of the one that came closest.
    pub checks: Vec<Check>,
    /// What was proven, if no check failed.
    pub claims: Option<Claims>,
    /// The policy that authentic evidence names, whatever else failed.
    pub policy: Option<PolicyHash>,
}

impl Appraisal {
    /// The failed checks.
    pub fn refusal(&self) -> Refusal {
        Refusal::of(&self.checks)
    }
}

/// Judges evidence against a manifest's reference values.
///
/// `expected` is what the evidence must be bound to; `now` dates the certificates. The workload's
/// policy is *not* looked up here: that is the caller's step, with `claims.policy_hash()`.
pub fn verify(
    evidence: &Evidence,
    expected: &ReportData,
    reference: &ReferenceValues,
    now: Timestamp,
) -> Result<Claims, Refusal> {
    let mut appraisal = appraise(evidence, Some(expected), reference, now);
    appraisal.claims.take().ok_or_else(|| appraisal.refusal())
}

/// The same, with every check that was made. Without `expected` nothing says which connection the
/// evidence is bound to: enough to explain a report, never enough to trust its sender.
pub fn appraise(
    evidence: &Evidence,
    expected: Option<&ReportData>,
    reference: &ReferenceValues,
    now: Timestamp,
) -> Appraisal {
    let mut list = Checklist::default();
    let judge = match evidence.oid {
        EvidenceOid::Snp => snp::appraise,
        EvidenceOid::Tdx => tdx::appraise,
        EvidenceOid::Insecure => insecure::appraise,
    };
    let outcome = judge(&evidence.document, expected, reference, now, &mut list);
    let policy = outcome.as_ref().ok().map(Claims::policy_hash);
    let claims = outcome.ok().filter(|_| list.failed() == 0);
    Appraisal { checks: list.into_checks(), claims, policy }
}

/// Tries each entry of a manifest. The first that fits wins; if none does, the one with the fewest
/// failed checks says why, and a value comes back only together with failed checks in the list.
pub(crate) fn first_fit<E, T>(
    entries: impl IntoIterator<Item = E>,
    list: &mut Checklist,
    mut attempt: impl FnMut(E, &mut Checklist) -> Result<T, Stop>,
) -> Result<T, Stop> {
    // Whether it got to the end says more than the number of failures: who stops early fails once.
    let mut closest: Option<(bool, usize, Checklist, Option<T>)> = None;
    for entry in entries {
        let mut own = Checklist::default();
        let outcome = attempt(entry, &mut own);
        let stopped = outcome.is_err();
        match outcome {
            Ok(value) if own.failed() == 0 => {
                list.append(own);
                return Ok(value);
            }
            outcome => {
                let failed = own.failed();
                if closest.as_ref().is_none_or(|(s, f, ..)| (stopped, failed) < (*s, *f)) {
                    closest = Some((stopped, failed, own, outcome.ok()));
                }
            }
        }
    }
    match closest {
        Some((.., own, value)) => {
            list.append(own);
            value.ok_or(Stop)
        }
        None => list.fail("reference values", "an entry for this platform", "none in the manifest"),
    }
}
