//! Whether the other end is the Coordinator that a manifest describes.
//!
//! Upstream's initializer does not ask. With a manifest at hand we do: a workload then never takes a secret or
//! a CA from anybody else, even for the moment until somebody notices.

use std::path::Path;

use anyhow::Context as _;
use atls::PeerCertificate;
use manifest::{Manifest, Role, Timestamp};

/// Verifies Coordinators by a manifest.
pub(crate) struct Judge(Manifest);

impl Judge {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest = Manifest::parse(&bytes).with_context(|| path.display().to_string())?;
        Ok(Self(manifest))
    }

    /// Its evidence by the reference values, its policy by the role; or why not.
    pub(crate) fn verify(&self, peer: &PeerCertificate, now: Timestamp) -> Result<(), String> {
        let evidence = peer.evidence.as_ref().ok_or("it sent no evidence")?;
        let expected = peer.report_data();
        // Half a millisecond, once: not worth a thread of its own.
        let claims = attestation::verify(evidence, &expected, &self.0.reference_values, now)
            .map_err(|refusal| refusal.to_string())?;
        let policy = claims.policy_hash();
        match self.0.policies.get(&policy).map(|entry| entry.role) {
            Some(Role::Coordinator) => Ok(()),
            _ => {
                Err(format!("it is genuine, but its policy {policy} is not a Coordinator's in the manifest"))
            }
        }
    }
}
