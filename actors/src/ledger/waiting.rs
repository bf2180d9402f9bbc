//! What the ledger keeps in memory until it knows more: parts of the seed that wait for others, and changes whose outcome
//! is not known.

use std::{collections::BTreeMap, sync::Arc};

use keys::{PartialSeed, ReplicaSecret, Salt, SeedEngine};
use manifest::{KeyDigest, RequestId};

use super::{
    messages::{RecoverError, SeedShares},
    state::SeedShareRecord,
};

/// Parts of the seed that owners sent, in memory only: after a restart they send them again.
#[derive(Default)]
pub(super) struct ReceivedShares(pub(super) BTreeMap<KeyDigest, PartialSeed>);

impl ReceivedShares {
    /// Adds a part that is the one made for `owner`; a second time changes nothing.
    pub(super) fn add(
        &mut self,
        owner: KeyDigest,
        bytes: &[u8],
        salt: &Salt,
        record: &SeedShareRecord,
    ) -> Result<(), RecoverError> {
        let share = PartialSeed::from_bytes(bytes).map_err(RecoverError::Malformed)?;
        let place = record.owners.iter().position(|listed| *listed == owner);
        let commitment = place.and_then(|place| record.commitments.get(place));
        if commitment.map(|commitment| commitment.0) != Some(share.commitment(salt)) {
            return Err(RecoverError::BadShare { owner, received: self.0.len() });
        }
        self.0.insert(owner, share);
        Ok(())
    }
}

/// A change that was sent to the store and is not known to be in force, and the keys that open it.
pub(super) struct Unsure {
    pub(super) request: RequestId,
    pub(super) engine: Arc<SeedEngine>,
    pub(super) secret: ReplicaSecret,
    /// Of the first manifest: nobody else can ever make them.
    pub(super) shares: Option<SeedShares>,
}
