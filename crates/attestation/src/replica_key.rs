//! Whether a key is a replica's: the one that a Coordinator signs its part of the log with.

use manifest::{Manifest, PolicyHash, Role, Timestamp};

use crate::{Evidence, Platform, Refusal, ReportData, verify};

/// Why a key is nobody's that the log is to believe.
#[derive(Debug, thiserror::Error)]
pub enum NotAReplicaKey {
    /// The evidence.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Genuine, but no Coordinator.
    #[error("policy {0} does not have the role coordinator in the manifest")]
    Role(PolicyHash),
    /// Recorded by a newer version.
    #[error("the platform {0:?} is not known")]
    Platform(String),
}

/// Verifies evidence over a replica's key by the manifest in force at that time; gives its platform.
pub fn verify_replica_key(
    replica: &[u8; 16],
    key: &[u8; 32],
    evidence: &Evidence,
    manifest: &Manifest,
    at: Timestamp,
) -> Result<Platform, NotAReplicaKey> {
    let expected = ReportData::replica_key(replica, key);
    let claims = verify(evidence, &expected, &manifest.reference_values, at)?;
    let policy = claims.policy_hash();
    match manifest.policies.get(&policy).map(|entry| entry.role) {
        Some(Role::Coordinator) => Ok(claims.platform()),
        _ => Err(NotAReplicaKey::Role(policy)),
    }
}

/// The same for evidence as the log has it: the name of its platform, and a document.
pub fn verify_recorded_replica_key(
    replica: &[u8; 16],
    key: &[u8; 32],
    (platform, document): (&str, Vec<u8>),
    manifest: &Manifest,
    at: Timestamp,
) -> Result<(), NotAReplicaKey> {
    let kind = Platform::ALL.into_iter().find(|known| known.to_string() == platform);
    let kind = kind.ok_or_else(|| NotAReplicaKey::Platform(platform.to_owned()))?;
    let evidence = Evidence { oid: kind.evidence_oid(), document };
    verify_replica_key(replica, key, &evidence, manifest, at).map(drop)
}
