//! What travels: evidence, and what it is bound to.

use std::fmt;

use crate::ReportData;

/// Largest evidence document accepted, in bytes: a report with its chain and CRL takes about 10 KiB.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 64 << 10;

/// An attestation document as it sits in a certificate extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Kind of document.
    pub oid: EvidenceOid,
    /// The document, exactly the extension's value.
    pub document: Vec<u8>,
}

/// Kinds of evidence documents, named by their extension (docs/spec/control-plane.md, section 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvidenceOid {
    /// `sevsnp.Attestation`, protobuf.
    Snp,
    /// `tdx.QuoteV4`, protobuf.
    Tdx,
    /// Upstream's unsigned JSON.
    Insecure,
}

impl EvidenceOid {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Snp, Self::Tdx, Self::Insecure];

    /// The object identifier.
    pub fn components(self) -> &'static [u64] {
        match self {
            Self::Snp => &[1, 3, 9901, 2, 1],
            Self::Tdx => &[1, 3, 9901, 2, 2],
            Self::Insecure => &[1, 3, 9901, 2, 3],
        }
    }
}

/// What a workload runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// AMD SEV-SNP hardware.
    SevSnp,
    /// Intel TDX hardware.
    Tdx,
    /// Report format of SEV-SNP, signed by a self-made root. Protects nothing.
    SimulatedSnp,
    /// Quote format of TDX, signed by a self-made root. Protects nothing.
    SimulatedTdx,
    /// Unsigned JSON. Proves nothing.
    Insecure,
}

impl Platform {
    /// Every platform.
    pub const ALL: [Self; 5] =
        [Self::SevSnp, Self::Tdx, Self::SimulatedSnp, Self::SimulatedTdx, Self::Insecure];

    /// The kind of document that its evidence is.
    pub fn evidence_oid(self) -> EvidenceOid {
        match self {
            Self::SevSnp | Self::SimulatedSnp => EvidenceOid::Snp,
            Self::Tdx | Self::SimulatedTdx => EvidenceOid::Tdx,
            Self::Insecure => EvidenceOid::Insecure,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SevSnp => "sev-snp",
            Self::Tdx => "tdx",
            Self::SimulatedSnp => "simulated-snp (NOT HARDWARE)",
            Self::SimulatedTdx => "simulated-tdx (NOT HARDWARE)",
            Self::Insecure => "insecure (NOT ATTESTED)",
        })
    }
}

/// Makes evidence for this machine. Calls block: hardware takes milliseconds to seconds.
pub trait Issuer: Send + Sync {
    /// Evidence over `data`.
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError>;
}

/// Why evidence could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A file or device.
    #[error("cannot make evidence: {path}: {source}")]
    Io {
        /// Which one.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The platform took too long, or has too many questions open.
    #[error(
        "cannot make evidence: the platform did not answer within {after:?}; its host may be busy or hostile"
    )]
    NoAnswer {
        /// How long it had.
        after: std::time::Duration,
    },
    /// Every attempt was disturbed.
    #[error("cannot make evidence: {path}: {how}, at every attempt")]
    Disturbed {
        /// Where the attempts were made.
        path: String,
        /// What happened at the last one.
        how: &'static str,
    },
    /// Neither SEV-SNP nor TDX.
    #[error(
        "this machine makes no evidence: found neither {looked_for}; is it a confidential VM? \
         (--simulated-machine DIR tries things out without one)"
    )]
    NoPlatform {
        /// Paths that do not exist.
        looked_for: String,
    },
    /// The platform's key or answer is unusable.
    #[error("cannot make evidence: {0}")]
    Platform(String),
}

/// Why bytes are not an evidence document: what was found instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Over the limit.
    #[error("{0} bytes, at most {MAX_DOCUMENT_BYTES} are accepted")]
    TooLarge(usize),
    /// Not the protobuf message.
    #[error("{0}")]
    Malformed(String),
    /// A field of the wrong size.
    #[error("{field} of {found} instead of {expected} bytes")]
    Length {
        /// The field.
        field: &'static str,
        /// Size expected, in bytes.
        expected: usize,
        /// Size found, in bytes.
        found: usize,
    },
}
