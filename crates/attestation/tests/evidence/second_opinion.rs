//! What `sev` and `dcap-qvl` say of the same evidence, and why we differ where we do.

use attestation::{Evidence, EvidenceOid, ReportData, TdxEvidence, verify};
use dcap_qvl::{QuoteCollateralV3, verify::QuoteVerifier};
use manifest::{ReferenceValues, SnpProduct, Timestamp};
use sev::{
    certs::snp::{Certificate, Chain, Verifiable as _, builtin, ca},
    firmware::guest::AttestationReport,
    parser::ByteParser as _,
};

use super::snp::{Case, NOW, fitting, judge, real};

/// The verdict of `sev` on a report and its key's certificate.
fn sev_accepts(report: &[u8], case: &Case) -> bool {
    let (ark, ask) = match case.product {
        SnpProduct::Milan => (builtin::milan::ark(), builtin::milan::ask()),
        SnpProduct::Genoa => (builtin::genoa::ark(), builtin::genoa::ask()),
        SnpProduct::Turin => (builtin::turin::ark(), builtin::turin::ask()),
    };
    let ca = ca::Chain { ark: ark.unwrap(), ask: ask.unwrap() };
    let chain = Chain { ca, vek: Certificate::from_der(case.vcek).unwrap() };
    AttestationReport::from_bytes(report).is_ok_and(|report| (&chain, &report).verify().is_ok())
}

#[test]
fn sev_accepts_the_same_real_reports() {
    for case in real() {
        assert!(sev_accepts(case.report, &case));
        let reference = fitting(case.report, case.product);
        assert!(judge(case.report, case.vcek, &reference, NOW).is_ok());
    }
}

/// `sev` checks the signature over a report that it encodes again, and writes zeros where TCB
/// versions have reserved bytes. So an attacker may choose these bytes, and whoever compares TCBs as
/// numbers reads them. We check the bytes that came.
#[test]
fn sev_accepts_changed_reserved_bytes_and_we_do_not() {
    let case = &real()[2];
    let reference = fitting(case.report, case.product);
    for at in [0x3a, 0x3d, 0x182, 0x185, 0x1e2, 0x1e5, 0x1f2, 0x1f5] {
        let mut report = case.report.to_vec();
        report[at] = 0xff;
        assert!(sev_accepts(&report, case), "sev has changed: byte {at:#x}");
        assert!(judge(&report, case.vcek, &reference, NOW).is_err(), "byte {at:#x}");
    }
}

/// `sev` reads versions that it does not know as the newest it knows. We refuse them: a field that
/// moved would be read as another.
#[test]
fn sev_reads_unknown_versions_and_we_do_not() {
    let case = &real()[4];
    let mut report = case.report.to_vec();
    report[0] = 6;
    assert!(AttestationReport::from_bytes(&report).is_ok(), "sev has changed");
    let refusal = judge(&report, case.vcek, &fitting(&report, case.product), NOW).err().unwrap();
    assert_eq!(refusal.checks[0].check, "report version");
}

const QUOTE: &[u8] = include_bytes!("../../testdata/tdx/tdx10-v4-dcapqvl.quote.bin");
const COLLATERAL: &[u8] = include_bytes!("../../testdata/tdx/tdx10-v4-dcapqvl.collateral.json");
const SGX: &[u8] = include_bytes!("../../testdata/tdx/sgx-v3-dcapqvl.quote.bin");
const SGX_COLLATERAL: &[u8] = include_bytes!("../../testdata/tdx/sgx-v3-dcapqvl.collateral.json");

fn intel_accepts(quote: &[u8], collateral: &[u8], at: u64) -> bool {
    let collateral: QuoteCollateralV3 = serde_json::from_slice(collateral).unwrap();
    QuoteVerifier::new_prod().verify(quote, &collateral, at).is_ok()
}

fn we_accept(quote: &[u8], at: u64) -> bool {
    let field = |at: usize, size: usize| hex::encode(&quote[48 + at..48 + at + size]);
    let reference: ReferenceValues = serde_json::from_value(serde_json::json!({ "tdx": [{
        "MrTd": field(136, 48), "MrSeam": field(16, 48), "Xfam": field(128, 8),
        "Rtmrs": [field(328, 48), field(376, 48), field(424, 48), field(472, 48)],
    }] }))
    .unwrap();
    let evidence = TdxEvidence { quote: quote.to_vec(), collateral: Some(COLLATERAL.to_vec()) };
    let Ok(document) = evidence.to_protobuf() else { return false };
    let data = ReportData::from_bytes(quote[568..632].try_into().unwrap());
    let evidence = Evidence { oid: EvidenceOid::Tdx, document };
    verify(&evidence, &data, &reference, Timestamp::from_millis(at * 1000)).is_ok()
}

#[test]
fn dcap_qvl_agrees_on_the_quotes_window() {
    for at in [1_750_329_146, 1_750_329_148, 1_751_000_000, 1_752_919_234, 1_752_919_237] {
        assert_eq!(intel_accepts(QUOTE, COLLATERAL, at), we_accept(QUOTE, at), "at {at}");
    }
}

/// `dcap-qvl` verifies SGX enclaves as well. No pod is one.
#[test]
fn dcap_qvl_accepts_an_sgx_enclave_and_we_do_not() {
    assert!(intel_accepts(SGX, SGX_COLLATERAL, 1_750_589_771));
    assert!(!we_accept(SGX, 1_750_589_771));
}

/// Behind the signed part both ignore some bytes: padding and line ends of the PEM chain. A quote's
/// hash is no identity, for either. But whatever `dcap-qvl` refuses, we refuse.
#[test]
fn we_accept_nothing_that_dcap_qvl_refuses() {
    for at in (632..QUOTE.len()).step_by(5) {
        let mut quote = QUOTE.to_vec();
        quote[at] ^= 1 << (at % 8);
        let (theirs, ours) =
            (intel_accepts(&quote, COLLATERAL, 1_751_000_000), we_accept(&quote, 1_751_000_000));
        assert!(theirs || !ours, "byte {at}: dcap-qvl refuses it and we accept it");
    }
}
