//! The verifier for TDX quotes.

use dcap_qvl::{
    QuoteCollateralV3,
    policy::{PckCertFlag, QuoteClaims, QuotePolicy},
    tcb_info::TcbStatus,
    verify::QuoteVerifier,
};
use manifest::{KeyDigest, ReferenceValues, TdxReferenceValues, Timestamp};

use super::{TdxClaims, TdxEvidence, quote::Quote};
use crate::{
    Claims, ReportData,
    claims::Body,
    verify::{FailedCheck, Refusal},
};

/// Intel SGX root CA, which TDX quotes lead to as well.
const INTEL_ROOT: &[u8] = include_bytes!("../../roots/intel-sgx-root-ca.der");
/// Intel's quoting enclave, the only vendor there is.
const INTEL: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
/// SGX type of a platform whose memory has integrity protection.
const SCALABLE_WITH_INTEGRITY: u8 = 2;

/// Judges a quote by Intel's word and then by the manifest's.
pub(crate) fn verify(
    document: &[u8],
    expected: &ReportData,
    reference: &ReferenceValues,
    now: Timestamp,
) -> Result<Claims, Refusal> {
    let one = |check, expected: &str, found: String| Refusal::one(FailedCheck::new(check, expected, found));
    let evidence = TdxEvidence::from_protobuf(document)
        .map_err(|error| one("evidence document", "tdx.QuoteV4 or V5", error.to_string()))?;
    let quote =
        Quote::parse(&evidence.quote).map_err(|wrong| one(wrong.check, wrong.expected, wrong.found))?;
    if reference.tdx.is_empty() {
        return Err(one("reference values", "an entry for TDX", "none in the manifest".into()));
    }
    if !reference.simulated_roots.is_empty() {
        let found = "Intel's root, and a manifest of simulated platforms";
        return Err(one("root", "one of simulatedRoots", found.into()));
    }
    let collateral = evidence.collateral.as_deref().ok_or_else(|| {
        one("collateral", "TCB info, QE identity and revocation lists with the evidence", "none".into())
    })?;
    let collateral: QuoteCollateralV3 = serde_json::from_slice(collateral)
        .map_err(|error| one("collateral", "QuoteCollateralV3 as JSON", error.to_string()))?;
    let seconds = now.as_secs();
    let vouched = QuoteVerifier::new(INTEL_ROOT.to_vec())
        .verify_with_policy(quote.bytes(), collateral, seconds, &QuotePolicy::claims_only(seconds))
        .map_err(|error| one("quote", "one that Intel's collateral vouches for", format!("{error:#}")))?;

    let mut closest: Option<Vec<FailedCheck>> = None;
    for (place, entry) in reference.tdx.iter().enumerate() {
        let failed = compare(&quote, &vouched, expected, entry);
        if failed.is_empty() {
            let mut tcb = format!("{:?}", vouched.tcb.status);
            if !vouched.tcb.advisory_ids.is_empty() {
                tcb += &format!(", advisories {}", vouched.tcb.advisory_ids.join(", "));
            }
            let reference = format!("ReferenceValues.tdx[{place}]");
            let root = KeyDigest::of(INTEL_ROOT);
            return Ok(Claims::new(
                crate::Platform::Tdx,
                root,
                reference,
                Body::Tdx(TdxClaims { quote, tcb }),
            ));
        }
        if closest.as_ref().is_none_or(|best| failed.len() < best.len()) {
            closest = Some(failed);
        }
    }
    Err(Refusal { checks: closest.unwrap_or_default() })
}

/// Compares an authentic quote with one entry of the manifest; names everything that differs.
fn compare(
    quote: &Quote,
    vouched: &QuoteClaims,
    data: &ReportData,
    entry: &TdxReferenceValues,
) -> Vec<FailedCheck> {
    let mut failed = Vec::new();
    let mut check = |holds: bool, check, expected: String, found: String| {
        if !holds {
            failed.push(FailedCheck { check, expected, found });
        }
    };
    let mut equal = |name, expected: &[u8], found: &[u8]| {
        check(expected == found, name, hex::encode(expected), hex::encode(found));
    };
    equal("report data", data.as_bytes(), &quote.report_data());
    equal("QE vendor", &INTEL, &quote.qe_vendor());
    equal("MRTD", entry.mr_td.as_bytes(), &quote.mr_td());
    for (n, name) in ["RTMR 0", "RTMR 1", "RTMR 2", "RTMR 3"].into_iter().enumerate() {
        equal(name, entry.rtmrs[n].as_bytes(), &quote.rtmr(n));
    }
    equal("XFAM", entry.xfam.as_bytes(), &quote.xfam());
    equal("MRCONFIGID, bytes 32 to 47", &[0; 16], &quote.mr_config_id()[32..]);
    match &entry.mr_seam {
        Some(mr_seam) => equal("MRSEAM", mr_seam.as_bytes(), &quote.mr_seam()),
        None => check(false, "MRSEAM", "a value in the manifest".into(), "none".into()),
    }
    let attributes = quote.td_attributes();
    // Bits 0 to 7 make a TD debuggable or otherwise untrusted (TDX module specification, ATTRIBUTES).
    check(attributes[0] == 0, "TD attributes", "no debug bits".into(), hex::encode(attributes));
    let status = vouched.tcb.status;
    check(status == TcbStatus::UpToDate, "TCB status", "UpToDate".into(), {
        format!("{status:?} ({})", vouched.tcb.advisory_ids.join(", "))
    });
    let (wanted, found) = (entry.min_tcb_evaluation_data_number, vouched.tcb.eval_data_number);
    check(found >= wanted, "TCB evaluation number", format!("at least {wanted}"), found.to_string());
    let pck = &vouched.platform.pck;
    let listed = pck
        .platform_instance_id
        .is_some_and(|id| entry.allowed_piids.iter().any(|allowed| *allowed.as_bytes() == id));
    let found = pck.platform_instance_id.map_or("none".to_owned(), hex::encode);
    check(entry.allowed_piids.is_empty() || listed, "platform instance id", "an allowed one".into(), found);
    let flag = |flag: PckCertFlag| format!("{flag:?}");
    let is_off = |flag: PckCertFlag| matches!(flag, PckCertFlag::False);
    check(!entry.smt_disabled || is_off(pck.smt_enabled), "SMT", "off".into(), flag(pck.smt_enabled));
    let dynamic = pck.dynamic_platform;
    check(!entry.static_platform || is_off(dynamic), "dynamic platform", "no".into(), flag(dynamic));
    let integrity = pck.sgx_type == SCALABLE_WITH_INTEGRITY;
    check(
        !entry.memory_integrity || integrity,
        "memory integrity",
        "yes".into(),
        format!("SGX type {}", pck.sgx_type),
    );
    failed
}
