//! AMD SEV-SNP: the report, its wire form, its chain of certificates, and what it claims.

mod chain;
mod claims;
mod describe;
mod flags;
mod launch;
mod protobuf;
mod report;
mod tcb;
mod verify;

pub use chain::CrlDates;
pub(crate) use chain::{
    AmdKeys, identify_vcek, identify_vlek, is_foreign, signs, verify_crl, verify_vcek, verify_vlek,
};
pub(crate) use claims::SnpClaims;
pub(crate) use describe::describe;
pub use protobuf::SnpEvidence;
#[cfg(feature = "simulated")]
pub(crate) use report::{Place, SIGNED_BYTES};
pub(crate) use report::{REPORT_BYTES, Report, SigningKey, place};
pub use tcb::Tcb;
pub(crate) use verify::{appraise, compare};
