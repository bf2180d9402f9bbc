//! What hardware and firmware may carry a workload.
//!
//! Meaning of each value: spec `control-plane.md` 3.2 and 3.3; JSON names: `manifest-and-cli.md` 1.

use serde::{Deserialize, Serialize};

use crate::digest::{ChipId, KeyDigest, Measurement, PlatformInstanceId, Xfam};

/// Allowed platforms. At least one entry over all kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReferenceValues {
    /// AMD SEV-SNP platforms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snp: Vec<SnpReferenceValues>,
    /// Intel TDX platforms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tdx: Vec<TdxReferenceValues>,
    /// SHA-256 of the DER root certificates of simulated platforms. Not hardware: a manifest that
    /// has any trusts these roots *instead of* the vendors' for every entry above.
    #[serde(rename = "simulatedRoots", default, skip_serializing_if = "Vec::is_empty")]
    pub simulated_roots: Vec<KeyDigest>,
}

/// One allowed AMD SEV-SNP platform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SnpReferenceValues {
    /// Informative: where these values come from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Selects the vendor root and the layout of TCB versions.
    pub product_name: SnpProduct,
    /// Launch digest.
    pub trusted_measurement: Measurement,
    /// Compared with the committed and the launch TCB, field by field.
    #[serde(rename = "MinimumTCB")]
    pub minimum_tcb: SnpTcb,
    /// What the guest policy of a report may contain.
    #[serde(default)]
    pub guest_policy: GuestPolicy,
    /// Expected platform info; absent means not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform_info: Option<PlatformInfo>,
    /// Bits that the launch and current mitigation vectors must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_mitigation_vector: Option<u64>,
    /// Allowed chips; empty means any.
    #[serde(rename = "AllowedChipIDs", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_chip_ids: Vec<ChipId>,
    /// Informative: number of virtual CPUs.
    #[serde(rename = "CPUs", default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u64>,
}

/// A processor line with its own root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnpProduct {
    /// Third generation EPYC.
    Milan,
    /// Fourth generation EPYC.
    Genoa,
    /// Fifth generation EPYC.
    Turin,
}

/// Security versions of an SNP platform. All but `FMCVersion` are required in a manifest: a
/// missing one is an error when the manifest is set, not a zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SnpTcb {
    /// Secure processor boot loader.
    pub bootloader_version: Option<u8>,
    /// Secure processor operating system.
    #[serde(rename = "TEEVersion")]
    pub tee_version: Option<u8>,
    /// SNP firmware.
    #[serde(rename = "SNPVersion")]
    pub snp_version: Option<u8>,
    /// CPU microcode.
    pub microcode_version: Option<u8>,
    /// Firmware of the management controller, Turin and newer.
    #[serde(rename = "FMCVersion", default, skip_serializing_if = "Option::is_none")]
    pub fmc_version: Option<u8>,
}

/// Guest policy flags that a report may have set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GuestPolicy {
    /// Minimum firmware ABI, minor part.
    #[serde(rename = "ABIMinor")]
    pub abi_minor: u8,
    /// Minimum firmware ABI, major part.
    #[serde(rename = "ABIMajor")]
    pub abi_major: u8,
    /// Simultaneous multithreading allowed on the host.
    #[serde(rename = "SMT")]
    pub smt: bool,
    /// A migration agent may be attached.
    #[serde(rename = "MigrateMA")]
    pub migrate_ma: bool,
    /// The host may read guest memory.
    pub debug: bool,
    /// The guest must stay on one socket.
    pub single_socket: bool,
    /// CXL memory may be used.
    #[serde(rename = "CXLAllowed")]
    pub cxl_allowed: bool,
    /// AES-256-XTS memory encryption is demanded.
    #[serde(rename = "MemAES256XTS")]
    pub mem_aes256_xts: bool,
    /// Running average power limit must be off.
    #[serde(rename = "RAPLDis")]
    pub rapl_dis: bool,
    /// Ciphertext hiding is demanded.
    #[serde(rename = "CipherTextHidingDRAM")]
    pub ciphertext_hiding_dram: bool,
    /// Guest pages may not be swapped.
    pub page_swap_disable: bool,
}

impl Default for GuestPolicy {
    fn default() -> Self {
        Self {
            abi_minor: 0,
            abi_major: 0,
            smt: true,
            migrate_ma: false,
            debug: false,
            single_socket: false,
            cxl_allowed: false,
            mem_aes256_xts: false,
            rapl_dis: false,
            ciphertext_hiding_dram: false,
            page_swap_disable: false,
        }
    }
}

/// Expected platform info flags of a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlatformInfo {
    /// Bit 0.
    #[serde(rename = "SMTEnabled")]
    pub smt_enabled: bool,
    /// Bit 1.
    #[serde(rename = "TSMEEnabled")]
    pub tsme_enabled: bool,
    /// Bit 2.
    #[serde(rename = "ECCEnabled")]
    pub ecc_enabled: bool,
    /// Bit 3.
    #[serde(rename = "RAPLDisabled")]
    pub rapl_disabled: bool,
    /// Bit 4.
    #[serde(rename = "CiphertextHidingDRAMEnabled")]
    pub ciphertext_hiding_dram_enabled: bool,
    /// Bit 5.
    pub alias_check_complete: bool,
    /// Bit 7.
    #[serde(rename = "TIOEnabled")]
    pub tio_enabled: bool,
}

impl PlatformInfo {
    /// The flags as the bits of a report's `PLATFORM_INFO` (AMD 56860, table 24).
    pub fn bits(&self) -> u64 {
        let flags = [
            (self.smt_enabled, 0),
            (self.tsme_enabled, 1),
            (self.ecc_enabled, 2),
            (self.rapl_disabled, 3),
            (self.ciphertext_hiding_dram_enabled, 4),
            (self.alias_check_complete, 5),
            (self.tio_enabled, 7),
        ];
        flags.into_iter().fold(0, |bits, (set, bit)| bits | (u64::from(set) << bit))
    }
}

/// One allowed Intel TDX platform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TdxReferenceValues {
    /// Informative: where these values come from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// Measurement of the initial TD contents.
    pub mr_td: Measurement,
    /// Measurement of the TDX module; must be filled in before `set`.
    #[serde(default)]
    pub mr_seam: Option<Measurement>,
    /// The four run-time measurement registers.
    pub rtmrs: [Measurement; 4],
    /// Extended features.
    pub xfam: Xfam,
    /// Minimum `tcbEvaluationDataNumber` of the collateral.
    #[serde(rename = "MinTCBEvaluationDataNumber", default)]
    pub min_tcb_evaluation_data_number: u32,
    /// Allowed platforms; empty means any.
    #[serde(rename = "AllowedPIIDs", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_piids: Vec<PlatformInstanceId>,
    /// Memory integrity protection is demanded.
    #[serde(default)]
    pub memory_integrity: bool,
    /// Simultaneous multithreading must be off.
    #[serde(rename = "SMTDisabled", default)]
    pub smt_disabled: bool,
    /// The platform must not allow adding packages later.
    #[serde(default)]
    pub static_platform: bool,
    /// Informative: number of virtual CPUs.
    #[serde(rename = "CPUs", default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u64>,
}
