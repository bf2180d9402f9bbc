//! Evidence in, claims out (terms of RFC 9334).
//!
//! An attester's [`Issuer`] makes [`Evidence`] over [`ReportData`], which binds it to a key and a
//! nonce. [`verify`] is the verifier: it checks signatures over the bytes as received, up to a
//! pinned vendor root or to a simulated root that the manifest names, compares the reference
//! values of the manifest, and returns [`Claims`] or a [`Refusal`] that names every failed check.
//!
//! No network, no clock, no executor: calls take about half a millisecond of CPU; run them on a
//! pool. Source: docs/spec/attestation.md, docs/spec/control-plane.md, sections 2.5 to 2.7, 3.2 and 4.4.

mod checklist;
mod claims;
mod describe;
mod endorsement;
mod evidence;
mod insecure;
mod issuers;
mod pem;
mod plausible;
mod replica_key;
mod report_data;
#[cfg(feature = "simulated")]
pub mod simulated;
mod snp;
mod tdx;
mod verify;

pub use checklist::{Check, FailedCheck, Refusal, Verdict};
pub use claims::Claims;
pub use describe::{Field, describe, named_policy};
pub use endorsement::{Anchors, Endorsed, PlatformCa, PlatformId, ReportKey, VcekId, VlekId, signs};
pub use evidence::{Evidence, EvidenceError, EvidenceOid, IssueError, Issuer, Platform};
pub use insecure::InsecureGuest;
pub use issuers::{ANSWER_TIME, CertificateTable, ConfigfsTsm, SevGuest, TableError, TdxGuest, detect};
pub use pem::to_der;
pub use plausible::plausible;
pub use replica_key::{NotAReplicaKey, verify_recorded_replica_key, verify_replica_key};
pub use report_data::{ReportData, Standing};
pub use snp::{CrlDates, SnpEvidence, Tcb};
pub use tdx::{CollateralDates, CollateralError, IntelAnswers, TdxCollateral, TdxEvidence};
pub use verify::{Appraisal, appraise, verify};
