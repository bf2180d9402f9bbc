//! What the ledger is told and asked.

use actix::Message;
use keys::{KeyError, Salt, Seed};
use manifest::{KeyDigest, Manifest, OwnerKey, PolicyHash, RequestId, TransitionHash};
use storage_schema::{AppendError, LogError, StoreError, StreamHead};

/// Extends the history with a manifest.
#[derive(Debug, Message)]
#[rtype(result = "Result<SetManifestReply, SetManifestError>")]
pub struct SetManifest {
    /// The new manifest.
    pub manifest: Manifest,
    /// The documents of its policies, and maybe others.
    pub policies: Vec<Vec<u8>>,
    /// What the sender believes is in force; `None`: it does not care.
    pub previous: Option<TransitionHash>,
    /// Key of the connection: SHA-256 of PKIX DER (EC) or PKCS#1 DER (RSA).
    pub caller: Option<KeyDigest>,
    /// Detached signature over the new transition, ASN.1 DER.
    pub signature: Option<Vec<u8>>,
    /// The request.
    pub request: RequestId,
}

/// The answer to [`SetManifest`].
#[derive(Debug)]
pub struct SetManifestReply {
    /// What is in force now.
    pub transition: TransitionHash,
    /// Root certificate, PEM.
    pub root_pem: String,
    /// Mesh CA certificate, PEM.
    pub mesh_pem: String,
    /// For the first manifest: the seed, encrypted to its owners.
    pub shares: Option<SeedShares>,
}

/// The seed, encrypted to each of its owners.
#[derive(Debug)]
pub struct SeedShares {
    /// One per owner, in the manifest's order.
    pub shares: Vec<SeedShare>,
    /// Needed next to the seed; not secret.
    pub salt: Salt,
}

/// The seed, encrypted to one owner.
#[derive(Debug)]
pub struct SeedShare {
    /// The owner.
    pub owner: OwnerKey,
    /// RSA-OAEP ciphertext.
    pub ciphertext: Vec<u8>,
}

/// Why a manifest was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SetManifestError {
    /// Somebody else extended the history first.
    #[error(
        "history moved on: the latest transition is {}, not {got}; fetch it and try again",
        .expected.map_or_else(|| "none".to_owned(), |hash| hash.to_string())
    )]
    StaleTransition {
        /// What is in force.
        expected: Option<TransitionHash>,
        /// What the sender believed.
        got: TransitionHash,
    },
    /// A workload without its document.
    #[error("the request lacks the document of policy {0}, which the manifest names")]
    PolicyMissing(PolicyHash),
    /// The list of seedshare owners is fixed by the first manifest.
    #[error("the seedshare owners differ from those of the current manifest, and cannot be changed")]
    SeedshareOwnersChanged,
    /// A seedshare owner's key cannot be encrypted to.
    #[error("SeedshareOwnerPubKeys[{index}]: {error}")]
    SeedshareOwnerKey {
        /// Place in the manifest.
        index: usize,
        /// What is wrong with it.
        error: KeyError,
    },
    /// The manifest in force lists no workload owner.
    #[error("updates are disabled: the current manifest lists no workload owner")]
    UpdatesDisabled,
    /// No client key, no signature.
    #[error("this change needs the key or the signature of a workload owner")]
    NoKey,
    /// A key that the manifest in force does not list.
    #[error("the key {0} is not a workload owner of the current manifest")]
    NotAnOwner(KeyDigest),
    /// A signature by nobody that the manifest in force lists.
    #[error("the signature is not by a workload owner of the current manifest over this change")]
    UntrustedSignature,
    /// The seed is not in memory.
    #[error("coordinator is in recovery mode")]
    NeedsRecovery,
    /// Not the caller's doing.
    #[error(transparent)]
    Fault(#[from] LedgerError),
}

/// Gives a restarted Coordinator its seed back.
#[derive(Message)]
#[rtype(result = "Result<TransitionHash, RecoverError>")]
pub struct Recover {
    /// The seed.
    pub seed: Seed,
    /// The salt.
    pub salt: Salt,
    /// Key of the connection: SHA-256 of PKCS#1 DER.
    pub caller: Option<KeyDigest>,
    /// The request.
    pub request: RequestId,
}

/// Why a recovery was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is no history.
    #[error("no manifest configured")]
    NothingToRecover,
    /// The seed is in memory already.
    #[error("coordinator is already recovered")]
    AlreadyRecovered,
    /// No client key.
    #[error("recovery needs the key of a seedshare owner as client key")]
    NoKey,
    /// A key that the manifest in force does not list.
    #[error("the key {0} is not a seedshare owner of the current manifest")]
    NotAnOwner(KeyDigest),
    /// A well-formed seed of another deployment.
    #[error("this seed does not belong to this history: {0}")]
    WrongSeed(&'static str),
    /// Not the caller's doing.
    #[error(transparent)]
    Fault(#[from] LedgerError),
}

/// Records where the replica streams stand; nothing is written when that is no news.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), LedgerError>")]
pub struct RecordHeads {
    /// What the store gives back, verified.
    pub heads: Vec<StreamHead>,
    /// The request.
    pub request: RequestId,
}

/// The ledger's own trouble.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The history was not written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The history cannot be trusted.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The engine.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key operation.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A stream that does not extend what its last checkpoint covers.
    #[error(
        "stream {stream}: the last checkpoint covers {size} events with the tree head {expected}, the store's are others or fewer ({found})"
    )]
    Rewritten {
        /// The stream.
        stream: String,
        /// Number of events at the checkpoint.
        size: u64,
        /// Tree head at the checkpoint.
        expected: String,
        /// What the store yields there.
        found: String,
    },
    /// A document that the history names.
    #[error("the store lacks {what} {hash}, which the history names")]
    BlobMissing {
        /// What kind.
        what: &'static str,
        /// Its name.
        hash: String,
    },
    /// A bug ended the actor; it is being rebuilt from the log.
    #[error("the ledger is restarting; fetch the history to see whether this took effect")]
    Restarting,
    /// A stored manifest that does not parse any more.
    #[error("stored manifest: {0}")]
    Manifest(#[from] manifest::ManifestError),
}
