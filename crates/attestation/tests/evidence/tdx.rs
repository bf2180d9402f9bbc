//! Real TDX quotes.

use attestation::{
    Anchors, Claims, Evidence, EvidenceOid, IntelAnswers, Platform, Refusal, ReportData, TdxCollateral,
    TdxEvidence, verify,
};
use manifest::{
    KeyDigest, Measurement, PlatformInstanceId, PolicyHash, ReferenceValues, TcbStatus, TdAttributes,
    TdxReferenceValues, Timestamp, Xfam,
};

use super::checks;

/// Inside the collateral's dates; both ends were found by trying (testdata/README.md).
const NOW: u64 = 1_751_000_000;
const FIRST: u64 = 1_750_329_148;
const LAST: u64 = 1_752_919_234;
const QUOTE: &[u8] = include_bytes!("../../testdata/tdx/tdx10-v4-dcapqvl.quote.bin");
const COLLATERAL: &[u8] = include_bytes!("../../testdata/tdx/tdx10-v4-dcapqvl.collateral.json");
const OTHERS: [&[u8]; 3] = [
    include_bytes!("../../testdata/tdx/tdx10-v4-trustee.quote.bin"),
    include_bytes!("../../testdata/tdx/tdx10-v4-gotdx.quote.bin"),
    include_bytes!("../../testdata/tdx/tdx15-v5-gotdx.quote.bin"),
];
const SGX: &[u8] = include_bytes!("../../testdata/tdx/sgx-v3-dcapqvl.quote.bin");
/// Where the body of a version 4 quote begins.
const BODY: usize = 48;

fn measurement(quote: &[u8], at: usize) -> Measurement {
    Measurement::try_from(&quote[BODY + at..BODY + at + 48]).unwrap()
}

/// Reference values that a quote meets by construction.
fn fitting(quote: &[u8]) -> TdxReferenceValues {
    TdxReferenceValues {
        platform: String::new(),
        mr_td: measurement(quote, 136),
        mr_seam: Some(measurement(quote, 16)),
        rtmrs: [328, 376, 424, 472].map(|at| measurement(quote, at)),
        xfam: Xfam::try_from(&quote[BODY + 128..BODY + 136]).unwrap(),
        td_attributes: None,
        allowed_tcb_statuses: Vec::new(),
        accepted_advisories: None,
        rejected_advisories: Vec::new(),
        min_tcb_evaluation_data_number: 0,
        allowed_piids: Vec::new(),
        memory_integrity: false,
        smt_disabled: false,
        static_platform: false,
        cpus: None,
    }
}

fn report_data(quote: &[u8]) -> ReportData {
    ReportData::from_bytes(quote[BODY + 520..BODY + 584].try_into().unwrap())
}

fn judge(
    evidence: &TdxEvidence,
    data: &ReportData,
    tdx: Vec<TdxReferenceValues>,
    at: u64,
) -> Result<Claims, Refusal> {
    let document = evidence.to_protobuf().expect("a quote");
    let evidence = Evidence { oid: EvidenceOid::Tdx, document };
    let reference = ReferenceValues { tdx, ..ReferenceValues::default() };
    verify(&evidence, data, &reference, Timestamp::from_millis(at * 1000))
}

fn with_collateral(quote: &[u8]) -> TdxEvidence {
    TdxEvidence { quote: quote.to_vec(), collateral: Some(COLLATERAL.to_vec()) }
}

fn judge_real(tdx: TdxReferenceValues, at: u64) -> Result<Claims, Refusal> {
    judge(&with_collateral(QUOTE), &report_data(QUOTE), vec![tdx], at)
}

#[test]
fn a_real_quote_is_accepted_while_its_collateral_is_valid() {
    for at in [FIRST, NOW, LAST] {
        let claims = judge_real(fitting(QUOTE), at).unwrap();
        assert_eq!(claims.platform(), Platform::Tdx);
        assert_eq!(claims.policy_hash(), PolicyHash::try_from(&QUOTE[BODY + 184..BODY + 216]).unwrap());
        assert_eq!((claims.tcb().as_str(), claims.met_reference()), ("UpToDate", "ReferenceValues.tdx[0]"));
        assert_eq!(claims.extensions().len(), 14);
    }
    for at in [FIRST - 2, LAST + 2] {
        let refusal = judge_real(fitting(QUOTE), at).err().unwrap();
        assert_eq!(refusal.checks[0].check, "collateral", "{refusal}");
        assert!(refusal.to_string().contains("to 2025-07-19"), "{refusal}");
    }
}

#[test]
fn the_manifests_grace_extends_the_collateral_and_nothing_else() {
    let with_grace = |seconds, at| {
        let document = with_collateral(QUOTE).to_protobuf().unwrap();
        let evidence = Evidence { oid: EvidenceOid::Tdx, document };
        let tdx = vec![fitting(QUOTE)];
        let reference = ReferenceValues { tdx, collateral_grace: seconds, ..ReferenceValues::default() };
        verify(&evidence, &report_data(QUOTE), &reference, Timestamp::from_millis(at * 1000))
    };
    assert!(with_grace(3600, LAST + 3600).is_ok());
    assert_eq!(checks(with_grace(3600, LAST + 3602)), ["collateral"]);
    assert_eq!(checks(with_grace(3600, FIRST - 2)), ["collateral"]);
}

#[test]
fn every_reference_value_that_differs_is_named() {
    type Change = fn(&mut TdxReferenceValues);
    let changes: [(&str, Change); 10] = [
        ("TCB status", |entry| entry.allowed_tcb_statuses = vec![TcbStatus::OutOfDate]),
        ("TD attributes", |entry| entry.td_attributes = Some(TdAttributes::from_bytes([0; 8]))),
        ("MRTD", |entry| entry.mr_td = Measurement::from_bytes([9; 48])),
        ("MRSEAM", |entry| entry.mr_seam = Some(Measurement::from_bytes([9; 48]))),
        ("MRSEAM", |entry| entry.mr_seam = None),
        ("RTMR 0", |entry| entry.rtmrs[0] = Measurement::from_bytes([9; 48])),
        ("RTMR 3", |entry| entry.rtmrs[3] = Measurement::from_bytes([9; 48])),
        ("XFAM", |entry| entry.xfam = Xfam::from_bytes([9; 8])),
        ("TCB evaluation number", |entry| entry.min_tcb_evaluation_data_number = 1000),
        ("platform instance id", |entry| entry.allowed_piids = vec![PlatformInstanceId::from_bytes([9; 16])]),
    ];
    for (name, change) in changes {
        let mut entry = fitting(QUOTE);
        change(&mut entry);
        assert_eq!(checks(judge_real(entry, NOW)), [name]);
    }
    let unbound = ReportData::from_bytes([7; 64]);
    assert_eq!(checks(judge(&with_collateral(QUOTE), &unbound, vec![fitting(QUOTE)], NOW)), ["report data"]);
    // Of several entries one is enough.
    let mut wrong = fitting(QUOTE);
    wrong.mr_td = Measurement::from_bytes([9; 48]);
    let claims =
        judge(&with_collateral(QUOTE), &report_data(QUOTE), vec![wrong, fitting(QUOTE)], NOW).unwrap();
    assert_eq!(claims.met_reference(), "ReferenceValues.tdx[1]");
}

#[test]
fn what_is_no_evidence_of_a_trusted_td_is_refused_with_its_reason() {
    let bare = TdxEvidence { quote: QUOTE.to_vec(), collateral: None };
    assert_eq!(checks(judge(&bare, &report_data(QUOTE), vec![fitting(QUOTE)], NOW)), ["collateral"]);
    assert_eq!(
        checks(judge(&with_collateral(QUOTE), &report_data(QUOTE), vec![], NOW)),
        ["reference values"]
    );
    // The first one is of a TD under debug, the others are of another family than the collateral.
    for (other, name) in OTHERS.into_iter().zip(["TD attributes", "quote", "quote"]) {
        let refusal =
            judge(&with_collateral(other), &report_data(QUOTE), vec![fitting(QUOTE)], NOW).err().unwrap();
        assert_eq!(refusal.checks.last().unwrap().check, name, "{refusal}");
    }
    assert!(TdxEvidence { quote: SGX.to_vec(), collateral: None }.to_protobuf().is_err(), "an SGX quote");
    let document = with_collateral(QUOTE).to_protobuf().unwrap();
    let evidence = Evidence { oid: EvidenceOid::Tdx, document };
    let simulated = ReferenceValues {
        tdx: vec![fitting(QUOTE)],
        simulated_roots: vec![KeyDigest::from_bytes([1; 32])],
        ..ReferenceValues::default()
    };
    let at = Timestamp::from_millis(NOW * 1000);
    assert_eq!(checks(verify(&evidence, &report_data(QUOTE), &simulated, at)), ["simulated root"]);
    let as_snp = Evidence { oid: EvidenceOid::Snp, ..evidence };
    assert!(verify(&as_snp, &report_data(QUOTE), &simulated, at).is_err());
}

#[test]
fn every_flipped_bit_of_the_signed_part_is_refused() {
    for bit in 0..(BODY + 584) * 8 {
        let mut quote = QUOTE.to_vec();
        quote[bit / 8] ^= 1 << (bit % 8);
        let (data, entry) = (report_data(&quote), fitting(&quote)); // so that only the signature can notice
        let Ok(document) = with_collateral(&quote).to_protobuf() else { continue }; // no TDX quote any more
        let evidence = Evidence { oid: EvidenceOid::Tdx, document };
        let reference = ReferenceValues { tdx: vec![entry], ..ReferenceValues::default() };
        let outcome = verify(&evidence, &data, &reference, Timestamp::from_millis(NOW * 1000));
        assert!(outcome.is_err(), "byte {}, bit {} was flipped and the quote accepted", bit / 8, bit % 8);
    }
}

#[test]
fn the_wire_form_gives_the_same_bytes_back() {
    for quote in [QUOTE, OTHERS[0], OTHERS[1], OTHERS[2]] {
        let bare = TdxEvidence { quote: quote.to_vec(), collateral: None };
        assert_eq!(TdxEvidence::from_protobuf(&bare.to_protobuf().unwrap()).unwrap(), bare);
        let document = with_collateral(quote).to_protobuf().unwrap();
        let back = TdxEvidence::from_protobuf(&document).unwrap();
        assert_eq!(back.collateral.as_deref(), Some(COLLATERAL));
        assert!(quote.starts_with(&back.quote), "all but the padding");
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_documents_are_refused(bytes: Vec<u8>) {
        let evidence = Evidence { oid: EvidenceOid::Tdx, document: bytes };
        let reference = ReferenceValues { tdx: vec![fitting(QUOTE)], ..ReferenceValues::default() };
        proptest::prop_assert!(verify(&evidence, &report_data(QUOTE), &reference, Timestamp::from_millis(0)).is_err());
    }
}

/// No real TD with a service TD is at hand; this is refused before its signature is looked at.
#[test]
fn a_service_td_is_refused_by_name() {
    let mut quote = OTHERS[2].to_vec(); // version 5, TD 1.5: the body begins at byte 54
    quote[54 + 600] = 1;
    let refusal =
        judge(&with_collateral(&quote), &report_data(QUOTE), vec![fitting(QUOTE)], NOW).err().unwrap();
    assert!(refusal.checks.iter().any(|failed| failed.check == "MRSERVICETD"), "{refusal}");
}

/// Intel's own answers of June 2023, put together. The certificate of the key that signed them is the one
/// that Intel issued for the same key in 2025, so the signatures hold and nothing counts as of 2023.
#[test]
fn intels_answers_of_2023_are_signed_and_a_later_certificate_does_not_make_them_count() {
    let other: serde_json::Value = serde_json::from_slice(COLLATERAL).unwrap();
    let chain = |name: &str| other[name].as_str().unwrap().to_owned();
    let collateral = TdxCollateral::from_answers(IntelAnswers {
        tcb_info: include_bytes!("../../testdata/tdx/tdx10-v4-gotdx.tcbinfo.json").to_vec(),
        tcb_info_issuer_chain: chain("tcb_info_issuer_chain"),
        qe_identity: include_bytes!("../../testdata/tdx/tdx-gotdx.qeidentity.json").to_vec(),
        qe_identity_issuer_chain: chain("qe_identity_issuer_chain"),
        pck_crl: include_bytes!("../../testdata/tdx/tdx-gotdx.pckcrl.der").to_vec(),
        pck_crl_issuer_chain: chain("pck_crl_issuer_chain"),
        root_crl: include_bytes!("../../testdata/tdx/tdx-gotdx.rootcrl.der").to_vec(),
    })
    .unwrap();
    let dates = Anchors::vendors().verify_collateral(&collateral).unwrap();
    assert_eq!((dates.fmspc.as_str(), dates.evaluation_number), ("50806f000000", 15));
    let quote = OTHERS[1];
    let evidence = TdxEvidence { quote: quote.to_vec(), collateral: Some(collateral.to_json().unwrap()) };
    let at = dates.newest.plus(std::time::Duration::from_hours(24)).as_secs();
    let refusal = judge(&evidence, &report_data(quote), vec![fitting(quote)], at).err().unwrap();
    assert_eq!(refusal.checks[0].check, "quote");
    assert!(refusal.to_string().contains("CertNotValidYet"), "{refusal}");
    // Today nothing of it counts.
    assert_eq!(checks(judge(&evidence, &report_data(quote), vec![fitting(quote)], NOW)), ["collateral"]);
}
