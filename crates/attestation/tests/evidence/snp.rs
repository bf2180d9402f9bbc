//! Real reports of AMD processors.

use attestation::{
    Claims, Evidence, EvidenceOid, Platform, Refusal, ReportData, SnpEvidence, Verdict, appraise, verify,
};
use manifest::{
    ChipId, GuestPolicy, Measurement, PlatformInfo, ReferenceValues, Revocation, SnpProduct,
    SnpReferenceValues, SnpTcb, Timestamp,
};

use super::checks;

/// 2026-06-01: inside the validity of every certificate here.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_780_272_000_000);

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../testdata/", $name)).as_slice()
    };
}

/// A report, and the certificate of the key that signed it.
pub(crate) struct Case {
    pub(crate) product: SnpProduct,
    pub(crate) report: &'static [u8],
    pub(crate) vcek: &'static [u8],
}

pub(crate) fn real() -> [Case; 6] {
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

/// Reference values that a report meets by construction. AMD's revocation lists are not among the
/// files here, so none is demanded.
pub(crate) fn fitting(report: &[u8], product: SnpProduct) -> ReferenceValues {
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
        allowed_guest_policy_bits: 0,
        allowed_platform_info_bits: 0,
        allowed_signing_keys: Vec::new(),
        minimum_mitigation_vector: None,
        allowed_chip_ids: Vec::new(),
        trusted_id_key_digests: Vec::new(),
        trusted_author_key_digests: Vec::new(),
        ap_eip: None,
        vcpu_signature: None,
        guest_features: None,
        cpus: None,
    };
    ReferenceValues { snp: vec![entry], revocation: Revocation::WhenPresent, ..ReferenceValues::default() }
}

fn data_of(report: &[u8]) -> ReportData {
    ReportData::from_bytes(report[0x50..0x90].try_into().unwrap())
}

fn evidence(report: &[u8], vcek: &[u8]) -> Evidence {
    let evidence = SnpEvidence { report: report.to_vec(), vcek: vcek.to_vec(), ..SnpEvidence::default() };
    Evidence { oid: EvidenceOid::Snp, document: evidence.to_protobuf().unwrap() }
}

pub(crate) fn judge(
    report: &[u8],
    vcek: &[u8],
    reference: &ReferenceValues,
    now: Timestamp,
) -> Result<Claims, Refusal> {
    verify(&evidence(report, vcek), &data_of(report), reference, now)
}

fn first_check(outcome: Result<Claims, Refusal>) -> String {
    checks(outcome).remove(0)
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
    assert!(["chip id", "reported TCB"].contains(&first_check(swapped).as_str()));
    let other = file!("turin-other-chip-sev.vcek.der");
    let swapped = judge(turin.report, other, &fitting(turin.report, SnpProduct::Turin), NOW);
    assert!(["chip id", "reported TCB"].contains(&first_check(swapped).as_str()));
    let legacy = file!("milan-v2-trustee.vcek-invalid-legacy.der");
    assert_eq!(first_check(judge(sev.report, legacy, &milan(sev.report), NOW)), "report key certificate");
    let past = Timestamp::from_millis(1_500_000_000_000);
    assert_eq!(first_check(judge(sev.report, sev.vcek, &milan(sev.report), past)), "root certificate");
}

#[test]
fn every_flipped_bit_of_a_report_is_refused() {
    for case in real() {
        let reference = fitting(case.report, case.product);
        for bit in 0..0x2a0 * 8 {
            let mut report = case.report.to_vec();
            report[bit / 8] ^= 1 << (bit % 8);
            // What the wire form does not carry is rebuilt as zeros: then nothing was flipped.
            let wire = SnpEvidence { report: report.clone(), ..SnpEvidence::default() };
            let rebuilt = SnpEvidence::from_protobuf(&wire.to_protobuf().unwrap()).unwrap();
            let outcome = judge(&report, case.vcek, &reference, NOW);
            assert!(
                outcome.is_err() || rebuilt.report == case.report,
                "byte {:#x}, bit {}",
                bit / 8,
                bit % 8
            );
        }
    }
}

/// Around the signed part a certificate has a few framing bits that no reader looks at.
#[test]
fn every_changed_byte_in_the_signed_part_of_a_report_keys_certificate_is_refused() {
    for case in real() {
        let reference = fitting(case.report, case.product);
        let signed = 8 + usize::from(u16::from_be_bytes([case.vcek[6], case.vcek[7]]));
        for at in 4..signed {
            let mut vcek = case.vcek.to_vec();
            vcek[at] ^= 1 << (at % 8);
            assert!(judge(case.report, &vcek, &reference, NOW).is_err(), "byte {at}");
        }
    }
}

#[test]
fn without_a_revocation_list_evidence_is_refused_by_default() {
    let case = &real()[2];
    let mut reference = fitting(case.report, case.product);
    reference.revocation = Revocation::default();
    let refusal = judge(case.report, case.vcek, &reference, NOW).err().unwrap();
    assert_eq!(refusal.checks[0].check, "revocation list");
    assert!(refusal.to_string().contains("contrast endorsements"), "{refusal}");
}

#[test]
fn an_explanation_lists_what_held_too() {
    let case = &real()[5];
    let mut reference = fitting(case.report, case.product);
    reference.snp[0].minimum_tcb.microcode_version = Some(200);
    let appraisal = appraise(&evidence(case.report, case.vcek), None, &reference, NOW);
    assert!(appraisal.claims.is_none());
    let verdict = |name: &str| {
        let found = appraisal.checks.iter().filter(|check| check.check == name);
        found.map(|check| check.verdict).collect::<Vec<_>>()
    };
    assert_eq!(verdict("report data"), [Verdict::NotChecked]);
    assert_eq!(verdict("report signature"), [Verdict::Pass]);
    assert_eq!(verdict("committed TCB"), [Verdict::Fail]);
    assert_eq!(verdict("launch measurement"), [Verdict::Pass]);
    let names: Vec<_> = appraisal.refusal().checks.iter().map(|failed| failed.check.clone()).collect();
    assert_eq!(names, ["committed TCB", "launch TCB"]);
}

#[test]
fn what_the_manifest_demands_of_the_platform_must_be_there() {
    let turin = &real()[5]; // platform info 0x67: SMT, TSME, ECC, alias check, IOMMU
    let judge_with = |info: PlatformInfo| {
        let mut reference = fitting(turin.report, turin.product);
        reference.snp[0].platform_info = Some(info);
        judge(turin.report, turin.vcek, &reference, NOW)
    };
    let fitting_info = PlatformInfo {
        smt_enabled: true,
        tsme_enabled: true,
        ecc_enabled: true,
        alias_check_complete: true,
        iommu_write_safe: true,
        ..PlatformInfo::default()
    };
    assert!(judge_with(fitting_info.clone()).is_ok());
    assert_eq!(checks(judge_with(PlatformInfo::default())), ["platform SMT", "platform TSME"]);
    let hiding = PlatformInfo { ciphertext_hiding_dram_enabled: true, ..fitting_info };
    assert_eq!(checks(judge_with(hiding)), ["platform ciphertext hiding"]);
}

#[test]
fn unknown_versions_and_lengths_are_refused() {
    let case = &real()[2];
    for version in [0, 1, 6, 255] {
        let mut report = case.report.to_vec();
        report[0] = version;
        assert_eq!(
            first_check(judge(&report, case.vcek, &fitting(&report, case.product), NOW)),
            "report version"
        );
    }
    // Version 4 has the layout of version 3, so a report that says so fails by its signature alone.
    let mut fourth = case.report.to_vec();
    fourth[0] = 4;
    let outcome = judge(&fourth, case.vcek, &fitting(&fourth, case.product), NOW);
    assert_eq!(first_check(outcome), "report signature");
    let short = SnpEvidence { report: vec![0; 1183], ..SnpEvidence::default() };
    assert!(short.to_protobuf().is_err());
}

#[test]
fn every_reference_value_that_differs_is_named_with_both_values() {
    let case = &real()[2];
    let mut reference = fitting(case.report, case.product);
    reference.snp[0].minimum_tcb.microcode_version = Some(255);
    reference.snp[0].trusted_measurement = Measurement::from_bytes([0xee; 48]);
    reference.snp[0].allowed_chip_ids = vec![ChipId::from_bytes([1; 64])];
    let refusal = judge(case.report, case.vcek, &reference, NOW).err().unwrap();
    let names: Vec<_> = refusal.checks.iter().map(|failed| failed.check.clone()).collect();
    assert_eq!(names, ["launch measurement", "committed TCB", "launch TCB", "chip id"]);
    assert!(refusal.to_string().contains("microcode 255, found bootloader 4"), "{refusal}");
}
