//! The facts in the log.
//!
//! Variants and fields are only ever added; a stored variant keeps its name, its fields and its
//! meaning. `testdata/events/` holds one file of each, which must decode for ever. Secrets are
//! never events.

use manifest::{
    EvidenceHash, KeyDigest, ManifestHash, PolicyHash, ReplicaId, RequestId, SerialNumber, Timestamp,
    TransitionHash,
};
use serde::{Deserialize, Serialize};

use crate::{CodecError, StreamId, codec};

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it was decided.
    pub at: Timestamp,
    /// Which incarnation of which replica decided it.
    pub replica: ReplicaId,
    /// The request that caused it.
    pub request: RequestId,
    /// What happened.
    pub fact: Fact,
}

impl Event {
    /// The bytes that are stored, and that are an entry of the Merkle tree: CBOR with named fields.
    pub fn to_cbor(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    /// Decodes stored bytes. Whoever has them from a store authenticates them first; see
    /// [`crate::Log`].
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(bytes)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    /// A manifest became the current one. Control stream.
    ManifestSet {
        /// Number of manifests so far, this one included.
        generation: u64,
        /// Content, a blob.
        manifest: ManifestHash,
        /// Policy documents that it names, blobs.
        policies: Vec<PolicyHash>,
        /// What was in force before.
        previous: Option<TransitionHash>,
        /// What is in force now.
        transition: TransitionHash,
        /// ECDSA P-384 over the transition, ASN.1 DER.
        #[serde(with = "serde_bytes")]
        transition_signature: Vec<u8>,
        /// Who was allowed to make this change, and by what.
        authorised_by: Authorisation,
        /// The new mesh CA key, encrypted under the replica secret.
        #[serde(with = "serde_bytes")]
        wrapped_mesh_key: Vec<u8>,
        /// Root certificate, DER.
        #[serde(with = "serde_bytes")]
        root_ca: Vec<u8>,
        /// Mesh CA certificate, DER.
        #[serde(with = "serde_bytes")]
        mesh_ca: Vec<u8>,
        /// The detached signatures that allowed it, with which an auditor can check it; empty where the
        /// key of a connection did.
        #[serde(default)]
        approvals: Vec<Approval>,
    },
    /// A workload owner proposed a manifest, for other owners to sign. Control stream. It is void as
    /// soon as any manifest is set.
    ManifestProposed {
        /// Content, a blob.
        manifest: ManifestHash,
        /// Policy documents that it names, blobs.
        policies: Vec<PolicyHash>,
        /// What is in force.
        previous: TransitionHash,
        /// What would be in force; this is what owners sign.
        transition: TransitionHash,
        /// The proposer's own signature.
        approval: Approval,
    },
    /// Another workload owner signed a proposal, but more are needed. Control stream.
    ProposalApproved {
        /// Which proposal.
        transition: TransitionHash,
        /// The signature.
        approval: Approval,
    },
    /// A workload owner withdrew a proposal. Control stream.
    ProposalWithdrawn {
        /// Which proposal.
        transition: TransitionHash,
        /// SHA-256 of the owner's key, PKIX DER.
        owner: KeyDigest,
    },
    /// The seed was encrypted to its owners. Control stream, after the first manifest.
    SeedSharesCreated {
        /// SHA-256 of each owner's key, PKCS#1 DER.
        owners: Vec<KeyDigest>,
        /// How many of them it takes to recover; 0 (first version of this event) and 1: each holds the
        /// whole seed.
        #[serde(default)]
        threshold: u32,
        /// What identifies each owner's part of the seed, in the owners' order; empty where each holds
        /// the whole seed.
        #[serde(default)]
        commitments: Vec<ShareCommitment>,
        /// Digest of the document with the encrypted shares (see `keys::seed_shares_digest`); empty in earlier
        /// versions of this event.
        #[serde(default, with = "serde_bytes")]
        document: Vec<u8>,
    },
    /// A workload owner vouched for this deployment's root, for pods that ask for that. Control stream.
    DeploymentVouched {
        /// SHA-256 of the owner's key, PKIX DER.
        owner: KeyDigest,
        /// The owner's key, PKIX DER.
        #[serde(with = "serde_bytes")]
        public_key: Vec<u8>,
        /// Over `keys::root_voucher`, ECDSA with SHA-256, ASN.1 DER.
        #[serde(with = "serde_bytes")]
        signature: Vec<u8>,
    },
    /// Workload owners shut somebody out of the mesh, for good: policies and keys whose certificates count no more.
    /// Control stream.
    PeersEvicted {
        /// Policies, named by the manifest or not.
        policies: Vec<PolicyHash>,
        /// SHA-256 of certificates' public keys, SubjectPublicKeyInfo DER.
        keys: Vec<KeyDigest>,
        /// Where the history stood; the signatures cover it.
        transition: TransitionHash,
        /// The owners' signatures over `keys::eviction`.
        approvals: Vec<Approval>,
    },
    /// A seedshare owner gave a restarted Coordinator its seed. Control stream.
    RecoveredByUser {
        /// SHA-256 of the owner's key, PKCS#1 DER; where several were needed, of the last one.
        owner: KeyDigest,
        /// Where several were needed: the others.
        #[serde(default)]
        with: Vec<KeyDigest>,
        /// Where the history stood.
        transition: TransitionHash,
        /// The new mesh CA key, encrypted under the new replica secret.
        #[serde(with = "serde_bytes")]
        wrapped_mesh_key: Vec<u8>,
        /// Root certificate, DER.
        #[serde(with = "serde_bytes")]
        root_ca: Vec<u8>,
        /// Mesh CA certificate, DER.
        #[serde(with = "serde_bytes")]
        mesh_ca: Vec<u8>,
    },
    /// A peer received the secrets. Replica stream.
    RecoveryGranted {
        /// The peer's policy.
        policy: PolicyHash,
        /// The peer's platform.
        platform: String,
    },
    /// The secrets came from a peer. Replica stream.
    RecoveryReceived {
        /// Address of the peer.
        from: String,
    },
    /// A replica opened its stream. Replica stream, first event.
    ReplicaStarted {
        /// Version of the program.
        version: String,
    },
    /// A replica closed its stream in order. Replica stream, last event.
    ReplicaStopped,
    /// The shared store, or a peer, showed a past that is not the one that was verified. Replica stream.
    StorageRefused {
        /// What it was caught at.
        reason: String,
    },
    /// A workload got a certificate. Replica stream.
    CertificateIssued {
        /// Serial number.
        serial: SerialNumber,
        /// The certificate, DER.
        #[serde(with = "serde_bytes")]
        certificate: Vec<u8>,
        /// The workload's policy.
        policy: PolicyHash,
        /// Names in the certificate.
        sans: Vec<String>,
        /// Platform kind, simulated ones marked so.
        platform: String,
        /// Raw evidence, a blob.
        evidence: EvidenceHash,
        /// Security versions that the evidence reports.
        tcb: String,
        /// Manifest history at that moment.
        transition: TransitionHash,
        /// The nonce that the evidence answers, with which the verification can be repeated. 32
        /// bytes; empty in the first version of this event.
        #[serde(default, with = "serde_bytes")]
        nonce: Vec<u8>,
        /// Why the evidence was accepted: the reference values that it met.
        #[serde(default)]
        verdict: String,
        /// The key that the evidence is bound to, SubjectPublicKeyInfo DER, where that is not the
        /// certificate's own: the workload asked with a certification request for another key.
        #[serde(default, with = "serde_bytes")]
        attested_key: Vec<u8>,
        /// The HPKE key that the evidence covers, too, where the workload asked over HTTP; the nonce is then the
        /// challenge that it was given. Empty: it asked over attested TLS.
        #[serde(default, with = "serde_bytes")]
        hpke_key: Vec<u8>,
    },
    /// The Coordinator gave itself a certificate for a service of its own, such as the transit engine.
    /// Replica stream.
    ServiceCertificateIssued {
        /// Serial number.
        serial: SerialNumber,
        /// The certificate, DER.
        #[serde(with = "serde_bytes")]
        certificate: Vec<u8>,
        /// What it is for.
        service: String,
        /// Manifest history at that moment.
        transition: TransitionHash,
    },
    /// A workload was refused. Replica stream.
    AttestationRefused {
        /// Address it came from.
        source: String,
        /// Each failed check, with expected and found.
        reason: String,
        /// Hash of the evidence, if there was any; the bytes are not kept.
        evidence: Option<EvidenceHash>,
        /// How many refusals were left out before this one, because their source or everybody
        /// together had too many.
        #[serde(default)]
        left_out: u64,
    },
    /// Where the replica streams stand, so that one signed control head covers everything. Control
    /// stream.
    Checkpoint {
        /// Each stream that moved since the last checkpoint.
        heads: Vec<StreamHead>,
    },
    /// A seedshare owner accepted, after a disaster, a history that does not extend the one that he had verified. Control
    /// stream, before the recovery that it allowed.
    OlderHeadAccepted {
        /// SHA-256 of the owner's key.
        owner: KeyDigest,
        /// The owner's key, PKCS#1 DER.
        #[serde(with = "serde_bytes")]
        public_key: Vec<u8>,
        /// Over `keys::older_head_acceptance`, RSASSA-PSS with SHA-256.
        #[serde(with = "serde_bytes")]
        signature: Vec<u8>,
        /// What is given up: the owner's checkpoint.
        given_up: StreamHead,
        /// What counts instead: the history up to this event.
        accepted: StreamHead,
    },
    /// A replica introduced the key that it signs its segments with. Control stream, in the first segment that it signs; the
    /// replica is the event's own.
    ReplicaVouched {
        /// Ed25519. Its private half is in the memory of that process and nowhere else.
        #[serde(with = "serde_bytes")]
        key: [u8; 32],
        /// Evidence over the key, a blob: by a Coordinator of the manifest in force after this segment.
        evidence: EvidenceHash,
        /// Platform kind, simulated ones marked so.
        platform: String,
    },
    /// A workload used a key of the transit engine. Replica stream. The first use of a while has an event of its own,
    /// those that follow are counted in another: the sum of all is the number of uses.
    TransitKeyUsed {
        /// Name of the key: a workload secret's.
        key: String,
        /// Its version; absent: several, which were too many to be counted apart.
        version: Option<u32>,
        /// Certificate of the caller; absent: of several, as above.
        serial: Option<SerialNumber>,
        /// Messages that were encrypted.
        encrypted: u64,
        /// Messages that were decrypted.
        decrypted: u64,
        /// Attempts to decrypt what the key had not made.
        failed: u64,
        /// When the first of them was. The event's own time is that of the last, or later.
        since: Timestamp,
    },
    /// A workload secret left the process. Replica stream.
    SecretReleased {
        /// Name of the secret.
        id: String,
        /// Certificate it went with.
        serial: SerialNumber,
    },
}

/// Tree head of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHead {
    /// The stream.
    pub stream: StreamId,
    /// Number of events.
    pub size: u64,
    /// Head of the tree over them.
    #[serde(with = "serde_bytes")]
    pub root: [u8; 32],
}

/// Identifies a part of the seed without giving it away: a SHA-256 (see `keys::PartialSeed`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShareCommitment(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// A workload owner's signature over a transition: ECDSA with SHA-256 over its 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// SHA-256 of the owner's key, PKIX DER.
    pub owner: KeyDigest,
    /// ASN.1 DER.
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

/// By what right a manifest was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Authorisation {
    /// The first manifest may be set by anyone.
    First,
    /// The client's connection key, by its digest.
    OwnerKey(KeyDigest),
    /// A detached signature by the key of that digest.
    Signature(KeyDigest),
    /// The first manifest, signed by the bootstrap key that the Coordinator was started with.
    Bootstrap(KeyDigest),
    /// Detached signatures by as many owners as the manifest in force demands.
    Owners(Vec<KeyDigest>),
}

impl Fact {
    /// The variant's name, as it stands in encodings.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ManifestSet { .. } => "ManifestSet",
            Self::ManifestProposed { .. } => "ManifestProposed",
            Self::ProposalApproved { .. } => "ProposalApproved",
            Self::ProposalWithdrawn { .. } => "ProposalWithdrawn",
            Self::SeedSharesCreated { .. } => "SeedSharesCreated",
            Self::DeploymentVouched { .. } => "DeploymentVouched",
            Self::PeersEvicted { .. } => "PeersEvicted",
            Self::RecoveredByUser { .. } => "RecoveredByUser",
            Self::RecoveryGranted { .. } => "RecoveryGranted",
            Self::RecoveryReceived { .. } => "RecoveryReceived",
            Self::StorageRefused { .. } => "StorageRefused",
            Self::ReplicaStarted { .. } => "ReplicaStarted",
            Self::ReplicaStopped => "ReplicaStopped",
            Self::CertificateIssued { .. } => "CertificateIssued",
            Self::ServiceCertificateIssued { .. } => "ServiceCertificateIssued",
            Self::AttestationRefused { .. } => "AttestationRefused",
            Self::Checkpoint { .. } => "Checkpoint",
            Self::OlderHeadAccepted { .. } => "OlderHeadAccepted",
            Self::ReplicaVouched { .. } => "ReplicaVouched",
            Self::TransitKeyUsed { .. } => "TransitKeyUsed",
            Self::SecretReleased { .. } => "SecretReleased",
        }
    }
}
