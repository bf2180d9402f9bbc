//! Platforms by the names that users write (docs/spec/manifest-and-cli.md, section 2).

use std::{fmt, str::FromStr};

/// What protects a VM's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// Nothing: for development.
    None,
}

/// A kind of node, as users name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// QEMU with SEV-SNP.
    MetalQemuSnp,
    /// QEMU with SEV-SNP and GPUs passed through.
    MetalQemuSnpGpu,
    /// QEMU with TDX.
    MetalQemuTdx,
    /// QEMU with TDX and GPUs passed through.
    MetalQemuTdxGpu,
    /// QEMU without any protection.
    MetalQemuInsecure,
}

/// A name that is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown platform {name:?}: one of {known}", known = Platform::names())]
pub struct UnknownPlatform {
    /// What was given, cut to 80 characters.
    pub name: String,
}

impl Platform {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MetalQemuSnp,
        Self::MetalQemuSnpGpu,
        Self::MetalQemuTdx,
        Self::MetalQemuTdxGpu,
        Self::MetalQemuInsecure,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MetalQemuSnp => "Metal-QEMU-SNP",
            Self::MetalQemuSnpGpu => "Metal-QEMU-SNP-GPU",
            Self::MetalQemuTdx => "Metal-QEMU-TDX",
            Self::MetalQemuTdxGpu => "Metal-QEMU-TDX-GPU",
            Self::MetalQemuInsecure => "Metal-QEMU-Insecure",
        }
    }

    /// What protects its VMs.
    pub const fn tee(self) -> Tee {
        match self {
            Self::MetalQemuSnp | Self::MetalQemuSnpGpu => Tee::Snp,
            Self::MetalQemuTdx | Self::MetalQemuTdxGpu => Tee::Tdx,
            Self::MetalQemuInsecure => Tee::None,
        }
    }

    /// Whether GPUs are passed through.
    pub const fn gpu(self) -> bool {
        matches!(self, Self::MetalQemuSnpGpu | Self::MetalQemuTdxGpu)
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Platform {
    type Err = UnknownPlatform;

    /// Case does not matter; names of earlier releases that mean the same machine are understood.
    fn from_str(text: &str) -> Result<Self, UnknownPlatform> {
        let current = match text.to_ascii_lowercase().as_str() {
            "k3s-qemu-snp" => "Metal-QEMU-SNP",
            "k3s-qemu-snp-gpu" => "Metal-QEMU-SNP-GPU",
            "k3s-qemu-tdx" | "rke2-qemu-tdx" => "Metal-QEMU-TDX",
            _ => text,
        };
        let found = Self::ALL.into_iter().find(|platform| platform.name().eq_ignore_ascii_case(current));
        found.ok_or_else(|| UnknownPlatform { name: text.chars().take(80).collect() })
    }
}
