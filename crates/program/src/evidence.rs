//! Where a program's own evidence comes from.

use std::{path::PathBuf, sync::Arc};

use attestation::{
    ConfigfsTsm, InsecureGuest, IssueError, Issuer, ReportData, TdxGuest, detect, named_policy,
    simulated::SimulatedMachine,
};
use manifest::PolicyHash;

/// Options that every attesting program has. Without any, the machine's own hardware is asked.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Evidence of this machine")]
pub struct EvidenceOptions {
    /// Make evidence as this simulated machine. Not hardware: protects nothing.
    #[arg(
        long,
        env = "CONTRAST_SIMULATED_MACHINE",
        value_name = "DIR",
        conflicts_with = "insecure_evidence"
    )]
    simulated_machine: Option<PathBuf>,
    /// Make unsigned evidence, which anybody can. Proves nothing.
    #[arg(long, env = "CONTRAST_INSECURE_EVIDENCE")]
    insecure_evidence: bool,
    /// SHA-256 of this program's own policy document: its host data where no hardware holds it.
    #[arg(long, env = "CONTRAST_POLICY_HASH", value_name = "HEX")]
    policy_hash: Option<PolicyHash>,
    /// Where the kernel makes reports (configfs-tsm).
    #[arg(long, env = "CONTRAST_TSM_DIRECTORY", value_name = "DIR", default_value = ConfigfsTsm::ROOT)]
    tsm_directory: PathBuf,
}

impl EvidenceOptions {
    /// The issuer; says in the log what it is if it is not hardware.
    pub fn issuer(&self) -> Result<Arc<dyn Issuer>, IssueError> {
        let policy = || {
            let missing =
                "--policy-hash is needed where no hardware holds it: SHA-256 of the policy document";
            self.policy_hash.ok_or_else(|| IssueError::Platform(missing.into()))
        };
        if let Some(directory) = &self.simulated_machine {
            let machine = SimulatedMachine::open(directory)?;
            let root = machine.root();
            tracing::warn!(%root, "simulated machine: evidence is NOT HARDWARE and protects nothing");
            return Ok(Arc::new(machine.guest(policy()?)));
        }
        if self.insecure_evidence {
            tracing::warn!("insecure: evidence is NOT SIGNED and proves nothing");
            return Ok(Arc::new(InsecureGuest::new(policy()?)));
        }
        Ok(Arc::from(detect(&self.tsm_directory)?))
    }

    /// The policy that this machine was started for, from its hardware and not from its host: an SNP report comes over a
    /// channel with the firmware, a TDX quote does not, so the TDX module is asked itself.
    pub fn policy(&self) -> Result<PolicyHash, IssueError> {
        if self.simulated_machine.is_none() && !self.insecure_evidence && TdxGuest::is_present() {
            return TdxGuest.policy();
        }
        let evidence = self.issuer()?.issue(&ReportData::own())?;
        let unnamed = || IssueError::Platform("the machine's evidence names no policy".into());
        named_policy(&evidence).ok_or_else(unnamed)
    }
}
