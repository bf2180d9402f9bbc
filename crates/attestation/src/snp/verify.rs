//! The verifier for SNP reports: authentic first, then what the manifest demands.

use manifest::{GuestPolicy, PlatformInfo, ReferenceValues, SnpReferenceValues, Timestamp};

use super::{
    Report, SnpClaims, SnpEvidence, Tcb,
    chain::{self, Root, Terms},
    launch::{MOST_VCPUS, VcpuDigests},
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
    list.demand("report version", matches!(version, 2 | 3 | 5), "2, 3 or 5", version)?;
    let algorithm = report.signature_algorithm();
    list.demand("signature algorithm", algorithm == 1, "1, ECDSA P-384 with SHA-384", algorithm)?;
    match expected {
        Some(expected) => list.equal("report data", expected.as_bytes(), &report.report_data()),
        None => list.skip("report data", hex::encode(report.report_data())),
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
    list.note("VMPL", report.vmpl() == 0, 0, report.vmpl());
    measurement(report, entry, list);
    for (name, at) in [("committed TCB", 0x1e0), ("launch TCB", 0x1f0)] {
        let tcb = Tcb::from_report(report.bytes(at), entry.product_name);
        list.note(name, tcb.satisfies(&entry.minimum_tcb), minimum_text(&entry.minimum_tcb), tcb);
    }
    guest_policy(report.policy(), &entry.guest_policy, list);
    if let Some(info) = &entry.platform_info {
        platform_info(report.platform_info(), info, list);
    }
    if let Some(vector) = entry.minimum_mitigation_vector {
        for (name, at) in [("launch mitigation vector", 0x1f8), ("current mitigation vector", 0x200)] {
            let found = report.u64(at);
            list.note(name, found & vector == vector, format!("bits {vector:#x}"), format!("{found:#x}"));
        }
    }
    let keys = [
        ("ID key digest", 0xe0, &entry.trusted_id_key_digests),
        ("author key digest", 0x110, &entry.trusted_author_key_digests),
    ];
    for (name, at, trusted) in keys {
        let found = report.bytes::<48>(at);
        let listed = trusted.iter().any(|digest| *digest.as_bytes() == found);
        if !trusted.is_empty() {
            list.note(name, listed, format!("one of {} in the manifest", trusted.len()), hex::encode(found));
        }
    }
    let chips = &entry.allowed_chip_ids;
    if !chips.is_empty() {
        let chip_id = report.chip_id();
        let listed = chips.iter().any(|allowed| *allowed.as_bytes() == chip_id);
        let found = if chip_id == [0; 64] { "masked".into() } else { hex::encode(chip_id) };
        list.note("chip id", listed, format!("one of {} in the manifest", chips.len()), found);
    }
}

/// The launch digest, or one that some number of virtual CPUs makes of the manifest's.
fn measurement(report: &Report, entry: &SnpReferenceValues, list: &mut Checklist) {
    let found = report.measurement();
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

/// Bits of a guest's policy: those that weaken it need a permission, those that harden it may be
/// demanded (AMD 56860, table 9).
fn guest_policy(policy: u64, wanted: &GuestPolicy, list: &mut Checklist) {
    let flags = [
        ("guest policy SMT", 16, wanted.smt, Flag::Permitted),
        ("guest policy migration agent", 18, wanted.migrate_ma, Flag::Permitted),
        ("guest policy debug", 19, wanted.debug, Flag::Permitted),
        ("guest policy single socket", 20, wanted.single_socket, Flag::Demanded),
        ("guest policy CXL", 21, wanted.cxl_allowed, Flag::Permitted),
        ("guest policy AES-256-XTS", 22, wanted.mem_aes256_xts, Flag::Demanded),
        ("guest policy RAPL", 23, wanted.rapl_dis, Flag::Demanded),
        ("guest policy ciphertext hiding", 24, wanted.ciphertext_hiding_dram, Flag::Demanded),
        ("guest policy page swap", 25, wanted.page_swap_disable, Flag::Demanded),
    ];
    check_flags(policy, flags, list);
    let abi = (policy >> 8 & 0xff, policy & 0xff);
    let least = (u64::from(wanted.abi_major), u64::from(wanted.abi_minor));
    let text = |(major, minor): (u64, u64)| format!("{major}.{minor}");
    list.note("guest policy ABI", abi >= least, format!("at least {}", text(least)), text(abi));
}

/// Bits of the platform's state (AMD 56860, table 24).
fn platform_info(info: u64, wanted: &PlatformInfo, list: &mut Checklist) {
    let flags = [
        ("platform SMT", 0, wanted.smt_enabled, Flag::Permitted),
        ("platform TSME", 1, wanted.tsme_enabled, Flag::Permitted),
        ("platform ECC", 2, wanted.ecc_enabled, Flag::Demanded),
        ("platform RAPL disabled", 3, wanted.rapl_disabled, Flag::Demanded),
        ("platform ciphertext hiding", 4, wanted.ciphertext_hiding_dram_enabled, Flag::Demanded),
        ("platform alias check", 5, wanted.alias_check_complete, Flag::Demanded),
        ("platform IOMMU write safety", 6, wanted.iommu_write_safe, Flag::Demanded),
        ("platform trusted I/O", 7, wanted.tio_enabled, Flag::Permitted),
    ];
    check_flags(info, flags, list);
}

/// What a `true` in the manifest means.
#[derive(Clone, Copy, PartialEq)]
enum Flag {
    Permitted,
    Demanded,
}

fn check_flags<const N: usize>(bits: u64, flags: [(&'static str, u32, bool, Flag); N], list: &mut Checklist) {
    let text = |set: bool| if set { "set" } else { "not set" };
    for (name, bit, wanted, kind) in flags {
        let set = bits >> bit & 1 == 1;
        let holds = if kind == Flag::Permitted { wanted || !set } else { set || !wanted };
        let expected = match (kind, wanted) {
            (Flag::Permitted, false) => "not set",
            (Flag::Demanded, true) => "set",
            _ => "either",
        };
        list.note(name, holds, expected, text(set));
    }
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
