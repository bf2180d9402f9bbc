//! What the ledger is told and asked.

use actix::Message;
use keys::{CaKey, KeyError, ReplicaSecret, Salt, Seed};
use manifest::{KeyDigest, Manifest, OwnerKey, PolicyHash, RequestId, Timestamp, TransitionHash};
use storage_schema::{AppendError, LogError, SegmentError, StoreError, StreamHead, Trouble};
use zeroize::Zeroizing;

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
    /// Detached signatures over the new transition, ASN.1 DER.
    pub signatures: Vec<Vec<u8>>,
    /// The request.
    pub request: RequestId,
}

/// Proposes a manifest, for other workload owners to sign. Sets it at once when one signature is enough.
#[derive(Debug, Message)]
#[rtype(result = "Result<ProposalReply, SetManifestError>")]
pub struct ProposeManifest {
    /// The new manifest.
    pub manifest: Manifest,
    /// The documents of its policies, and maybe others.
    pub policies: Vec<Vec<u8>>,
    /// The proposer's signature over the new transition, ASN.1 DER.
    pub signature: Vec<u8>,
    /// The request.
    pub request: RequestId,
}

/// Signs a proposal; sets its manifest when that is the last signature needed.
#[derive(Debug, Message)]
#[rtype(result = "Result<ProposalReply, SetManifestError>")]
pub struct ApproveProposal {
    /// Which proposal.
    pub transition: TransitionHash,
    /// A workload owner's signature over it, ASN.1 DER.
    pub signature: Vec<u8>,
    /// The request.
    pub request: RequestId,
}

/// Vouches for this deployment's root, as a workload owner.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), SetManifestError>")]
pub struct Vouch {
    /// The owner's key, PKIX DER.
    pub public_key: Vec<u8>,
    /// Over `keys::root_voucher`, ASN.1 DER.
    pub signature: Vec<u8>,
    /// The request.
    pub request: RequestId,
}

/// Shuts policies and certificates' keys out of the mesh, as workload owners.
#[derive(Debug, Message)]
#[rtype(result = "Result<TransitionHash, SetManifestError>")]
pub struct Evict {
    /// Policies whose certificates count no more.
    pub policies: Vec<PolicyHash>,
    /// SHA-256 of the public keys of certificates that count no more.
    pub keys: Vec<KeyDigest>,
    /// Owners' signatures over `keys::eviction`, ASN.1 DER.
    pub signatures: Vec<Vec<u8>>,
    /// The request.
    pub request: RequestId,
}

/// Withdraws a proposal.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), SetManifestError>")]
pub struct WithdrawProposal {
    /// Which proposal.
    pub transition: TransitionHash,
    /// Key of the connection: SHA-256 of PKIX DER. Any workload owner's.
    pub caller: Option<KeyDigest>,
    /// The request.
    pub request: RequestId,
}

/// Where a proposal stands.
#[derive(Debug)]
pub enum ProposalReply {
    /// More signatures are needed.
    Pending {
        /// Its name, which is what owners sign.
        transition: TransitionHash,
        /// Who signed.
        signed: Vec<KeyDigest>,
        /// How many must.
        needed: usize,
    },
    /// It is in force.
    Set(SetManifestReply),
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
#[derive(Clone, Debug)]
pub struct SeedShares {
    /// One per owner, in the manifest's order.
    pub shares: Vec<SeedShare>,
    /// Needed next to the seed; not secret.
    pub salt: Salt,
}

/// The seed, encrypted to one owner.
#[derive(Clone, Debug)]
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
    /// A retry of a change that did take effect.
    #[error(
        "history moved on: this very change took effect at {at}, as transition {transition}; nothing is left to do"
    )]
    AlreadySet {
        /// What is in force.
        transition: TransitionHash,
        /// Since when.
        at: Timestamp,
    },
    /// A workload without its document.
    #[error("the request lacks the document of policy {0}, which the manifest names")]
    PolicyMissing(PolicyHash),
    /// The list of seedshare owners is fixed by the first manifest.
    #[error(
        "the seedshare owners, or how many of them are needed, differ from those of the current manifest, and \
         cannot be changed"
    )]
    SeedshareOwnersChanged,
    /// A seedshare owner's key cannot be encrypted to.
    #[error("SeedshareOwnerPubKeys[{index}]: {error}")]
    SeedshareOwnerKey {
        /// Place in the manifest.
        index: usize,
        /// What is wrong with it.
        error: KeyError,
    },
    /// A workload owner's or an auditor's key is none.
    #[error("{list}[{index}]: {error}")]
    OwnerKey {
        /// Which list.
        list: &'static str,
        /// Place in it.
        index: usize,
        /// What is wrong with it.
        error: KeyError,
    },
    /// Unsigned evidence, without this Coordinator's consent.
    #[error(
        "ReferenceValues.insecure: this Coordinator accepts unsigned evidence only if it was started with \
         --allow-insecure"
    )]
    InsecureNotAllowed,
    /// The first manifest must be signed by the bootstrap key.
    #[error(
        "this Coordinator accepts its first manifest only with a signature by the bootstrap key {0} over the \
         transition it makes"
    )]
    NeedsBootstrapKey(KeyDigest),
    /// More than could be of use.
    #[error("{found} signatures, at most {most} are of use")]
    TooManySignatures {
        /// How many could be.
        most: usize,
        /// Number found.
        found: usize,
    },
    /// The manifest in force demands several signatures.
    #[error(
        "the current manifest demands the signatures of {needed} workload owners for a change, and {valid} came; \
         propose the change (`contrast proposals propose --next FILE`), and let the others sign it (`contrast proposals approve`)"
    )]
    TooFewSignatures {
        /// How many it demands.
        needed: usize,
        /// How many valid ones came.
        valid: usize,
    },
    /// A name in it is somebody else's.
    #[error(transparent)]
    Names(#[from] manifest::ManifestError),
    /// Somebody withdrew this change; its signatures count no more.
    #[error(
        "change {0} was withdrawn: its signatures do not count until another manifest is set; to make it all the same, \
         change the manifest by a space and sign that"
    )]
    Withdrawn(TransitionHash),
    /// An eviction of nobody.
    #[error("no policy and no key: nobody to evict")]
    NobodyToEvict,
    /// More than pods can be given.
    #[error(
        "at most {0} policies and as many keys can be evicted: take policies out of the manifest instead"
    )]
    TooManyEvicted(usize),
    /// A Coordinator is no mesh peer.
    #[error("policy {0} is a Coordinator's: take it out of the manifest instead")]
    EvictsCoordinator(PolicyHash),
    /// Not signed by an owner, over this eviction, at this point of the history.
    #[error(
        "no signature is by a workload owner of the current manifest over this eviction at transition {0}"
    )]
    UntrustedEviction(TransitionHash),
    /// More owners than pods can be given.
    #[error("{0} owners vouch for this deployment already")]
    TooManyVouchers(usize),
    /// No such proposal.
    #[error("there is no proposal {0}: it was withdrawn, or another manifest was set since")]
    UnknownProposal(TransitionHash),
    /// Too many wait already.
    #[error("{0} proposals wait for signatures already; withdraw one")]
    TooManyProposals(usize),
    /// There is no manifest yet.
    #[error("no manifest configured")]
    NothingToChange,
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
    /// The seed is not in memory, and this is a retry of the change that was made last.
    #[error(
        "coordinator is in recovery mode; this very manifest was set at {at}, as transition {transition}: recover \
         with its seed shares. If it was the first one and the shares never arrived, nobody got anything from this \
         Coordinator yet: remove its state and set the manifest again"
    )]
    SetBeforeRestart {
        /// Where the history stands.
        transition: TransitionHash,
        /// Since when.
        at: Timestamp,
    },
    /// Not the caller's doing.
    #[error(transparent)]
    Fault(#[from] LedgerError),
}

/// Gives a restarted Coordinator its seed back.
#[derive(Message)]
#[rtype(result = "Result<RecoverReply, RecoverError>")]
pub struct Recover {
    /// The seed, or this owner's part of it where several owners are needed.
    pub seed: Zeroizing<Vec<u8>>,
    /// The salt.
    pub salt: Salt,
    /// Key of the connection: SHA-256 of PKCS#1 DER.
    pub caller: Option<KeyDigest>,
    /// The last checkpoint of the control stream that the owner verified, a signed note; empty: none.
    pub checkpoint: String,
    /// The owner's word that the history here counts although it does not extend that checkpoint.
    pub acceptance: Option<Acceptance>,
    /// The request.
    pub request: RequestId,
}

/// A seedshare owner's signature over `keys::older_head_acceptance`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The owner's key, PKCS#1 DER.
    pub public_key: Vec<u8>,
    /// RSASSA-PSS with SHA-256.
    pub signature: Vec<u8>,
}

/// How far a recovery came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoverReply {
    /// More owners must send their parts.
    Waiting {
        /// How many parts are there.
        received: usize,
        /// How many are needed.
        needed: usize,
    },
    /// Done.
    Recovered(TransitionHash),
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
    /// Bytes that are no seed, or no part of one.
    #[error(transparent)]
    Malformed(KeyError),
    /// A part that was not made for this owner of this deployment.
    #[error(
        "the share of seedshare owner {owner} is not the one that was made for it; {received} good ones wait"
    )]
    BadShare {
        /// Whose.
        owner: KeyDigest,
        /// How many good ones are there.
        received: usize,
    },
    /// The history here is not, or not yet, the one that the owner verified.
    #[error(
        "this Coordinator's history does not extend the checkpoint that you verified: {0}; its storage was rolled \
         back, or it is another Coordinator"
    )]
    RolledBack(String),
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
    /// A replica signs, or would, for whose key no evidence vouches.
    #[error("the key that replica {replica} signs with is not a Coordinator's by the manifest: {reason}")]
    NotVouched {
        /// Which one.
        replica: String,
        /// What is wrong with its evidence.
        reason: String,
    },
    /// A bug ended the actor; it is being rebuilt from the log.
    #[error("the ledger is restarting; fetch the history to see whether this took effect")]
    Restarting,
    /// The manifest in force was accepted by another version and breaks a rule of this one.
    #[error(
        "the manifest in force is none for this version of the Coordinator: {0}; go back to the version that accepted it, set a corrected manifest there, then upgrade"
    )]
    Manifest(#[from] manifest::ManifestError),
}

impl LedgerError {
    /// What follows from this error.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Append(error) => error.trouble(),
            Self::Log(error) => error.trouble(),
            Self::Store(error) => error.trouble(),
            Self::Restarting => Trouble::Unavailable,
            Self::Rewritten { .. } | Self::NotVouched { .. } => Trouble::Dishonest,
            Self::Key(_) | Self::BlobMissing { .. } | Self::Manifest(_) => Trouble::Fault,
        }
    }
}

/// Reads what other replicas wrote. The answer means: at the time of the question the shared store had
/// nothing that is not known here. It is the number of events.
#[derive(Debug, Message)]
#[rtype(result = "Result<u64, LedgerError>")]
pub struct Follow;

/// Takes over the secrets that an attested peer handed over.
#[derive(Message)]
#[rtype(result = "Result<(), AdoptError>")]
pub struct Adopt {
    /// The seed.
    pub seed: Seed,
    /// The salt.
    pub salt: Salt,
    /// The secret that opens the next change.
    pub replica_secret: ReplicaSecret,
    /// The mesh CA key in force.
    pub mesh_key: CaKey,
    /// The transition that these belong to.
    pub transition: TransitionHash,
    /// How far the peer's control stream goes, signed (`storage_schema::signed_head`).
    pub signed_head: Vec<u8>,
    /// The peer's address.
    pub from: String,
}

/// Why a peer's secrets were not taken.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The store shows no history.
    #[error("the event store shows no manifest, but the peer has one; is it the same store?")]
    NothingHere,
    /// A well-formed seed of another deployment, or a store with another deployment's log.
    #[error("the peer's seed does not belong to this history: {0}")]
    WrongSeed(&'static str),
    /// The peer's head is not genuine.
    #[error("the peer's head of the control stream is not genuine: {0}")]
    Head(#[from] SegmentError),
    /// The peer has signed events that the store does not show.
    #[error(
        "the event store shows {ours} events of the control stream, the peer has a signed head of {theirs}: \
         the store was rolled back or hides the rest"
    )]
    StoreBehind {
        /// Events here.
        ours: u64,
        /// Events that the peer's head signs.
        theirs: u64,
    },
    /// Two histories with one key.
    #[error("the history forked: the peer's tree head over {size} events is {theirs}, the store's is {ours}")]
    Forked {
        /// Number of events.
        size: u64,
        /// Tree head here.
        ours: String,
        /// Tree head of the peer.
        theirs: String,
    },
    /// The history went on since.
    #[error("the peer's secrets are of transition {theirs}, the history is at {ours}; ask again")]
    MovedOn {
        /// What is in force here.
        ours: TransitionHash,
        /// What was in force there.
        theirs: TransitionHash,
    },
    /// A key that does not fit the log.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Not the peer's doing.
    #[error(transparent)]
    Fault(#[from] LedgerError),
}
