//! Real evidence from AMD hardware with the verdicts known for it, and the simulated platform.
//! Sources of the files: testdata/README.md.
#![cfg(feature = "simulated")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use attestation::{
    Claims, Evidence, EvidenceOid, Issuer as _, Platform, Refusal, ReportData, SnpEvidence,
    simulated::{self, SimulatedMachine},
    verify,
};
use manifest::{
    GuestPolicy, KeyDigest, Measurement, PolicyHash, ReferenceValues, SnpProduct, SnpReferenceValues, SnpTcb,
    Timestamp,
};

/// 2026-06-01: inside the validity of every certificate here.
const NOW: Timestamp = Timestamp::from_millis(1_780_272_000_000);

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../testdata/", $name)).as_slice()
    };
}

struct Case {
    product: SnpProduct,
    report: &'static [u8],
    vcek: &'static [u8],
}

fn real() -> [Case; 6] {
    use SnpProduct::{Genoa, Milan, Turin};
    let case = |product, report, vcek| Case { product, report, vcek };
    [
        case(Milan, file!("milan-v2-sev.report.bin"), file!("milan-v2-sev.vcek.der")),
        case(Milan, file!("milan-v2-trustee.report.bin"), file!("milan-v2-trustee.vcek.der")),
        case(Milan, file!("milan-v3-oak-cb.report.bin"), file!("milan-v3-oak-cb.vcek.der")),
        case(Milan, file!("milan-v3-oak-rk.report.bin"), file!("milan-v3-oak-rk.vcek.der")),
        case(Genoa, file!("genoa-v5-oak.report.bin"), file!("genoa-v5-oak.vcek.der")),
        case(Turin, file!("turin-v5-oak.report.bin"), file!("turin-v5-oak.vcek.der")),
    ]
}

/// Reference values that a report meets by construction.
fn fitting(report: &[u8], product: SnpProduct) -> ReferenceValues {
    let zero = Some(0);
    let turin = (product == SnpProduct::Turin).then_some(0);
    let minimum_tcb = SnpTcb {
        bootloader_version: zero,
        tee_version: zero,
        snp_version: zero,
        microcode_version: zero,
        fmc_version: turin,
    };
    let entry = SnpReferenceValues {
        platform: String::new(),
        product_name: product,
        trusted_measurement: Measurement::try_from(&report[0x90..0xc0]).unwrap(),
        minimum_tcb,
        guest_policy: GuestPolicy { migrate_ma: true, debug: true, ..GuestPolicy::default() },
        platform_info: None,
        minimum_mitigation_vector: None,
        allowed_chip_ids: Vec::new(),
        cpus: None,
    };
    ReferenceValues { snp: vec![entry], tdx: Vec::new(), simulated_roots: Vec::new() }
}

fn data_of(report: &[u8]) -> ReportData {
    ReportData::from_bytes(report[0x50..0x90].try_into().unwrap())
}

fn judge(report: &[u8], vcek: &[u8], reference: &ReferenceValues, now: Timestamp) -> Result<Claims, Refusal> {
    let evidence = SnpEvidence { report: report.to_vec(), vcek: vcek.to_vec(), ..SnpEvidence::default() };
    let document = evidence.to_protobuf().unwrap();
    verify(&Evidence { oid: EvidenceOid::Snp, document }, &data_of(report), reference, now)
}

fn first_check(outcome: Result<Claims, Refusal>) -> &'static str {
    outcome.err().expect("evidence was accepted").checks[0].check
}

#[test]
fn real_reports_are_accepted_with_their_host_data() {
    for case in real() {
        let claims = judge(case.report, case.vcek, &fitting(case.report, case.product), NOW).unwrap();
        // Some of these guests run above VMPL 0; that is checked below.
        assert_eq!(claims.policy_hash().as_bytes(), &case.report[0xc0..0xe0]);
        assert_eq!(claims.platform(), Platform::SevSnp);
    }
}

#[test]
fn evidence_of_another_product_chip_or_time_is_refused() {
    let [sev, _, cb, rk, genoa, turin] = real();
    let milan = |report: &[u8]| fitting(report, SnpProduct::Milan);
    assert_eq!(first_check(judge(genoa.report, genoa.vcek, &milan(genoa.report), NOW)), "processor");
    let as_genoa = fitting(sev.report, SnpProduct::Genoa);
    assert_eq!(first_check(judge(sev.report, sev.vcek, &as_genoa, NOW)), "report key certificate");
    let swapped = judge(cb.report, rk.vcek, &milan(cb.report), NOW);
    assert!(["chip id", "reported TCB"].contains(&first_check(swapped)));
    let other = file!("turin-other-chip-sev.vcek.der");
    let swapped = judge(turin.report, other, &fitting(turin.report, SnpProduct::Turin), NOW);
    assert!(["chip id", "reported TCB"].contains(&first_check(swapped)));
    let legacy = file!("milan-v2-trustee.vcek-invalid-legacy.der");
    assert_eq!(first_check(judge(sev.report, legacy, &milan(sev.report), NOW)), "report key certificate");
    let past = Timestamp::from_millis(1_500_000_000_000);
    assert_eq!(first_check(judge(sev.report, sev.vcek, &milan(sev.report), past)), "root certificate");
}

#[test]
fn every_flipped_bit_of_a_report_is_refused() {
    for case in real() {
        let reference = fitting(case.report, case.product);
        for at in 0..0x2a0 {
            // All bits of one report, one bit of the others: the code path is the same.
            let bits = if case.report[0] == 3 { 0..1 } else { 0..if at % 16 == 0 { 8 } else { 1 } };
            for bit in bits {
                let mut report = case.report.to_vec();
                report[at] ^= 1 << bit;
                let outcome = judge(&report, case.vcek, &reference, NOW);
                // Reserved bytes do not survive the protobuf: the rebuilt report is the original.
                let reserved = SnpEvidence { report: report.clone(), ..SnpEvidence::default() };
                let rebuilt = SnpEvidence::from_protobuf(&reserved.to_protobuf().unwrap()).unwrap();
                assert!(outcome.is_err() || rebuilt.report == case.report, "byte {at:#x}, bit {bit}");
            }
        }
    }
}

#[test]
fn unknown_versions_and_lengths_are_refused() {
    let case = &real()[2];
    for version in [0, 1, 4, 6, 255] {
        let mut report = case.report.to_vec();
        report[0] = version;
        assert_eq!(
            first_check(judge(&report, case.vcek, &fitting(&report, case.product), NOW)),
            "report version"
        );
    }
    let short = SnpEvidence { report: vec![0; 1183], ..SnpEvidence::default() };
    assert!(short.to_protobuf().is_err());
}

#[test]
fn every_reference_value_that_differs_is_named_with_both_values() {
    let case = &real()[2];
    let mut reference = fitting(case.report, case.product);
    reference.snp[0].minimum_tcb.microcode_version = Some(255);
    reference.snp[0].trusted_measurement = Measurement::from_bytes([0xee; 48]);
    reference.snp[0].allowed_chip_ids = vec![manifest::ChipId::from_bytes([1; 64])];
    let refusal = judge(case.report, case.vcek, &reference, NOW).err().unwrap();
    let names: Vec<_> = refusal.checks.iter().map(|failed| failed.check).collect();
    assert_eq!(names, ["launch measurement", "committed TCB", "launch TCB", "chip id"]);
    assert!(refusal.to_string().contains("microcode 255, found bootloader 4"), "{refusal}");
}

#[test]
fn simulated_evidence_needs_its_root_in_the_manifest_and_fits_one_connection() {
    let directory = tempfile::tempdir().unwrap();
    let root = SimulatedMachine::create(directory.path(), NOW).unwrap().root();
    let machine = SimulatedMachine::open(directory.path()).unwrap();
    assert_eq!(machine.root(), root);
    let policy = PolicyHash::of(b"policy");
    let guest = machine.guest(policy);
    let data = ReportData::bind(b"key", b"nonce");
    let evidence = guest.issue(&data).unwrap();

    let mut report = vec![0; 0xc0];
    report[0x90..0xc0].copy_from_slice(&simulated::measurement());
    let mut reference = fitting(&report, SnpProduct::Milan);
    assert!(verify(&evidence, &data, &reference, NOW).is_err(), "AMD's roots must not accept it");
    reference.simulated_roots = vec![KeyDigest::of(b"another root")];
    assert_eq!(first_check(verify(&evidence, &data, &reference, NOW)), "simulated root");
    reference.simulated_roots = vec![root];
    let claims = verify(&evidence, &data, &reference, NOW).unwrap();
    assert_eq!((claims.policy_hash(), claims.platform()), (policy, Platform::SimulatedSnp));
    assert!(claims.platform().to_string().contains("NOT HARDWARE"));
    assert_eq!(claims.extensions().len(), 46);

    let other = ReportData::bind(b"key", b"another nonce");
    assert_eq!(first_check(verify(&evidence, &other, &reference, NOW)), "report data");
    // Real evidence is refused where simulated roots are trusted.
    let case = &real()[0];
    let mut mixed = fitting(case.report, case.product);
    mixed.simulated_roots = vec![root];
    assert_eq!(first_check(judge(case.report, case.vcek, &mixed, NOW)), "simulated root");
}
