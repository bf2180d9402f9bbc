//! Who is at the other side of the desk.

use std::sync::Arc;

use actors::{Active, AskError};
use attestation::{Claims, Evidence, ReportData};

/// What a workload shows to be admitted. The door that took it in says what the evidence must be bound to,
/// because that depends on its protocol.
pub(crate) struct Presented {
    /// The evidence, if there is any.
    pub(crate) evidence: Option<Evidence>,
    /// What the evidence must be bound to: at least the key and the nonce below.
    pub(crate) expected: ReportData,
    /// The key that the evidence is about, SubjectPublicKeyInfo DER. The door checked that the workload holds it.
    pub(crate) spki_der: Vec<u8>,
    /// The nonce that the evidence answers, for the auditor.
    pub(crate) nonce: Vec<u8>,
    /// The key that the answer is to be sealed to, where the evidence covers one; also for the auditor.
    pub(crate) hpke_key: Option<Vec<u8>>,
}

/// A verified workload, and the manifest that it was verified by.
pub(crate) struct Workload {
    pub(crate) active: Arc<Active>,
    pub(crate) claims: Claims,
    pub(crate) evidence: Vec<u8>,
    pub(crate) spki_der: Vec<u8>,
    pub(crate) nonce: Vec<u8>,
    pub(crate) hpke_key: Option<Vec<u8>>,
}

/// Why a workload was not admitted.
#[derive(Clone, Debug)]
pub(crate) enum Turned {
    /// Its evidence was refused.
    Away {
        /// Every reason, for a person.
        reason: String,
        /// The checks that the evidence did not pass, if that is why.
        failed: Option<attestation::Refusal>,
    },
    /// There was too much to do to judge it. It may come again.
    Busy(AskError),
}
