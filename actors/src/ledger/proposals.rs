//! Changes that several workload owners must sign: proposed by one, signed by others, in force as
//! soon as enough did.
//!
//! What an owner signs is the transition, which names the new manifest and the whole history before
//! it; so a proposal is void once any other manifest is set, and a signature serves no other change.

use std::collections::BTreeMap;

use keys::verify_ecdsa_sha256;
use manifest::{KeyDigest, Manifest, ManifestHash, PolicyHash, Timestamp, TransitionHash};
use serde::{Deserialize, Serialize};
use storage_schema::{Approval, Authorisation};

use super::messages::SetManifestError;

/// Most proposals that wait for signatures at once, over all owners.
pub(super) const MAX_PROPOSALS: usize = 32;

/// A manifest that waits for signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// When it was proposed.
    pub at: Timestamp,
    /// The manifest.
    pub manifest: ManifestHash,
    /// Its policies.
    pub policies: Vec<PolicyHash>,
    /// Who signed it, and the signatures; the proposer is among them.
    pub approvals: BTreeMap<KeyDigest, Vec<u8>>,
}

/// What makes a change permitted.
#[derive(Debug)]
pub struct Permit {
    /// The transition that the change makes.
    pub transition: TransitionHash,
    /// By what right.
    pub right: Authorisation,
    /// The signatures that show it.
    pub approvals: Vec<Approval>,
}

/// The valid ones of some signatures over a transition, each owner once.
pub(super) fn approvals<'a>(
    current: &Manifest,
    transition: &TransitionHash,
    signatures: impl Iterator<Item = &'a [u8]>,
) -> BTreeMap<KeyDigest, Vec<u8>> {
    signers(current, &transition.to_string(), signatures)
}

/// The valid ones of some signatures over a text by workload owners, each owner once.
pub(super) fn signers<'a>(
    current: &Manifest,
    message: &str,
    signatures: impl Iterator<Item = &'a [u8]>,
) -> BTreeMap<KeyDigest, Vec<u8>> {
    let digests = &current.workload_owner_key_digests;
    let signer = |signature: &[u8]| {
        let mut owners = current.workload_owner_pub_keys.iter();
        let full =
            owners.find(|owner| verify_ecdsa_sha256(owner.der(), message.as_bytes(), signature).is_ok());
        match full {
            Some(owner) => Some(owner.digest()),
            None if digests.is_empty() => None,
            None => keys::recover_signer(message.as_bytes(), signature, digests),
        }
    };
    signatures.filter_map(|signature| Some((signer(signature)?, signature.to_vec()))).collect()
}

/// Whether these signatures are enough for a change of `current`.
pub(super) fn permit(
    current: &Manifest,
    transition: TransitionHash,
    approvals: BTreeMap<KeyDigest, Vec<u8>>,
) -> Result<Permit, SetManifestError> {
    let needed = current.workload_owners_needed();
    let right = match approvals.keys().copied().collect::<Vec<_>>().as_slice() {
        [] => return Err(SetManifestError::UntrustedSignature),
        few if few.len() < needed => {
            return Err(SetManifestError::TooFewSignatures { needed, valid: few.len() });
        }
        [one] => Authorisation::Signature(*one),
        several => Authorisation::Owners(several.to_vec()),
    };
    let approvals = approvals.into_iter().map(|(owner, signature)| Approval { owner, signature }).collect();
    Ok(Permit { transition, right, approvals })
}
