//! Guests that no real machine was made to be: debugged, moved, revoked, of another root.

use std::path::Path;

use attestation::{
    Anchors, Evidence, EvidenceOid, InsecureGuest, Issuer as _, Platform, ReportData, SnpEvidence,
    TdxCollateral, TdxEvidence,
    simulated::{SimulatedKind, SimulatedMachine},
    verify,
};
use manifest::{
    EntryPoint, KeyDigest, Measurement, PolicyHash, ReferenceValues, Revocation, SnpProduct, TcbStatus,
};
use tempfile::TempDir;

use super::{
    checks, shared_machine,
    snp::{NOW, fitting, judge, real},
};

/// The machine that all tests share.
fn machine(kind: SimulatedKind) -> (&'static Path, ReferenceValues) {
    let directory = shared_machine(kind);
    (directory, SimulatedMachine::open(directory).unwrap().reference_values())
}

/// A machine in a directory of its own.
fn own_machine(kind: SimulatedKind) -> (TempDir, ReferenceValues) {
    let directory = tempfile::tempdir().unwrap();
    let created = SimulatedMachine::create(directory.path(), kind, NOW).unwrap();
    let reference = created.reference_values();
    assert_eq!(SimulatedMachine::open(directory.path()).unwrap().root(), created.root());
    (directory, reference)
}

/// Evidence of a guest to which `change` was done.
fn issue(directory: &Path, data: &ReportData, change: fn(&mut [u8])) -> Evidence {
    let machine = SimulatedMachine::open(directory).unwrap();
    machine.guest(PolicyHash::of(b"policy")).altered(change).issue(data).unwrap()
}

const DATA: ReportData = ReportData::from_bytes([7; 64]);

#[test]
fn an_snp_guest_needs_its_root_in_the_manifest_and_fits_one_connection() {
    let (directory, reference) = machine(SimulatedKind::Snp);
    let data = ReportData::bind(b"key", b"nonce");
    let evidence = issue(directory, &data, |_| {});
    let claims = verify(&evidence, &data, &reference, NOW).unwrap();
    assert_eq!(
        (claims.policy_hash(), claims.platform()),
        (PolicyHash::of(b"policy"), Platform::SimulatedSnp)
    );
    assert!(claims.platform().to_string().contains("NOT HARDWARE"));
    assert_eq!(claims.extensions().len(), 46);
    let other = ReportData::bind(b"key", b"another nonce");
    assert_eq!(checks(verify(&evidence, &other, &reference, NOW)), ["report data"]);

    let mut hardware = reference.clone();
    hardware.simulated_roots.clear();
    assert!(verify(&evidence, &data, &hardware, NOW).is_err(), "AMD's roots must not accept it");
    let mut elsewhere = reference.clone();
    elsewhere.simulated_roots = vec![KeyDigest::of(b"another root")];
    assert_eq!(checks(verify(&evidence, &data, &elsewhere, NOW)), ["simulated root"]);
    // Real evidence is refused where simulated roots are trusted.
    let case = &real()[0];
    let mut mixed = fitting(case.report, SnpProduct::Milan);
    mixed.simulated_roots = reference.simulated_roots.clone();
    assert_eq!(checks(judge(case.report, case.vcek, &mixed, NOW)), ["simulated root"]);
}

#[test]
fn a_td_needs_its_root_in_the_manifest_and_fits_one_connection() {
    let (directory, reference) = machine(SimulatedKind::Tdx);
    let data = ReportData::bind(b"key", b"nonce");
    let evidence = issue(directory, &data, |_| {});
    let claims = verify(&evidence, &data, &reference, NOW).unwrap();
    assert_eq!(
        (claims.policy_hash(), claims.platform()),
        (PolicyHash::of(b"policy"), Platform::SimulatedTdx)
    );
    assert_eq!(claims.tcb(), "UpToDate");
    assert_eq!(claims.root(), reference.simulated_roots[0]);
    let other = ReportData::bind(b"key", b"another nonce");
    assert_eq!(checks(verify(&evidence, &other, &reference, NOW)), ["report data"]);

    let mut hardware = reference.clone();
    hardware.simulated_roots.clear();
    assert_eq!(
        checks(verify(&evidence, &data, &hardware, NOW)),
        ["quote"],
        "Intel's root must not accept it"
    );
    let mut elsewhere = reference;
    elsewhere.simulated_roots = vec![KeyDigest::of(b"another root")];
    assert_eq!(checks(verify(&evidence, &data, &elsewhere, NOW)), ["simulated root"]);
}

#[test]
fn each_untrusted_snp_guest_is_refused_for_its_own_reason() {
    type Change = fn(&mut [u8]);
    let cases: [(&str, Change); 11] = [
        ("guest policy debug", |report| report[0x0a] |= 1 << 3),
        ("guest policy migration agent", |report| report[0x0a] |= 1 << 2),
        ("guest policy CXL", |report| report[0x0a] |= 1 << 5),
        // Bits that AMD may define later, and whose meaning nobody knows today.
        ("guest policy bits without a name", |report| report[0x08 + 5] |= 1),
        ("platform bits without a name", |report| report[0x40 + 1] |= 1),
        ("VMPL", |report| report[0x30] = 1),
        ("launch measurement", |report| report[0x90] ^= 1),
        ("committed TCB", |report| report[0x1e0] = 0),
        ("launch TCB", |report| report[0x1f7] = 0),
        ("reported TCB", |report| report[0x180] = 9),
        ("chip id", |report| report[0x1a0] ^= 1),
    ];
    let (directory, reference) = machine(SimulatedKind::Snp);
    for (name, change) in cases {
        let evidence = issue(directory, &DATA, change);
        assert_eq!(checks(verify(&evidence, &DATA, &reference, NOW)), [name]);
    }
    // A masked chip id is what firmware may be set to; a list of allowed chips refuses it.
    let masked = issue(directory, &DATA, |report| report[0x1a0..0x1e0].fill(0));
    assert!(verify(&masked, &DATA, &reference, NOW).is_ok());
    let mut listed = reference.clone();
    listed.snp[0].allowed_chip_ids = vec![manifest::ChipId::from_bytes([1; 64])];
    let refusal = verify(&masked, &DATA, &listed, NOW).err().unwrap();
    assert!(refusal.to_string().contains("chip id: expected one of 1 in the manifest, found masked"));
}

#[test]
fn a_manifest_may_permit_bits_without_a_name_and_exclude_providers_keys() {
    let (directory, reference) = machine(SimulatedKind::Snp);
    let judge = |change: fn(&mut [u8]), wanted: fn(&mut manifest::SnpReferenceValues)| {
        let mut reference = reference.clone();
        wanted(&mut reference.snp[0]);
        verify(&issue(directory, &DATA, change), &DATA, &reference, NOW)
    };
    let policy: fn(&mut [u8]) = |report| report[0x08 + 5] |= 3;
    let both = judge(policy, |entry| entry.allowed_guest_policy_bits = 3 << 40);
    assert!(both.is_ok());
    let one = judge(policy, |entry| entry.allowed_guest_policy_bits = 1 << 40).err().unwrap();
    assert!(one.to_string().contains("at most bit 40, found bits 40, 41"), "{one}");
    let platform: fn(&mut [u8]) = |report| report[0x40 + 1] |= 1;
    assert!(judge(platform, |entry| entry.allowed_platform_info_bits = 1 << 8).is_ok());
    // A report of version 4 is read as one of version 3.
    assert!(judge(|report| report[0] = 4, |_| {}).is_ok());

    let provider: fn(&mut [u8]) = |report| report[0x48] = 1 << 2;
    let only_chips = |entry: &mut manifest::SnpReferenceValues| {
        entry.allowed_signing_keys = vec![manifest::SnpSigningKey::Vcek];
    };
    let refusal = judge(provider, only_chips).err().unwrap().to_string();
    assert!(refusal.contains("signing key: expected VCEK, found VLEK (of the provider)"), "{refusal}");
    assert!(judge(|_| {}, only_chips).is_ok());
}

/// A report is judged as it was signed, reserved bytes too, which have no field in upstream's message.
#[test]
fn reserved_bytes_that_the_firmware_signed_are_part_of_what_is_judged() {
    let (directory, reference) = machine(SimulatedKind::Snp);
    let evidence = issue(directory, &DATA, |report| report[0x4c] = 7);
    assert!(verify(&evidence, &DATA, &reference, NOW).is_ok());
    let mut taken_out = SnpEvidence::from_protobuf(&evidence.document).unwrap();
    assert_eq!(taken_out.report[0x4c], 7);
    taken_out.report[0x4c] = 0;
    let evidence = Evidence { oid: EvidenceOid::Snp, document: taken_out.to_protobuf().unwrap() };
    assert_eq!(checks(verify(&evidence, &DATA, &reference, NOW)), ["report signature"]);
}

/// A provider's key (VLEK) vouches for firmware, not for a chip.
#[test]
fn a_providers_key_signs_for_firmware_and_a_chips_key_is_no_substitute() {
    let (directory, reference) = machine(SimulatedKind::Snp);
    let provider: fn(&mut [u8]) = |report| report[0x48] = 1 << 2;
    let evidence = issue(directory, &DATA, provider);
    assert!(verify(&evidence, &DATA, &reference, NOW).is_ok());
    let mut newer = reference.clone();
    newer.snp[0].minimum_tcb.snp_version = Some(2);
    assert_eq!(checks(verify(&evidence, &DATA, &newer, NOW)), ["committed TCB", "launch TCB"]);

    let by_provider = SnpEvidence::from_protobuf(&evidence.document).unwrap();
    let by_chip = SnpEvidence::from_protobuf(&issue(directory, &DATA, |_| {}).document).unwrap();
    let as_evidence =
        |snp: &SnpEvidence| Evidence { oid: EvidenceOid::Snp, document: snp.to_protobuf().unwrap() };
    let swapped = SnpEvidence { vlek: by_chip.vcek.clone(), ..by_provider.clone() };
    let outcome = checks(verify(&as_evidence(&swapped), &DATA, &reference, NOW));
    assert_eq!(outcome, ["report key certificate", "report signature"], "a VCEK has a chip id");
    let swapped = SnpEvidence { vcek: by_provider.vlek, ..by_chip };
    let outcome = checks(verify(&as_evidence(&swapped), &DATA, &reference, NOW));
    assert_eq!(outcome, ["report key certificate", "report signature"], "a VLEK has none");
}

#[test]
fn what_the_manifest_demands_of_a_guest_must_be_there() {
    let (directory, reference) = machine(SimulatedKind::Snp);
    let evidence = issue(directory, &DATA, |_| {});
    type Change = fn(&mut ReferenceValues);
    let cases: [(&[&str], Change); 8] = [
        (&["guest policy SMT"], |r| r.snp[0].guest_policy.smt = false),
        (&["guest policy single socket"], |r| r.snp[0].guest_policy.single_socket = true),
        (&["guest policy AES-256-XTS"], |r| r.snp[0].guest_policy.mem_aes256_xts = true),
        (&["guest policy ciphertext hiding"], |r| r.snp[0].guest_policy.ciphertext_hiding_dram = true),
        (&["guest policy ABI"], |r| r.snp[0].guest_policy.abi_minor = 31),
        (&["launch mitigation vector", "current mitigation vector"], |r| {
            r.snp[0].minimum_mitigation_vector = Some(1);
        }),
        (&["ID key digest"], |r| r.snp[0].trusted_id_key_digests = vec![Measurement::from_bytes([1; 48])]),
        (&["author key digest"], |r| {
            r.snp[0].trusted_author_key_digests = vec![Measurement::from_bytes([1; 48])];
        }),
    ];
    for (names, change) in cases {
        let mut demanding = reference.clone();
        change(&mut demanding);
        assert_eq!(checks(verify(&evidence, &DATA, &demanding, NOW)), names);
    }
}

#[test]
fn one_digest_stands_for_every_number_of_virtual_cpus() {
    let (directory, mut reference) = machine(SimulatedKind::Snp);
    // Three virtual CPUs of an EPYC-v4, computed with sev-snp-measure 0.0.13 (PyPI).
    const THREE: &str =
        "1ef8a7699fd51718b3385a2e74bfbf4533e647da0b2930fbbe3337b177b59888e49597aa22d0287461558f66f1aa97bc";
    let entry = &mut reference.snp[0];
    entry.trusted_measurement = Measurement::from_bytes([7; 48]);
    entry.ap_eip = Some(EntryPoint::from_bytes([0x00, 0x80, 0xb0, 0x04]));
    entry.vcpu_signature = Some(0x0080_0f12);
    let evidence = issue(directory, &DATA, |report| {
        report[0x90..0xc0].copy_from_slice(THREE.parse::<Measurement>().unwrap().as_bytes());
    });
    assert!(verify(&evidence, &DATA, &reference, NOW).is_ok());
    reference.snp[0].vcpu_signature = Some(0x0080_0f13);
    assert_eq!(checks(verify(&evidence, &DATA, &reference, NOW)), ["launch measurement"]);
}

#[test]
fn each_untrusted_td_is_refused_for_its_own_reason() {
    type Change = fn(&mut [u8]);
    let cases: [(&str, Change); 7] = [
        ("TD attributes", |body| body[120] |= 1),
        // Without SEPT_VE_DISABLE (bit 28) the host can have a guest run its handler of #VE where it likes.
        ("quote", |body| body[123] &= !(1 << 4)),
        ("TD attributes", |body| body[123] |= 1 << 5),
        ("MRTD", |body| body[136] ^= 1),
        ("RTMR 2", |body| body[424] ^= 1),
        ("XFAM", |body| body[129] ^= 4),
        ("MRCONFIGID, bytes 32 to 47", |body| body[184 + 40] = 1),
    ];
    let (directory, reference) = machine(SimulatedKind::Tdx);
    for (name, change) in cases {
        let evidence = issue(directory, &DATA, change);
        let refusal = verify(&evidence, &DATA, &reference, NOW).err().unwrap();
        assert_eq!(refusal.checks[0].check, name, "{refusal}");
    }
    let evidence = issue(directory, &DATA, |_| {});
    let mut demanding = reference.clone();
    demanding.tdx[0].allowed_tcb_statuses = vec![TcbStatus::OutOfDate, TcbStatus::SWHardeningNeeded];
    let refusal = verify(&evidence, &DATA, &demanding, NOW).err().unwrap();
    assert!(
        refusal.to_string().contains("TCB status: expected OutOfDate or SWHardeningNeeded, found UpToDate")
    );
}

#[test]
fn revoked_keys_are_refused_by_name() {
    for (kind, name) in
        [(SimulatedKind::Snp, "signing key certificate"), (SimulatedKind::Tdx, "PCK certificate")]
    {
        let (directory, mut reference) = own_machine(kind);
        SimulatedMachine::revoke(directory.path(), NOW).unwrap();
        let evidence = issue(directory.path(), &DATA, |_| {});
        let refusal = verify(&evidence, &DATA, &reference, NOW).err().unwrap();
        assert_eq!((&*refusal.checks[0].check, refusal.checks[0].found.as_str()), (name, "revoked"));
        // Asking for less does not help: a list that is there counts.
        reference.revocation = Revocation::WhenPresent;
        assert!(verify(&evidence, &DATA, &reference, NOW).is_err());
    }
}

#[test]
fn expired_chains_are_refused() {
    let later = NOW.plus(std::time::Duration::from_hours(24 * 366 * 21));
    let certificates = ["root certificate", "signing key certificate", "report key certificate"];
    let (directory, mut reference) = machine(SimulatedKind::Snp);
    let evidence = issue(directory, &DATA, |_| {});
    let all = [certificates.as_slice(), &["revocation list"]].concat();
    assert_eq!(checks(verify(&evidence, &DATA, &reference, later)), all);
    // Grace is for lists and collateral; certificates have none.
    reference.collateral_grace = u32::MAX;
    assert_eq!(checks(verify(&evidence, &DATA, &reference, later)), certificates);
    let (directory, reference) = machine(SimulatedKind::Tdx);
    let evidence = issue(directory, &DATA, |_| {});
    assert_eq!(checks(verify(&evidence, &DATA, &reference, later)), ["collateral"]);
}

#[test]
fn collateral_of_the_other_platform_does_not_help() {
    let ((one, reference), (other, _)) = (machine(SimulatedKind::Tdx), own_machine(SimulatedKind::Tdx));
    let of = |directory| TdxEvidence::from_protobuf(&issue(directory, &DATA, |_| {}).document).unwrap();
    let mixed = TdxEvidence { quote: of(other.path()).quote, collateral: of(one).collateral };
    let evidence = Evidence { oid: EvidenceOid::Tdx, document: mixed.to_protobuf().unwrap() };
    assert_eq!(checks(verify(&evidence, &DATA, &reference, NOW)), ["quote"]);
    let collateral = TdxCollateral::from_json(&of(one).collateral.unwrap()).unwrap();
    assert!(Anchors::vendors().verify_collateral(&collateral).is_err(), "it is not Intel's");
}

#[test]
fn unsigned_evidence_needs_a_manifest_of_its_own() {
    let evidence = InsecureGuest::new(PolicyHash::of(b"policy")).issue(&DATA).unwrap();
    let insecure = ReferenceValues { insecure: true, ..ReferenceValues::default() };
    let claims = verify(&evidence, &DATA, &insecure, NOW).unwrap();
    assert_eq!((claims.policy_hash(), claims.platform()), (PolicyHash::of(b"policy"), Platform::Insecure));
    assert!(claims.extensions().is_empty());
    let other = ReportData::from_bytes([8; 64]);
    assert_eq!(checks(verify(&evidence, &other, &insecure, NOW)), ["report data"]);
    let (_directory, simulated) = machine(SimulatedKind::Tdx);
    assert_eq!(checks(verify(&evidence, &DATA, &simulated, NOW)), ["evidence kind"]);
    let beside = ReferenceValues { insecure: true, ..simulated };
    assert_eq!(checks(verify(&evidence, &DATA, &beside, NOW)), ["evidence kind"]);
}
