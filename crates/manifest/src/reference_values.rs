//! What hardware and firmware may carry a workload.
//!
//! Meaning of each value: docs/spec/control-plane.md, sections 3.2 and 3.3; JSON names:
//! docs/spec/manifest-and-cli.md, section 1.

use serde::{Deserialize, Serialize};

use crate::digest::{ChipId, EntryPoint, KeyDigest, Measurement, PlatformInstanceId, TdAttributes, Xfam};

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
    /// How long collateral and revocation lists count after their expiry, in seconds. For sites that
    /// carry them in by hand.
    #[serde(rename = "collateralGrace", default, skip_serializing_if = "is_default")]
    pub collateral_grace: u32,
    /// Whether evidence counts of which nobody knows whether its signing key was revoked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revocation: Revocation,
    /// Upstream's unsigned evidence, which anybody can make. Stands alone, and only in a deployment
    /// that opted in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub insecure: bool,
}

/// What to do without a revocation list. One that is there always counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// Refuse.
    #[default]
    Required,
    /// Go on. For SEV-SNP only: Intel's lists are part of its collateral.
    WhenPresent,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    /// Mask of guest policy bits that are accepted although [`GuestPolicy`] has no name for them; any
    /// other such bit is refused. Ours, not upstream's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allowed_guest_policy_bits: u64,
    /// The same for bits of the platform info that [`PlatformInfo`] has no name for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allowed_platform_info_bits: u64,
    /// Kinds of keys that may have signed the report; empty means any. Ours, not upstream's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_signing_keys: Vec<SnpSigningKey>,
    /// Bits that the launch and current mitigation vectors must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_mitigation_vector: Option<u64>,
    /// Allowed chips; empty means any.
    #[serde(rename = "AllowedChipIDs", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_chip_ids: Vec<ChipId>,
    /// Digests of keys that may have signed the guest's ID block; empty means not compared.
    #[serde(rename = "TrustedIDKeyDigests", default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_id_key_digests: Vec<Measurement>,
    /// Digests of keys that may have signed those keys; empty means not compared.
    #[serde(rename = "TrustedAuthorKeyDigests", default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_author_key_digests: Vec<Measurement>,
    /// Where application processors begin to run. With it `TrustedMeasurement` is the digest before
    /// any virtual CPU was added, and every number of them up to 512 is tried.
    #[serde(rename = "APEIP", default, skip_serializing_if = "Option::is_none")]
    pub ap_eip: Option<EntryPoint>,
    /// CPUID signature of the virtual CPUs (EAX of leaf 1); needed with `APEIP`.
    #[serde(rename = "VCPUSignature", default, skip_serializing_if = "Option::is_none")]
    pub vcpu_signature: Option<u32>,
    /// SEV features that the host turns on in each virtual CPU, with `APEIP`; absent: `SNPActive`
    /// alone, 1. Linux 6.6 to 6.8 add `DebugSwap`: 33.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_features: Option<u64>,
    /// Informative: number of virtual CPUs.
    #[serde(rename = "CPUs", default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u64>,
}

/// A processor line with its own root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SnpProduct {
    /// Third generation EPYC.
    Milan,
    /// Fourth generation EPYC.
    Genoa,
    /// Fifth generation EPYC.
    Turin,
}

/// Who holds the key that signs a platform's reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SnpSigningKey {
    /// One chip: the key is derived from its fuses and its firmware.
    Vcek,
    /// A cloud provider: AMD gave it the key for all its chips with one firmware, so the certificate
    /// names no chip.
    Vlek,
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

impl GuestPolicy {
    /// Bits of a report's guest policy that have a meaning here: the ABI version (0 to 15), the flags
    /// above (16 and 18 to 25), and bit 17, which is always set.
    pub const NAMED_BITS: u64 = 0x03ff_ffff;
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

/// What the platform info of a report must say. The first three are permissions, the others demands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlatformInfo {
    /// Simultaneous multithreading may be on (bit 0).
    #[serde(rename = "SMTEnabled")]
    pub smt_enabled: bool,
    /// Transparent memory encryption may be on (bit 1).
    #[serde(rename = "TSMEEnabled")]
    pub tsme_enabled: bool,
    /// Trusted devices may be attached (bit 7).
    #[serde(rename = "TIOEnabled")]
    pub tio_enabled: bool,
    /// Memory must have error correction (bit 2).
    #[serde(rename = "ECCEnabled")]
    pub ecc_enabled: bool,
    /// Running average power limit must be off (bit 3).
    #[serde(rename = "RAPLDisabled")]
    pub rapl_disabled: bool,
    /// Ciphertext hiding must be on (bit 4).
    #[serde(rename = "CiphertextHidingDRAMEnabled")]
    pub ciphertext_hiding_dram_enabled: bool,
    /// Memory aliases must have been looked for and not found (bit 5).
    pub alias_check_complete: bool,
    /// The mitigation for writes through the IOMMU must be there (bit 6).
    #[serde(rename = "IOMMUWriteSafe", skip_serializing_if = "is_default")]
    pub iommu_write_safe: bool,
}

impl PlatformInfo {
    /// Bits of a report's platform info that have a meaning here.
    pub const NAMED_BITS: u64 = 0xff;
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
    /// Expected attributes; absent: none that let the host debug or move the TD. Whatever stands here, a
    /// TD without `SEPT_VE_DISABLE` (bit 28) is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub td_attributes: Option<TdAttributes>,
    /// Minimum `tcbEvaluationDataNumber` of the collateral.
    #[serde(rename = "MinTCBEvaluationDataNumber", default)]
    pub min_tcb_evaluation_data_number: u32,
    /// Allowed platforms; empty means any.
    #[serde(rename = "AllowedPIIDs", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_piids: Vec<PlatformInstanceId>,
    /// States of the platform's firmware that Intel may report; empty means `UpToDate` only.
    #[serde(rename = "AllowedTCBStatuses", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_tcb_statuses: Vec<TcbStatus>,
    /// Security advisories that may be open, such as `INTEL-SA-00837`; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_advisories: Option<Vec<String>>,
    /// Security advisories that may not be open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected_advisories: Vec<String>,
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

/// What Intel says of a platform's firmware. `Revoked` is never allowed (Intel PCS API v4, TCB info).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Nothing to do.
    UpToDate,
    /// Software has to work around an advisory.
    SWHardeningNeeded,
    /// The platform has to be configured differently.
    ConfigurationNeeded,
    /// Both of the above.
    ConfigurationAndSWHardeningNeeded,
    /// Updates are missing.
    OutOfDate,
    /// Updates are missing, and configuration.
    OutOfDateConfigurationNeeded,
    /// The TD started before an update.
    TDRelaunchAdvised,
    /// The TD started before an update, and configuration is missing.
    TDRelaunchAdvisedConfigurationNeeded,
}
