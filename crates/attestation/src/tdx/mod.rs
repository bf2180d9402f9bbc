//! Intel TDX: the quote, its wire form, its verification and what it claims.
//!
//! `dcap-qvl` checks what Intel vouches for: signatures from the quote up to Intel's root, revocation,
//! dates, the TCB level. What the manifest demands is compared here, field by field.

mod claims;
mod collateral;
mod protobuf;
mod quote;
mod verify;

pub(crate) use claims::TdxClaims;
pub use collateral::{CollateralDates, CollateralError, TdxCollateral};
pub use protobuf::TdxEvidence;
pub(crate) use verify::appraise;
