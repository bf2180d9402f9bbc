//! Endorsements: what a vendor signs about its hardware, and what of it evidence needs.
//!
//! Whoever caches endorsements verifies them here first, so that a false one never takes the place
//! of a true one. Whether an endorsement is still current is for the verifier of evidence to say.

use std::fmt;

use manifest::{KeyDigest, SnpProduct};

use crate::{
    CollateralDates, CollateralError, CrlDates, Evidence, EvidenceOid, Refusal, SnpEvidence, Tcb,
    TdxCollateral, TdxEvidence,
    checklist::{Checklist, Stop},
    snp::{self, AmdKeys, Report, SigningKey, place},
    tdx,
};

/// Names the certificate of one chip's key at one state of its firmware.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VcekId {
    /// The processor line.
    pub product: SnpProduct,
    /// The chip: 64 bytes, or 8 from Turin on.
    pub chip: Vec<u8>,
    /// The firmware.
    pub tcb: Tcb,
}

impl VcekId {
    /// Path and query at AMD's key distribution service (AMD 57230, 4.1).
    pub fn service_path(&self) -> String {
        let Self { product, chip, tcb } = self;
        let Tcb { fmc, bootloader, tee, snp, microcode } = tcb;
        let fmc = fmc.map_or(String::new(), |fmc| format!("fmcSPL={fmc:02}&"));
        let chip = hex::encode(chip);
        format!(
            "/vcek/v1/{product:?}/{chip}?{fmc}blSPL={bootloader:02}&teeSPL={tee:02}&snpSPL={snp:02}&ucodeSPL={microcode:02}"
        )
    }
}

impl fmt::Display for VcekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}-{}-{}", self.product, hex::encode(&self.chip), versions(&self.tcb))
    }
}

/// Names the certificate of a provider's key at one state of firmware. A report does not say which
/// provider signed it, so one state of firmware may have several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VlekId {
    /// The processor line.
    pub product: SnpProduct,
    /// First half of the certificate's SHA-256.
    pub certificate: [u8; 16],
    /// The firmware.
    pub tcb: Tcb,
}

impl fmt::Display for VlekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}-{}-{}", self.product, hex::encode(self.certificate), versions(&self.tcb))
    }
}

/// The versions of firmware in a name.
fn versions(tcb: &Tcb) -> String {
    let Tcb { fmc, bootloader, tee, snp, microcode } = tcb;
    let fmc = fmc.map_or(String::new(), |fmc| format!("{fmc}."));
    format!("{fmc}{bootloader}.{tee}.{snp}.{microcode}")
}

/// Which of Intel's authorities certified a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlatformCa {
    /// Servers of several packages.
    Platform,
    /// Single-package machines.
    Processor,
}

impl fmt::Display for PlatformCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Platform => "platform",
            Self::Processor => "processor",
        })
    }
}

/// Names the collateral of a family of Intel platforms.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlatformId {
    /// Family, model, stepping, platform type and custom SKU: 12 lower-case hex digits.
    pub fmspc: String,
    /// Who certified the platform.
    pub ca: PlatformCa,
}

/// What evidence has to be completed with, or compared with what is known already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endorsed {
    /// An AMD report. Reports of version 2 do not say which product they are of: then every
    /// product is possible.
    Snp {
        /// The evidence.
        evidence: SnpEvidence,
        /// Processor lines that it may be of.
        products: Vec<SnpProduct>,
        /// The key that signed it.
        key: ReportKey,
    },
    /// A quote.
    Tdx {
        /// The evidence.
        evidence: TdxEvidence,
        /// The platform that made it.
        platform: PlatformId,
    },
}

/// The key that a report says it was signed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportKey {
    /// A chip's. Any of these certificates would do; none is listed where the chip hides its name.
    Chip(Vec<VcekId>),
    /// A provider's, at firmware that depends on the processor line.
    Provider(Vec<(SnpProduct, Tcb)>),
}

impl Endorsed {
    /// Looks into evidence. `None`: nothing can be said of it, and its verifier will say why.
    pub fn of(evidence: &Evidence) -> Option<Self> {
        match evidence.oid {
            EvidenceOid::Snp => {
                let evidence = SnpEvidence::from_protobuf(&evidence.document).ok()?;
                let report = Report::new(&evidence.report).ok()?;
                let products = products(&report);
                let reported = |product| report.tcb(place::REPORTED_TCB, product);
                let key = match report.signing_key()? {
                    SigningKey::Vcek => ReportKey::Chip(vcek_ids(&report, &products)),
                    SigningKey::Vlek => {
                        ReportKey::Provider(products.iter().map(|p| (*p, reported(*p))).collect())
                    }
                };
                Some(Self::Snp { evidence, products, key })
            }
            EvidenceOid::Tdx => {
                let evidence = TdxEvidence::from_protobuf(&evidence.document).ok()?;
                let platform = tdx::platform_id(&evidence.quote)?;
                Some(Self::Tdx { evidence, platform })
            }
            EvidenceOid::Insecure => None,
        }
    }
}

fn products(report: &Report) -> Vec<SnpProduct> {
    match report.product() {
        Some(product) => vec![product],
        // Only Turin leaves most of a chip id zero.
        None if report.get(place::CHIP_ID)[8..] == [0; 56] => {
            vec![SnpProduct::Turin, SnpProduct::Milan, SnpProduct::Genoa]
        }
        None => vec![SnpProduct::Milan, SnpProduct::Genoa],
    }
}

fn vcek_ids(report: &Report, products: &[SnpProduct]) -> Vec<VcekId> {
    let chip = report.get(place::CHIP_ID);
    if chip == [0; 64] {
        return Vec::new(); // masked: nobody can ask for its certificate
    }
    let id = |product: SnpProduct| VcekId {
        product,
        chip: if product == SnpProduct::Turin { chip[..8].to_vec() } else { chip.to_vec() },
        tcb: report.tcb(place::REPORTED_TCB, product),
    };
    products.iter().copied().map(id).collect()
}

/// Whose signatures count.
pub struct Anchors {
    amd: [AmdKeys; 3],
    intel: KeyDigest,
}

impl Anchors {
    /// The vendors' own, as built in.
    pub fn vendors() -> Self {
        Self { amd: AmdKeys::built_in(), intel: KeyDigest::of(tdx::INTEL_ROOT) }
    }

    /// The roots of simulated machines; for tests of what handles endorsements.
    #[cfg(feature = "simulated")]
    pub fn simulated(
        snp: &crate::simulated::SimulatedMachine,
        tdx: &crate::simulated::SimulatedMachine,
    ) -> Self {
        Self { amd: std::array::from_fn(|_| snp.amd_keys()), intel: tdx.root() }
    }

    fn amd(&self, product: SnpProduct) -> &AmdKeys {
        match product {
            SnpProduct::Milan => &self.amd[0],
            SnpProduct::Genoa => &self.amd[1],
            SnpProduct::Turin => &self.amd[2],
        }
    }

    /// The same for a certificate of any chip of the product, whose name and firmware it says itself.
    pub fn identify_vcek(&self, product: SnpProduct, der: &[u8]) -> Result<VcekId, Refusal> {
        checked(|list| snp::identify_vcek(der, product, self.amd(product), list))
    }

    /// Verifies that AMD signed a certificate for this chip and firmware.
    pub fn verify_vcek(&self, id: &VcekId, der: &[u8]) -> Result<(), Refusal> {
        checked(|list| snp::verify_vcek(der, id, self.amd(id.product), list))
    }

    /// The same two for the certificate of a provider's key.
    pub fn identify_vlek(&self, product: SnpProduct, der: &[u8]) -> Result<VlekId, Refusal> {
        checked(|list| snp::identify_vlek(der, product, self.amd(product), list))
    }

    /// Verifies that AMD signed this certificate of a provider's key.
    pub fn verify_vlek(&self, id: &VlekId, der: &[u8]) -> Result<(), Refusal> {
        checked(|list| snp::verify_vlek(der, id, self.amd(id.product), list))
    }

    /// Whether evidence brings certificates that are whole under another root, such as a simulated
    /// one: what these vendors signed is of no use to it then.
    pub fn are_strangers_to(&self, evidence: &Endorsed) -> bool {
        match evidence {
            Endorsed::Snp { evidence, .. } => snp::is_foreign(evidence, &self.amd),
            Endorsed::Tdx { evidence, .. } => {
                let Some(json) = &evidence.collateral else { return false };
                tdx::is_foreign(json, self.intel)
            }
        }
    }

    /// The processor line for which the report's own certificate is good: AMD signed it, for the chip
    /// or provider and for the firmware that the report names. `None`: it brings no such certificate.
    pub fn brought_key(
        &self,
        evidence: &SnpEvidence,
        products: &[SnpProduct],
        key: &ReportKey,
    ) -> Option<SnpProduct> {
        let report = Report::new(&evidence.report).ok()?;
        let fits = |product: &SnpProduct| match key {
            ReportKey::Chip(ids) => {
                let Ok(found) = self.identify_vcek(*product, &evidence.vcek) else { return false };
                // A chip that hides its name is known by its signature.
                let hidden = || found.tcb == report.tcb(place::REPORTED_TCB, *product);
                if ids.is_empty() {
                    hidden() && snp::signs(&evidence.vcek, &report)
                } else {
                    ids.contains(&found)
                }
            }
            ReportKey::Provider(firmware) => {
                let Ok(found) = self.identify_vlek(*product, &evidence.vlek) else { return false };
                firmware.contains(&(*product, found.tcb)) && snp::signs(&evidence.vlek, &report)
            }
        };
        products.iter().copied().find(fits)
    }

    /// Verifies that AMD's root of a product signed a revocation list.
    pub fn verify_crl(&self, product: SnpProduct, der: &[u8]) -> Result<CrlDates, Refusal> {
        checked(|list| snp::verify_crl(der, self.amd(product), list))
    }

    /// Verifies that Intel signed each part of collateral.
    pub fn verify_collateral(&self, collateral: &TdxCollateral) -> Result<CollateralDates, CollateralError> {
        collateral.verify_under(self.intel)
    }
}

/// Whether the key of a certificate signed the report that evidence carries. Who signed the
/// certificate is not looked at.
pub fn signs(der: &[u8], evidence: &SnpEvidence) -> bool {
    Report::new(&evidence.report).is_ok_and(|report| snp::signs(der, &report))
}

fn checked<T>(check: impl FnOnce(&mut Checklist) -> Result<T, Stop>) -> Result<T, Refusal> {
    let mut list = Checklist::default();
    check(&mut list).map_err(|Stop| list.into_refusal())
}
