//! The simulated platform: real evidence formats under a self-made root, judged by the same
//! verifier. It protects nothing, and says so in its root's name.
//!
//! A machine is a directory of certificates and keys. Whoever can read the keys can forge the
//! machine's evidence: that is why only a manifest that lists the root believes it.

mod snp;
mod tdx;

use std::{fs, path::Path, time::Duration};

use aws_lc_rs::digest::{SHA384, digest};
use manifest::{KeyDigest, PolicyHash, ReferenceValues, Timestamp};

use self::{snp::Processor, tdx::Platform};
use crate::{Evidence, EvidenceOid, IssueError, Issuer, ReportData, snp::AmdKeys};

/// How long certificates, revocation lists and collateral of a machine are valid.
const LIFETIME: Duration = Duration::from_hours(24 * 365 * 20);

/// What a simulated machine pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimulatedKind {
    /// An AMD processor with SEV-SNP.
    Snp,
    /// An Intel platform with TDX.
    Tdx,
}

/// A machine that makes evidence.
pub struct SimulatedMachine(Machine);

enum Machine {
    Snp(Box<Processor>),
    Tdx(Box<Platform>),
}

impl SimulatedMachine {
    /// Makes a root and one machine under it, and writes them to `directory`. Takes a few seconds
    /// for SNP, whose root and signing key are RSA-4096.
    pub fn create(directory: &Path, kind: SimulatedKind, now: Timestamp) -> Result<Self, IssueError> {
        fs::create_dir_all(directory).map_err(|source| io(directory, source))?;
        Ok(Self(match kind {
            SimulatedKind::Snp => Machine::Snp(Box::new(Processor::create(directory, now)?)),
            SimulatedKind::Tdx => Machine::Tdx(Box::new(Platform::create(directory, now)?)),
        }))
    }

    /// Opens a directory that [`SimulatedMachine::create`] wrote.
    pub fn open(directory: &Path) -> Result<Self, IssueError> {
        Ok(Self(match kind_of(directory) {
            SimulatedKind::Snp => Machine::Snp(Box::new(Processor::open(directory)?)),
            SimulatedKind::Tdx => Machine::Tdx(Box::new(Platform::open(directory)?)),
        }))
    }

    /// Replaces the revocation list in `directory` by one that names the machine's signing key
    /// (SNP) or the machine itself (TDX). A machine that is opened afterwards sends it along.
    pub fn revoke(directory: &Path, now: Timestamp) -> Result<(), IssueError> {
        match kind_of(directory) {
            SimulatedKind::Snp => Processor::revoke(directory, now),
            SimulatedKind::Tdx => Platform::revoke(directory, now),
        }
    }

    /// What a manifest lists to believe this machine: SHA-256 of its root certificate.
    pub fn root(&self) -> KeyDigest {
        match &self.0 {
            Machine::Snp(processor) => processor.root(),
            Machine::Tdx(platform) => platform.root(),
        }
    }

    /// Reference values that the guests of this machine meet.
    pub fn reference_values(&self) -> ReferenceValues {
        let simulated_roots = vec![self.root()];
        match &self.0 {
            Machine::Snp(processor) => {
                let snp = vec![processor.reference_values()];
                ReferenceValues { snp, simulated_roots, ..ReferenceValues::default() }
            }
            Machine::Tdx(platform) => {
                let tdx = vec![platform.reference_values()];
                ReferenceValues { tdx, simulated_roots, ..ReferenceValues::default() }
            }
        }
    }

    /// Signing key and root of an SNP machine; nothing for TDX.
    pub(crate) fn amd_keys(&self) -> AmdKeys {
        match &self.0 {
            Machine::Snp(processor) => processor.keys(),
            Machine::Tdx(_) => AmdKeys { ask: Vec::new(), asvk: Vec::new(), ark: Vec::new() },
        }
    }

    /// A guest on this machine that was started with `policy` as its host data.
    pub fn guest(self, policy: PolicyHash) -> SimulatedGuest {
        SimulatedGuest { machine: self, policy, change: |_| {} }
    }
}

/// A guest: a machine, and the policy it was started with.
pub struct SimulatedGuest {
    machine: SimulatedMachine,
    policy: PolicyHash,
    change: fn(&mut [u8]),
}

impl SimulatedGuest {
    /// The same guest, but `change` is made to its report (SNP) or to the body of its quote (TDX)
    /// before it is signed: honest evidence of a guest that nobody should trust.
    #[must_use]
    pub fn altered(self, change: fn(&mut [u8])) -> Self {
        Self { change, ..self }
    }
}

impl Issuer for SimulatedGuest {
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError> {
        let (oid, document) = match &self.machine.0 {
            Machine::Snp(processor) => {
                let evidence = processor.evidence(data, self.policy, self.change)?;
                (EvidenceOid::Snp, evidence.to_protobuf())
            }
            Machine::Tdx(platform) => {
                let evidence = platform.evidence(data, self.policy, self.change)?;
                (EvidenceOid::Tdx, evidence.to_protobuf())
            }
        };
        Ok(Evidence { oid, document: document.map_err(platform)? })
    }
}

fn kind_of(directory: &Path) -> SimulatedKind {
    if directory.join("pck.der").exists() { SimulatedKind::Tdx } else { SimulatedKind::Snp }
}

fn platform(error: impl ToString) -> IssueError {
    IssueError::Platform(error.to_string())
}

fn io(path: &Path, source: std::io::Error) -> IssueError {
    IssueError::Io { path: path.display().to_string(), source }
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, IssueError> {
    let path = directory.join(name);
    fs::read(&path).map_err(|source| io(&path, source))
}

fn write(directory: &Path, name: &str, content: &[u8]) -> Result<(), IssueError> {
    let path = directory.join(name);
    fs::write(&path, content).map_err(|source| io(&path, source))
}

/// A measurement that stands for something there is no image of.
fn label(text: &[u8]) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes.copy_from_slice(digest(&SHA384, text).as_ref());
    bytes
}
