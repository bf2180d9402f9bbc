//! The verifier: authenticity first, then the manifest's reference values.

use std::fmt;

use manifest::{GuestPolicy, ReferenceValues, SnpProduct, SnpReferenceValues, Timestamp};

use crate::{
    Claims, Evidence, EvidenceOid, Platform, ReportData, SnpEvidence, Tcb,
    claims::Body,
    snp::{Chain, Report, Root, SnpClaims},
    tdx,
};

/// One check that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCheck {
    /// What was checked.
    pub check: &'static str,
    /// What it should have been.
    pub expected: String,
    /// What it was.
    pub found: String,
}

/// Why evidence was refused: every check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The failed checks, in the order they were made.
    pub checks: Vec<FailedCheck>,
}

impl FailedCheck {
    pub(crate) fn new(check: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self { check, expected: expected.to_string(), found: found.to_string() }
    }
}

impl Refusal {
    pub(crate) fn one(check: FailedCheck) -> Self {
        Self { checks: vec![check] }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("evidence refused: ")?;
        for (n, FailedCheck { check, expected, found }) in self.checks.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{check}: expected {expected}, found {found}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// Judges evidence against a manifest's reference values.
///
/// `expected` is what the evidence must be bound to; `now` dates the certificates. The workload's
/// policy is *not* looked up here: that is the caller's step, with `claims.policy_hash()`.
pub fn verify(
    evidence: &Evidence,
    expected: &ReportData,
    reference: &ReferenceValues,
    now: Timestamp,
) -> Result<Claims, Refusal> {
    let refuse =
        |check, expected: &str, found: String| Err(Refusal::one(FailedCheck::new(check, expected, found)));
    match evidence.oid {
        EvidenceOid::Snp => {}
        EvidenceOid::Tdx => return tdx::verify(&evidence.document, expected, reference, now),
        EvidenceOid::Insecure => return refuse("evidence kind", "SEV-SNP or TDX", "unsigned".into()),
    }
    let snp = match SnpEvidence::from_protobuf(&evidence.document) {
        Ok(snp) => snp,
        Err(error) => return refuse("evidence document", "sevsnp.Attestation", error.to_string()),
    };
    let report = match Report::new(&snp.report) {
        Ok(report) => report,
        Err(error) => return refuse("report", "1184 bytes", error.to_string()),
    };
    if !matches!(report.version(), 2 | 3 | 5) {
        return refuse("report version", "2, 3 or 5", report.version().to_string());
    }
    if report.signature_algorithm() != 1 {
        return refuse("signature algorithm", "1", report.signature_algorithm().to_string());
    }

    let simulated = &reference.simulated_roots;
    let (root, platform) = if simulated.is_empty() {
        (Root::Hardware, Platform::SevSnp)
    } else {
        (Root::Simulated(simulated), Platform::SimulatedSnp)
    };
    let mut closest: Option<Refusal> = None;
    let mut authentic: Vec<SnpProduct> = Vec::new();
    for (place, entry) in reference.snp.iter().enumerate() {
        let product = entry.product_name;
        let attempt = match report.product() {
            Some(found) if found != product => {
                Err(Refusal::one(FailedCheck::new("processor", format!("{product:?}"), format!("{found:?}"))))
            }
            _ => Chain::verify(&snp, &report, &root, product, now).and_then(|chain| {
                authentic.push(product);
                compare(&report, expected, entry)?;
                {
                    let reference = format!("ReferenceValues.snp[{place}]");
                    let body = Body::Snp(Box::new(SnpClaims::new(product, report.clone())));
                    Ok(Claims::new(platform, chain.root, reference, body))
                }
            }),
        };
        match attempt {
            Ok(claims) => return Ok(claims),
            // An authentic report with a wrong value says more than one of another product.
            Err(refusal) if closest.is_none() || authentic.last() == Some(&product) => {
                closest = Some(refusal);
            }
            Err(_) => {}
        }
    }
    let none = FailedCheck::new("reference values", "an entry for SEV-SNP", "none in the manifest");
    Err(closest.unwrap_or_else(|| Refusal::one(none)))
}

/// Compares an authentic report with one entry of the manifest; names everything that differs.
fn compare(report: &Report, data: &ReportData, entry: &SnpReferenceValues) -> Result<(), Refusal> {
    let product = entry.product_name;
    let mut failed = Vec::new();
    let mut check = |holds: bool, check, expected: String, found: String| {
        if !holds {
            failed.push(FailedCheck { check, expected, found });
        }
    };
    let found = report.report_data();
    check(found == *data.as_bytes(), "report data", hex::encode(data.as_bytes()), hex::encode(found));
    check(report.vmpl() == 0, "VMPL", "0".into(), report.vmpl().to_string());
    let measurement = hex::encode(report.measurement());
    let trusted = entry.trusted_measurement.to_string();
    check(measurement == trusted, "launch measurement", trusted, measurement);

    for (name, at) in [("committed TCB", 0x1e0), ("launch TCB", 0x1f0)] {
        let tcb = Tcb::from_report(report.bytes(at), product);
        check(tcb.satisfies(&entry.minimum_tcb), name, minimum_text(&entry.minimum_tcb), tcb.to_string());
    }
    for (name, bit, allowed) in guest_policy_bits(&entry.guest_policy) {
        let set = report.policy() >> bit & 1 == 1;
        check(allowed || !set, name, "not set".into(), "set".into());
    }
    let abi = (report.policy() >> 8 & 0xff, report.policy() & 0xff);
    let wanted = (u64::from(entry.guest_policy.abi_major), u64::from(entry.guest_policy.abi_minor));
    check(abi >= wanted, "guest policy ABI", format!("at least {wanted:?}"), format!("{abi:?}"));
    if let Some(info) = &entry.platform_info {
        let (wanted, found) = (info.bits(), report.platform_info());
        check(found == wanted, "platform info", format!("{wanted:#x}"), format!("{found:#x}"));
    }
    if let Some(vector) = entry.minimum_mitigation_vector {
        for (name, at) in [("launch mitigation vector", 0x1f8), ("current mitigation vector", 0x200)] {
            let found = report.u64(at);
            check(found & vector == vector, name, format!("bits {vector:#x}"), format!("{found:#x}"));
        }
    }
    let chip_id = report.chip_id();
    let listed = entry.allowed_chip_ids.iter().any(|allowed| *allowed.as_bytes() == chip_id);
    let chips = &entry.allowed_chip_ids;
    check(chips.is_empty() || listed, "chip id", "an allowed one".into(), hex::encode(chip_id));
    if failed.is_empty() { Ok(()) } else { Err(Refusal { checks: failed }) }
}

/// Policy bits that weaken a guest, unless the manifest allows them.
fn guest_policy_bits(policy: &GuestPolicy) -> [(&'static str, u32, bool); 4] {
    [
        ("guest policy SMT", 16, policy.smt),
        ("guest policy migration agent", 18, policy.migrate_ma),
        ("guest policy debug", 19, policy.debug),
        ("guest policy CXL", 21, policy.cxl_allowed),
    ]
}

fn minimum_text(tcb: &manifest::SnpTcb) -> String {
    let part = |value: Option<u8>| value.map_or("?".into(), |value| value.to_string());
    let fmc = tcb.fmc_version.map_or(String::new(), |fmc| format!("FMC {fmc}, "));
    format!(
        "at least {fmc}bootloader {}, TEE {}, SNP {}, microcode {}",
        part(tcb.bootloader_version),
        part(tcb.tee_version),
        part(tcb.snp_version),
        part(tcb.microcode_version)
    )
}
