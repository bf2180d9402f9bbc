//! The verifier for SNP reports: authentic first, then what the manifest demands.

use manifest::{GuestPolicy, PlatformInfo, ReferenceValues, SnpReferenceValues, SnpSigningKey, Timestamp};

use super::{
    Report, SigningKey, SnpClaims, SnpEvidence,
    chain::{self, Root, Terms},
    flags,
    launch::{MOST_VCPUS, VcpuDigests},
    report::{VERSIONS, place},
};
use crate::{
    Claims, Platform, ReportData,
    checklist::{Checklist, Stop},
    claims::Body,
    verify::first_fit,
};

/// Judges a document with a report.
pub(crate) fn appraise(
    document: &[u8],
    expected: Option<&ReportData>,
    reference: &ReferenceValues,
    now: Timestamp,
    list: &mut Checklist,
) -> Result<Claims, Stop> {
    let evidence = match SnpEvidence::from_protobuf(document) {
        Ok(evidence) => evidence,
        Err(error) => return list.fail("evidence document", "sevsnp.Attestation", error),
    };
    let report = match Report::new(&evidence.report) {
        Ok(report) => report,
        Err(error) => return list.fail("report", "1184 bytes", error),
    };
    let version = report.version();
    list.demand("report version", VERSIONS.contains(&version), "2 to 5", version)?;
    let algorithm = report.u32(place::SIGNATURE_ALGORITHM);
    list.demand("signature algorithm", algorithm == 1, "1, ECDSA P-384 with SHA-384", algorithm)?;
    match expected {
        Some(expected) => list.equal("report data", expected.as_bytes(), &report.get(place::REPORT_DATA)),
        None => list.skip("report data", hex::encode(report.get(place::REPORT_DATA))),
    }
    let roots = &reference.simulated_roots;
    let (root, platform) = match roots.is_empty() {
        true => (Root::Hardware, Platform::SevSnp),
        false => (Root::Simulated(roots), Platform::SimulatedSnp),
    };
    let terms = Terms { now, revocation: reference.revocation, grace: reference.collateral_grace };
    first_fit(reference.snp.iter().enumerate(), list, |(place, entry), list| {
        let product = entry.product_name;
        if let Some(found) = report.product() {
            list.demand("processor", found == product, format!("{product:?}"), format!("{found:?}"))?;
        }
        let root = chain::verify(&evidence, &report, &root, product, terms, list)?;
        compare(&report, entry, list);
        let reference = format!("ReferenceValues.snp[{place}]");
        let body = Body::Snp(Box::new(SnpClaims::new(product, report.clone())));
        Ok(Claims::new(platform, root, reference, body))
    })
}

/// Compares an authentic report with one entry of the manifest.
pub(crate) fn compare(report: &Report, entry: &SnpReferenceValues, list: &mut Checklist) {
    let vmpl = report.u32(place::VMPL);
    list.note("VMPL", vmpl == 0, 0, vmpl);
    signing_key(report, &entry.allowed_signing_keys, list);
    measurement(report, entry, list);
    for (name, place) in [("committed TCB", place::COMMITTED_TCB), ("launch TCB", place::LAUNCH_TCB)] {
        let tcb = report.tcb(place, entry.product_name);
        list.note(name, tcb.satisfies(&entry.minimum_tcb), minimum_text(&entry.minimum_tcb), tcb);
    }
    guest_policy(report.u64(place::POLICY), entry, list);
    let info = report.u64(place::PLATFORM_INFO);
    if let Some(wanted) = &entry.platform_info {
        flags::check(info, &flags::PLATFORM, wanted, list);
    }
    let (named, allowed) = (PlatformInfo::NAMED_BITS, entry.allowed_platform_info_bits);
    unnamed_bits("platform bits without a name", info & !named, allowed, list);
    if let Some(vector) = entry.minimum_mitigation_vector {
        let vectors = [
            ("launch mitigation vector", place::LAUNCH_MITIGATIONS),
            ("current mitigation vector", place::CURRENT_MITIGATIONS),
        ];
        for (name, place) in vectors {
            let found = report.mitigations(place);
            list.note(name, found & vector == vector, format!("bits {vector:#x}"), format!("{found:#x}"));
        }
    }
    let keys = [
        ("ID key digest", place::ID_KEY_DIGEST, &entry.trusted_id_key_digests),
        ("author key digest", place::AUTHOR_KEY_DIGEST, &entry.trusted_author_key_digests),
    ];
    for (name, place, trusted) in keys {
        let found = report.get(place);
        let listed = trusted.iter().any(|digest| *digest.as_bytes() == found);
        if !trusted.is_empty() {
            list.note(name, listed, format!("one of {} in the manifest", trusted.len()), hex::encode(found));
        }
    }
    let chips = &entry.allowed_chip_ids;
    if !chips.is_empty() {
        let chip_id = report.get(place::CHIP_ID);
        let listed = chips.iter().any(|allowed| *allowed.as_bytes() == chip_id);
        let found = if chip_id == [0; 64] { "masked".into() } else { hex::encode(chip_id) };
        list.note("chip id", listed, format!("one of {} in the manifest", chips.len()), found);
    }
}

/// The launch digest, or one that some number of virtual CPUs makes of the manifest's.
fn measurement(report: &Report, entry: &SnpReferenceValues, list: &mut Checklist) {
    let found = report.get(place::MEASUREMENT);
    let trusted = entry.trusted_measurement;
    let (Some(entry_point), Some(signature)) = (entry.ap_eip, entry.vcpu_signature) else {
        return list.equal("launch measurement", trusted.as_bytes(), &found);
    };
    let mut digests = VcpuDigests::new(*trusted.as_bytes(), entry_point, signature, entry.guest_features);
    let fits = digests.position(|digest| digest == found).map(|place| place + 1);
    let expected = match fits {
        Some(vcpus) => format!("{trusted} and {vcpus} virtual CPUs"),
        None => format!("{trusted} and 1 to {MOST_VCPUS} virtual CPUs"),
    };
    list.note("launch measurement", fits.is_some(), expected, hex::encode(found));
}

/// Whether the manifest accepts this kind of key; a key that is neither kind was refused before.
fn signing_key(report: &Report, allowed: &[SnpSigningKey], list: &mut Checklist) {
    let (found, name) = match report.signing_key() {
        Some(SigningKey::Vlek) => (SnpSigningKey::Vlek, "VLEK (of the provider)"),
        _ => (SnpSigningKey::Vcek, "VCEK (of the chip)"),
    };
    let names: Vec<String> = allowed.iter().map(|kind| format!("{kind:?}").to_uppercase()).collect();
    let expected = if allowed.is_empty() { "VCEK or VLEK".to_owned() } else { names.join(" or ") };
    list.note("signing key", allowed.is_empty() || allowed.contains(&found), expected, name);
}

/// A guest's policy: its flags, bits that nobody here knows the meaning of, and the least ABI.
fn guest_policy(policy: u64, entry: &SnpReferenceValues, list: &mut Checklist) {
    let wanted = &entry.guest_policy;
    flags::check(policy, &flags::POLICY, wanted, list);
    let (named, allowed) = (GuestPolicy::NAMED_BITS, entry.allowed_guest_policy_bits);
    unnamed_bits("guest policy bits without a name", policy & !named, allowed, list);
    let abi = (policy >> 8 & 0xff, policy & 0xff);
    let least = (u64::from(wanted.abi_major), u64::from(wanted.abi_minor));
    let text = |(major, minor): (u64, u64)| format!("{major}.{minor}");
    list.note("guest policy ABI", abi >= least, format!("at least {}", text(least)), text(abi));
}

/// A bit that AMD defines after this was written may weaken a guest, so it needs a permission.
fn unnamed_bits(check: &'static str, found: u64, allowed: u64, list: &mut Checklist) {
    let expected = match allowed {
        0 => "none".to_owned(),
        allowed => format!("at most {}", flags::numbers(allowed)),
    };
    list.note(check, found & !allowed == 0, expected, flags::numbers(found));
}

fn minimum_text(minimum: &manifest::SnpTcb) -> String {
    let part = |value: Option<u8>| value.map_or("?".into(), |value| value.to_string());
    let fmc = minimum.fmc_version.map_or(String::new(), |fmc| format!("FMC {fmc}, "));
    format!(
        "at least {fmc}bootloader {}, TEE {}, SNP {}, microcode {}",
        part(minimum.bootloader_version),
        part(minimum.tee_version),
        part(minimum.snp_version),
        part(minimum.microcode_version)
    )
}
