//! Intel TDX: the quote, its wire form, its verification and what it claims.
//!
//! `dcap-qvl` checks what Intel vouches for: signatures from the quote up to Intel's root, revocation,
//! dates, the TCB level. What the manifest demands is compared here, field by field.

mod claims;
mod collateral;
mod describe;
mod protobuf;
mod quote;
mod verify;

pub(crate) use claims::TdxClaims;
pub use collateral::{CollateralDates, CollateralError, IntelAnswers, TdxCollateral};
pub(crate) use collateral::{INTEL_ROOT, is_foreign};
pub use protobuf::TdxEvidence;
pub(crate) use quote::Quote;
pub(crate) use verify::appraise;

use crate::{Field, PlatformCa, PlatformId};

/// The platform that made a quote, as its certificate says. Nothing is verified.
pub(crate) fn platform_id(quote: &[u8]) -> Option<PlatformId> {
    let quote = dcap_qvl::quote::Quote::parse(quote).ok()?;
    let fmspc = hex::encode(dcap_qvl::intel::quote_fmspc(&quote).ok()?);
    let ca = match dcap_qvl::intel::quote_ca(&quote).ok()? {
        dcap_qvl::config::PckCa::Platform => PlatformCa::Platform,
        _ => PlatformCa::Processor,
    };
    Some(PlatformId { fmspc, ca })
}

/// First 32 bytes of MRCONFIGID. Nothing is verified.
pub(crate) fn named_policy(quote: &[u8]) -> Option<[u8; 32]> {
    let config = quote::Quote::parse(quote).ok()?.mr_config_id();
    config.first_chunk().copied()
}

/// The fields of a quote; the error says why it cannot be read.
pub(crate) fn describe(quote: &[u8]) -> Result<Vec<Field>, String> {
    let quote = quote::Quote::parse(quote)
        .map_err(|wrong| format!("{}: expected {}, found {}", wrong.check, wrong.expected, wrong.found))?;
    Ok(describe::describe(&quote))
}
