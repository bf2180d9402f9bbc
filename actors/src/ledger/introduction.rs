//! Introducing this replica's own key in the control stream, and judging those of others ([`super::replica_key`]).

use attestation::{verify_recorded_replica_key, verify_replica_key};
use keys::LogPublicKey;
use manifest::{EvidenceHash, Manifest, ManifestHash};
use storage_schema::{EventStore, Fact};

use super::{actor::Ledger, messages::LedgerError, state::Introduced};
use crate::Clock;

impl<S: EventStore, C: Clock> Ledger<S, C> {
    /// Judges what was read. What is refused stays, so that nothing is believed of a log with a stranger's signature.
    pub(super) fn judge_introduced(&mut self) -> Result<(), LedgerError> {
        while let Some(introduced) = self.state.unjudged().first().cloned() {
            let Introduced { replica, key, evidence, platform, at, manifest } = introduced;
            let refused = |reason: String| LedgerError::NotVouched { replica: replica.to_string(), reason };
            let manifest = manifest.ok_or_else(|| refused("there was no manifest to judge it by".into()))?;
            let manifest = self.manifest_named(&manifest)?;
            let document = self.blob("evidence", *evidence.as_bytes())?.to_vec();
            let recorded = (platform.as_str(), document);
            verify_recorded_replica_key(replica.as_bytes(), key.as_bytes(), recorded, &manifest, at)
                .map_err(|error| refused(error.to_string()))?;
            self.state.judged_first();
        }
        Ok(())
    }

    /// The event that introduces this replica's key, if it needs one: evidence of now, which the manifest must accept.
    /// `None`: it is introduced, or cannot be and the log has no replica's signature yet.
    pub(super) fn introduction(&self, facts: &[Fact]) -> Result<Option<Fact>, LedgerError> {
        let Some(own) = self.replica_key.as_ref().filter(|_| !self.signs()) else { return Ok(None) };
        let key = own.key().public();
        let set = facts.iter().find_map(|fact| match fact {
            Fact::ManifestSet { manifest, .. } => Some(*manifest),
            _ => None,
        });
        let Some(in_force) = self.state.latest().map(|latest| latest.manifest).or(set) else {
            return Ok(None);
        };
        let manifest = self.manifest_named(&in_force)?;
        let judged = own.evidence(self.replica).map_err(|error| error.to_string()).and_then(|evidence| {
            let (replica, key) = (self.replica.as_bytes(), key.as_bytes());
            let platform = verify_replica_key(replica, key, &evidence, &manifest, self.clock.now());
            Ok((platform.map_err(|error| error.to_string())?, evidence.document))
        });
        match judged {
            Ok((platform, document)) => {
                self.store.put_blob(&document)?;
                let evidence = EvidenceHash::of(&document);
                Ok(Some(Fact::ReplicaVouched {
                    key: *key.as_bytes(),
                    evidence,
                    platform: platform.to_string(),
                }))
            }
            Err(reason) if !self.log.position().is_signed_by_replicas() => {
                tracing::warn!(
                    %reason,
                    "the manifest does not accept this Coordinator's own evidence: what it writes is signed by the log's \
                     key alone"
                );
                Ok(None)
            }
            Err(reason) => Err(LedgerError::NotVouched { replica: self.replica.to_string(), reason }),
        }
    }

    /// Whether this replica's key was introduced.
    pub(super) fn signs(&self) -> bool {
        let own: Option<LogPublicKey> = self.replica_key.as_ref().map(|own| own.key().public());
        own.is_some() && self.state.replica_key(&self.replica) == own
    }

    fn manifest_named(&self, hash: &ManifestHash) -> Result<Manifest, LedgerError> {
        Ok(Manifest::parse(&self.blob("manifest", *hash.as_bytes())?)?)
    }
}
