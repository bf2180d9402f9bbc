//! The key that this process signs its segments with, beside the log's.
//!
//! The log's key follows from the seed, so whoever owns shares of the seed could write a log with it. This key is drawn
//! at each start and never leaves the process. Before it signs anything else, evidence over it goes into the control
//! stream; replicas that follow judge that evidence by the manifest in force, and so does an auditor.

use std::sync::Arc;

use attestation::{Evidence, IssueError, Issuer, ReportData};
use keys::{KeyError, LogKey};
use manifest::ReplicaId;

/// A replica's own key, and what makes evidence for it.
pub struct ReplicaKey {
    key: LogKey,
    issuer: Arc<dyn Issuer>,
}

impl ReplicaKey {
    /// Draws a key.
    pub fn generate(issuer: Arc<dyn Issuer>) -> Result<Self, KeyError> {
        let secret = zeroize::Zeroizing::new(keys::random::<32>()?);
        Ok(Self { key: LogKey::from_secret(secret.as_slice())?, issuer })
    }

    /// What signs.
    pub fn key(&self) -> &LogKey {
        &self.key
    }

    /// Evidence of now, for this name of this process.
    pub(super) fn evidence(&self, replica: ReplicaId) -> Result<Evidence, IssueError> {
        self.issuer.issue(&ReportData::replica_key(replica.as_bytes(), self.key.public().as_bytes()))
    }
}
