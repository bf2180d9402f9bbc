//! What is asked of a Coordinator and shown by it, whichever way leads there.

use attestation::Claims;
use continuity::Voucher;
use manifest::{Manifest, ManifestHash, TransitionHash};
use zeroize::Zeroizing;

/// The whole history as a verified Coordinator shows it: the evidence covers the transition that it adds up to, and the
/// certificates.
pub struct ShownHistory {
    /// What the evidence proved.
    pub claims: Claims,
    /// Oldest first; the last one is in force.
    pub manifests: Vec<Vec<u8>>,
    /// The policies that they name.
    pub policies: Vec<Vec<u8>>,
    /// PEM.
    pub root_ca: Vec<u8>,
    /// PEM.
    pub mesh_ca: Vec<u8>,
    /// Not covered by the evidence: each is a signature that the caller verifies.
    pub vouchers: Vec<Voucher>,
    /// Histories that were given up after a disaster, oldest first; the caller verifies their signatures.
    pub older_heads: Vec<OlderHead>,
}

/// A history that was given up after a disaster, and who accepted that.
#[derive(Clone, Debug, PartialEq)]
pub struct OlderHead {
    /// The owner's key, PKCS#1 DER.
    pub public_key: Vec<u8>,
    /// His signature over both heads.
    pub signature: Vec<u8>,
    /// Number of events, and tree head.
    pub given_up: (u64, [u8; 32]),
    /// What counts instead.
    pub accepted: (u64, [u8; 32]),
    /// Milliseconds since 1970.
    pub at: u64,
}

impl ShownHistory {
    /// The transition that the manifests add up to.
    pub fn latest(&self) -> TransitionHash {
        latest_of(&self.manifests)
    }
}

/// The latest transition of a history, recomputed from its manifests; zeros stand for no history.
pub(crate) fn latest_of(manifests: &[Vec<u8>]) -> TransitionHash {
    let chain = |latest, manifest: &Vec<u8>| Some(TransitionHash::chain(latest, ManifestHash::of(manifest)));
    manifests.iter().fold(None, chain).unwrap_or(TransitionHash::ZERO)
}

/// A manifest to be set.
pub struct NewManifest<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The policies that it names.
    pub policies: Vec<Vec<u8>>,
    /// Detached signatures of owners.
    pub signatures: Vec<Vec<u8>>,
    /// What must be in force; `None`: anything. Zeros: nothing.
    pub previous: Option<TransitionHash>,
}

/// A seed, or a part of it, for a Coordinator that waits for it.
pub struct SeedShareForm<'a> {
    /// The seed or the part.
    pub seed: Zeroizing<Vec<u8>>,
    /// The salt of the deployment.
    pub salt: Vec<u8>,
    /// The checkpoint that the owner remembers, a signed note: the Coordinator refuses an older log. Empty: none.
    pub checkpoint: String,
    /// Recover even if other replicas are healthy.
    pub force: bool,
    /// The owner's signature that he accepts the history which is there, and his public key, PKCS#1 DER.
    pub accept_older_head: Option<(Vec<u8>, Vec<u8>)>,
    /// The seedshare owner's key, PEM.
    pub owner_key: &'a Zeroizing<String>,
}
