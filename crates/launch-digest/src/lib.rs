//! What the hardware will measure of a guest, computed from the files it starts from.
//!
//! A reference value in a manifest is worth what its origin is worth. With this, anybody who has the
//! firmware, kernel, initrd and command line can compute it instead of believing it.
//!
//! - [`snp_launch_digest`]: AMD SEV-SNP, firmware ABI specification (AMD 56860) section 8.17.
//! - [`mr_td`], [`kernel_registers`]: Intel TDX, module specification (MRTD) and what OVMF and Linux extend
//!   into RTMR1 and RTMR2. RTMR0 depends on tables that the VMM makes:
//!   [`EventLog`] tells what it consists of, and what of that follows from the firmware.
//! - [`verify_root_file_system`]: what no register holds, but the command line vouches for.

mod authenticode;
mod event_log;
mod root_file_system;
mod snp;
mod tdx;
mod verity;

pub use self::{
    event_log::{Event, EventLog},
    root_file_system::{RootFileSystem, verify_root_file_system},
    snp::{CPU_MODELS, SnpLaunch, snp_launch_digest},
    tdx::{PageOrder, Registers, configuration_volume, kernel_registers, mr_td},
    verity::{RootHash, VerityParameters},
};

/// Why nothing was computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// A file without what is needed of it.
    #[error("{what}: {message}")]
    Malformed {
        /// Which file.
        what: &'static str,
        /// What is missing.
        message: String,
    },
    /// A processor model that is not known.
    #[error("{0:?} is not a processor model that QEMU knows; known are {known}", known = CPU_MODELS.join(", "))]
    CpuModel(String),
    /// The library's words.
    #[error("launch digest: {0}")]
    Library(String),
}

pub(crate) fn malformed(what: &'static str, message: impl Into<String>) -> MeasureError {
    MeasureError::Malformed { what, message: message.into() }
}
