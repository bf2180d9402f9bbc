//! The verifier for TDX quotes: what Intel vouches for first, then what the manifest demands.

use std::time::Duration;

use dcap_qvl::{
    policy::{PckCertFlag, QuoteClaims, QuotePolicy},
    tcb_info::TcbStatus,
    verify::QuoteVerifier,
};
use manifest::{KeyDigest, ReferenceValues, TcbStatus as Allowed, TdxReferenceValues, Timestamp};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{
    TdxClaims, TdxEvidence,
    collateral::{INTEL_ROOT, TdxCollateral, crl},
    quote::Quote,
};
use crate::{
    Claims, Platform, ReportData,
    checklist::{Checklist, Stop},
    claims::Body,
    verify::first_fit,
};

/// Intel's quoting enclave, the only vendor there is.
const INTEL: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
/// SGX type of a platform whose memory has integrity protection.
const SCALABLE_WITH_INTEGRITY: u8 = 2;
/// Attributes that let the host look into a TD or move it: the debug group (bits 0 to 7), and
/// MIGRATABLE (bit 29) (Intel TDX module base specification, TD attributes).
const UNSAFE_ATTRIBUTES: u64 = 0xff | 1 << 29;

/// Judges a document with a quote.
pub(crate) fn appraise(
    document: &[u8],
    expected: Option<&ReportData>,
    reference: &ReferenceValues,
    now: Timestamp,
    list: &mut Checklist,
) -> Result<Claims, Stop> {
    let evidence = match TdxEvidence::from_protobuf(document) {
        Ok(evidence) => evidence,
        Err(error) => return list.fail("evidence document", "tdx.QuoteV4 or V5", error),
    };
    let quote = match Quote::parse(&evidence.quote) {
        Ok(quote) => quote,
        Err(wrong) => return list.fail(wrong.check, wrong.expected, wrong.found),
    };
    match expected {
        Some(expected) => list.equal("report data", expected.as_bytes(), &quote.report_data()),
        None => list.skip("report data", hex::encode(quote.report_data())),
    }
    let attributes = quote.td_attributes();
    let harmless = u64::from_le_bytes(attributes) & UNSAFE_ATTRIBUTES == 0;
    list.demand("TD attributes", harmless, "neither debug nor migration", hex::encode(attributes))?;
    if let Some(service_td) = quote.mr_service_td() {
        list.demand("MRSERVICETD", service_td == [0; 48], "none", hex::encode(service_td))?;
    }
    if reference.tdx.is_empty() {
        return list.fail("reference values", "an entry for TDX", "none in the manifest");
    }
    let Some(json) = &evidence.collateral else {
        let expected = "TCB info, QE identity and revocation lists, with the evidence or cached";
        return list.fail("collateral", expected, "none; see `contrast endorsements`");
    };
    let collateral = match TdxCollateral::from_json(json) {
        Ok(collateral) => collateral,
        Err(error) => return list.fail("collateral", "QuoteCollateralV3 as JSON", error),
    };
    let root = trusted_root(&collateral, &reference.simulated_roots, list)?;
    let platform = if reference.simulated_roots.is_empty() { Platform::Tdx } else { Platform::SimulatedTdx };
    let at = judged_at(&collateral, now, reference.collateral_grace, list)?;
    not_revoked(&quote, &collateral, list)?;
    let root_digest = KeyDigest::of(&root);
    let seconds = at.as_secs();
    let vouched = QuoteVerifier::new(root).verify_with_policy(
        quote.bytes(),
        collateral.0,
        seconds,
        &QuotePolicy::claims_only(seconds),
    );
    let vouched = match vouched {
        Ok(vouched) => vouched,
        Err(error) => {
            return list.fail("quote", "one that the collateral vouches for", format!("{error:#}"));
        }
    };
    list.note("quote", true, "one that the collateral vouches for", "one");
    first_fit(reference.tdx.iter().enumerate(), list, |(place, entry), list| {
        compare(&quote, &vouched, entry, list);
        let tcb = verdict_text(&vouched);
        let reference = format!("ReferenceValues.tdx[{place}]");
        let body = Body::Tdx(Box::new(TdxClaims { quote: quote.clone(), tcb }));
        Ok(Claims::new(platform, root_digest, reference, body))
    })
}

/// Intel's root, or a simulated one that the manifest lists and the collateral names.
fn trusted_root(
    collateral: &TdxCollateral,
    simulated: &[KeyDigest],
    list: &mut Checklist,
) -> Result<Vec<u8>, Stop> {
    if simulated.is_empty() {
        return Ok(INTEL_ROOT.to_vec());
    }
    let names: Vec<String> = simulated.iter().map(ToString::to_string).collect();
    let expected = format!("one of {}", names.join(", "));
    let Some(named) = collateral.named_root() else {
        return list.fail("simulated root", expected, "none in the collateral");
    };
    let digest = KeyDigest::of(&named);
    list.demand("simulated root", simulated.contains(&digest), expected, digest)?;
    Ok(named)
}

/// The time by which the quote is judged: now, or within the manifest's grace the last moment at
/// which the collateral counted.
fn judged_at(
    collateral: &TdxCollateral,
    now: Timestamp,
    grace: u32,
    list: &mut Checklist,
) -> Result<Timestamp, Stop> {
    let dates = match collateral.dates_once() {
        Ok(dates) => dates,
        Err(error) => return list.fail("collateral", "dates", error),
    };
    let found = format!("{} to {}", dates.newest, dates.next_update);
    let last = dates.next_update.plus(Duration::from_secs(grace.into()));
    let mut expected = format!("current at {now}");
    if grace > 0 {
        expected += &format!(", with a grace of {grace} s");
    }
    list.demand("collateral", (dates.newest..last).contains(&now), expected, found)?;
    Ok(now.min(dates.next_update.minus(Duration::from_secs(1))))
}

/// Whether the platform's key was revoked. `dcap-qvl` looks too; this names it.
fn not_revoked(quote: &Quote, collateral: &TdxCollateral, list: &mut Checklist) -> Result<(), Stop> {
    let Some(pck) = quote.pck_certificate() else {
        return list.fail("PCK certificate", "a PEM chain in the quote", "none");
    };
    let Ok((_, pck)) = X509Certificate::from_der(&pck) else {
        return list.fail("PCK certificate", "a certificate", "something else");
    };
    let lists = match crl("PCK CRL", &collateral.0.pck_crl) {
        Ok(lists) => lists,
        Err(error) => return list.fail("collateral", "a PCK CRL", error),
    };
    let revoked = lists.iter_revoked_certificates().any(|entry| entry.raw_serial() == pck.raw_serial());
    list.demand("PCK certificate", !revoked, "not revoked", if revoked { "revoked" } else { "not revoked" })
}

fn verdict_text(vouched: &QuoteClaims) -> String {
    let mut tcb = format!("{:?}", vouched.tcb.status);
    if !vouched.tcb.advisory_ids.is_empty() {
        tcb += &format!(", advisories {}", vouched.tcb.advisory_ids.join(", "));
    }
    tcb
}

/// Compares an authentic quote with one entry of the manifest.
fn compare(quote: &Quote, vouched: &QuoteClaims, entry: &TdxReferenceValues, list: &mut Checklist) {
    list.equal("QE vendor", &INTEL, &quote.qe_vendor());
    list.equal("MRTD", entry.mr_td.as_bytes(), &quote.mr_td());
    for (n, name) in ["RTMR 0", "RTMR 1", "RTMR 2", "RTMR 3"].into_iter().enumerate() {
        list.equal(name, entry.rtmrs[n].as_bytes(), &quote.rtmr(n));
    }
    list.equal("XFAM", entry.xfam.as_bytes(), &quote.xfam());
    list.equal("MRCONFIGID, bytes 32 to 47", &[0; 16], &quote.mr_config_id()[32..]);
    match &entry.mr_seam {
        Some(mr_seam) => list.equal("MRSEAM", mr_seam.as_bytes(), &quote.mr_seam()),
        None => list.note("MRSEAM", false, "a value in the manifest", "none"),
    }
    if let Some(wanted) = &entry.td_attributes {
        list.equal("TD attributes", wanted.as_bytes(), &quote.td_attributes());
    }
    tcb_status(vouched, entry, list);
    let (wanted, found) = (entry.min_tcb_evaluation_data_number, vouched.tcb.eval_data_number);
    list.note("TCB evaluation number", found >= wanted, format!("at least {wanted}"), found);
    platform(vouched, entry, list);
}

/// Intel's verdict on the platform's firmware.
fn tcb_status(vouched: &QuoteClaims, entry: &TdxReferenceValues, list: &mut Checklist) {
    let allowed: &[Allowed] = match entry.allowed_tcb_statuses.as_slice() {
        [] => &[Allowed::UpToDate],
        some => some,
    };
    let holds = allowed.iter().any(|allowed| status(*allowed) == vouched.tcb.status);
    let names: Vec<String> = allowed.iter().map(|status| format!("{status:?}")).collect();
    list.note("TCB status", holds, names.join(" or "), verdict_text(vouched));
    let open = &vouched.tcb.advisory_ids;
    if let Some(accepted) = &entry.accepted_advisories {
        let holds = open.iter().all(|id| accepted.contains(id));
        list.note("open advisories", holds, format!("only of {}", accepted.join(", ")), open.join(", "));
    }
    if !entry.rejected_advisories.is_empty() {
        let holds = !open.iter().any(|id| entry.rejected_advisories.contains(id));
        let expected = format!("none of {}", entry.rejected_advisories.join(", "));
        list.note("open advisories", holds, expected, open.join(", "));
    }
}

fn status(allowed: Allowed) -> TcbStatus {
    match allowed {
        Allowed::UpToDate => TcbStatus::UpToDate,
        Allowed::SWHardeningNeeded => TcbStatus::SWHardeningNeeded,
        Allowed::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
        Allowed::ConfigurationAndSWHardeningNeeded => TcbStatus::ConfigurationAndSWHardeningNeeded,
        Allowed::OutOfDate => TcbStatus::OutOfDate,
        Allowed::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
        Allowed::TDRelaunchAdvised => TcbStatus::TDRelaunchAdvised,
        Allowed::TDRelaunchAdvisedConfigurationNeeded => TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
    }
}

/// What the platform's certificate says of it.
fn platform(vouched: &QuoteClaims, entry: &TdxReferenceValues, list: &mut Checklist) {
    let pck = &vouched.platform.pck;
    let allowed = &entry.allowed_piids;
    if !allowed.is_empty() {
        let id = pck.platform_instance_id;
        let listed = id.is_some_and(|id| allowed.iter().any(|allowed| *allowed.as_bytes() == id));
        let expected = format!("one of {} in the manifest", allowed.len());
        list.note("platform instance id", listed, expected, id.map_or("none".to_owned(), hex::encode));
    }
    let off = |flag| matches!(flag, PckCertFlag::False);
    if entry.smt_disabled {
        list.note("SMT", off(pck.smt_enabled), "off", format!("{:?}", pck.smt_enabled));
    }
    if entry.static_platform {
        list.note("dynamic platform", off(pck.dynamic_platform), "no", format!("{:?}", pck.dynamic_platform));
    }
    if entry.memory_integrity {
        let holds = pck.sgx_type == SCALABLE_WITH_INTEGRITY;
        list.note("memory integrity", holds, "SGX type 2", format!("SGX type {}", pck.sgx_type));
    }
}
