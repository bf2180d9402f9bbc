//! Security versions. Compared field by field, never as one number (docs/spec/attestation.md, section 7.3).

use std::fmt;

use manifest::{SnpProduct, SnpTcb};

/// Security versions of a platform's firmware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tcb {
    /// Management controller firmware; Turin and newer.
    pub fmc: Option<u8>,
    /// Boot loader of the secure processor.
    pub bootloader: u8,
    /// Operating system of the secure processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// CPU microcode.
    pub microcode: u8,
}

impl Tcb {
    /// From the eight bytes of a report, whose layout depends on the product.
    pub fn from_report(bytes: [u8; 8], product: SnpProduct) -> Self {
        let [a, b, c, d, .., snp, microcode] = bytes;
        match product {
            SnpProduct::Milan | SnpProduct::Genoa => {
                Self { fmc: None, bootloader: a, tee: b, snp, microcode }
            }
            SnpProduct::Turin => Self { fmc: Some(a), bootloader: b, tee: c, snp: d, microcode },
        }
    }

    /// Whether every version is at least the minimum; absent minima count as 255, which `validate`
    /// of the manifest keeps from happening.
    pub(crate) fn satisfies(&self, minimum: &SnpTcb) -> bool {
        let at_least = |found: u8, minimum: Option<u8>| found >= minimum.unwrap_or(u8::MAX);
        at_least(self.bootloader, minimum.bootloader_version)
            && at_least(self.tee, minimum.tee_version)
            && at_least(self.snp, minimum.snp_version)
            && at_least(self.microcode, minimum.microcode_version)
            && self.fmc.unwrap_or(0) >= minimum.fmc_version.unwrap_or(0)
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "FMC {fmc}, ")?;
        }
        let Self { bootloader, tee, snp, microcode, .. } = self;
        write!(f, "bootloader {bootloader}, TEE {tee}, SNP {snp}, microcode {microcode}")
    }
}
