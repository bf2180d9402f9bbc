//! AMD SEV-SNP: the report, its wire form, its chain of certificates, and what it claims.

mod chain;
mod claims;
mod protobuf;
mod report;
mod tcb;

pub(crate) use chain::{Chain, Root};
pub(crate) use claims::SnpClaims;
pub use protobuf::SnpEvidence;
#[cfg(feature = "simulated")]
pub(crate) use report::{REPORT_BYTES, SIGNED_BYTES};
pub(crate) use report::{Report, SigningKey};
pub use tcb::Tcb;
