//! What the control stream means, and what may be added to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use keys::{LogPublicKey, MeshCa, ReplicaSecret, SeedEngine, check_workload_owner_key};
use manifest::{
    EvidenceHash, KeyDigest, Manifest, ManifestHash, OwnerKey, PolicyHash, ReplicaId, Role, Timestamp,
    TransitionHash,
};
use serde::{Deserialize, Serialize};
use storage_schema::{
    Approval, Authorisation, Event, Fact, Projection, ShareCommitment, StreamHead, StreamId,
};

use super::{
    messages::{RecoverError, SetManifest, SetManifestError},
    proposals::{MAX_PROPOSALS, Permit, Proposal, approvals, permit, signers},
};

/// Mesh CAs that are remembered: as many as a list of mesh peers can name.
const MAX_AUTHORITIES: usize = continuity::MAX_OLDER + 1;

/// Most policies, and most keys, that can be evicted over the life of a deployment: every pod is given all of them.
const MAX_EVICTED: usize = 4096;

/// Most owners who vouch for a deployment, over all manifests: every pod is given all of them.
const MAX_VOUCHERS: usize = 64;

/// The fold over the control stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    entries: Vec<Entry>,
    recoveries: u64,
    heads: BTreeMap<StreamId, StreamHead>,
    proposals: BTreeMap<TransitionHash, Proposal>,
    /// Changes that were withdrawn since the last manifest was set: signatures of them count no more.
    #[serde(default)]
    withdrawn: BTreeSet<TransitionHash>,
    /// Owners who vouch for this deployment.
    #[serde(default)]
    vouchers: BTreeMap<KeyDigest, Voucher>,
    seed_shares: SeedShareRecord,
    ca: Option<CaRecord>,
    /// The key that each replica signs with.
    #[serde(default)]
    replicas: BTreeMap<ReplicaId, LogPublicKey>,
    /// Heads that were accepted after a disaster, oldest first.
    #[serde(default)]
    older_heads: Vec<OlderHead>,
    #[serde(default)]
    replica_evidence: BTreeSet<EvidenceHash>,
    /// Of these, those whose evidence was not looked at yet.
    #[serde(skip)]
    unjudged: Vec<Introduced>,
    /// The newest mesh CAs, the one in force last.
    authorities: Vec<MeshAuthority>,
    evicted: Evicted,
    /// What the entries name: hashes of manifests and policies, each once.
    manifests: BTreeSet<ManifestHash>,
    policies: BTreeSet<PolicyHash>,
}

/// A key that an event introduced, and that nobody has judged yet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Introduced {
    pub(super) replica: ReplicaId,
    pub(super) key: LogPublicKey,
    pub(super) evidence: EvidenceHash,
    pub(super) platform: String,
    pub(super) at: Timestamp,
    /// In force when it was introduced.
    pub(super) manifest: Option<ManifestHash>,
}

/// One manifest of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was set.
    pub at: Timestamp,
    /// The manifest.
    pub manifest: ManifestHash,
    /// The policies that came with it.
    pub policies: Vec<PolicyHash>,
    /// The transition it made.
    pub transition: TransitionHash,
    /// That transition's signature, ASN.1 DER.
    pub signature: Vec<u8>,
}

/// How the seed was handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedShareRecord {
    /// The owners, in the manifest's order.
    pub owners: Vec<KeyDigest>,
    /// How many are needed to recover; 0 and 1: each holds the whole seed.
    pub needed: usize,
    /// What identifies each owner's part; empty where each holds the whole seed.
    pub commitments: Vec<ShareCommitment>,
    /// Digest of the document with the encrypted shares; empty in deployments of earlier versions.
    #[serde(default)]
    pub document: Vec<u8>,
}

/// An owner's word for this deployment's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// The owner's key, PKIX DER.
    pub public_key: Vec<u8>,
    /// Over `keys::root_voucher`, ASN.1 DER.
    pub signature: Vec<u8>,
}

/// An older history that an owner accepted after a disaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderHead {
    /// When it was recorded.
    pub at: Timestamp,
    /// The owner's key, PKCS#1 DER.
    pub public_key: Vec<u8>,
    /// Over `keys::older_head_acceptance`.
    pub signature: Vec<u8>,
    /// What was given up.
    pub given_up: StreamHead,
    /// What counts instead.
    pub accepted: StreamHead,
}

/// The certificate authority that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRecord {
    /// Root certificate, DER.
    pub root: Vec<u8>,
    /// Mesh CA certificate, DER.
    pub mesh: Vec<u8>,
}

/// The mesh CA of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshAuthority {
    /// Number of the manifest. A recovery makes another CA for the same one.
    pub generation: u64,
    /// Its certificate, DER.
    pub mesh: Vec<u8>,
}

/// Whom owners shut out of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// By policy.
    pub policies: BTreeSet<PolicyHash>,
    /// By the digest of the certificate's public key.
    pub keys: BTreeSet<KeyDigest>,
    /// How often somebody was.
    times: u64,
}

impl Evicted {
    /// Whether this workload gets no certificate any more.
    pub fn contains(&self, policy: &PolicyHash, key: &KeyDigest) -> bool {
        self.policies.contains(policy) || self.keys.contains(key)
    }
}

impl State {
    /// The newest mesh CAs, the one in force last.
    pub fn authorities(&self) -> &[MeshAuthority] {
        &self.authorities
    }

    /// Whom owners shut out of the mesh.
    pub fn evicted(&self) -> &Evicted {
        &self.evicted
    }

    /// Number of the list of mesh peers: it grows with whatever changes the list.
    pub fn peers_number(&self) -> u64 {
        self.entries.len() as u64 + self.recoveries + self.evicted.times
    }

    fn add_authority(&mut self, mesh: &[u8]) {
        self.authorities.push(MeshAuthority { generation: self.entries.len() as u64, mesh: mesh.to_vec() });
        let excess = self.authorities.len().saturating_sub(MAX_AUTHORITIES);
        self.authorities.drain(..excess);
    }

    /// The certificate authority that is in force.
    pub fn ca(&self) -> Option<&CaRecord> {
        self.ca.as_ref()
    }

    /// The history, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What is in force.
    pub fn latest(&self) -> Option<&Entry> {
        self.entries.last()
    }

    /// How often a seedshare owner brought the seed back.
    pub fn recoveries(&self) -> u64 {
        self.recoveries
    }

    /// Where each replica stream stood at the last checkpoint.
    pub fn heads(&self) -> impl Iterator<Item = &StreamHead> {
        self.heads.values()
    }

    /// Proposals that wait for signatures, by the transition they would make.
    pub fn proposals(&self) -> &BTreeMap<TransitionHash, Proposal> {
        &self.proposals
    }

    /// Owners who vouch for this deployment's root, for pods that ask for that.
    pub fn vouchers(&self) -> &BTreeMap<KeyDigest, Voucher> {
        &self.vouchers
    }

    /// Histories that were given up, with the owner's word for each. There are few: each was a disaster.
    pub fn older_heads(&self) -> &[OlderHead] {
        &self.older_heads
    }

    /// How the seed was handed out.
    pub fn seed_shares(&self) -> &SeedShareRecord {
        &self.seed_shares
    }

    /// Whether this is the hash of a manifest or a policy of the history, or of a replica's evidence.
    pub fn names_blob(&self, hash: &[u8; 32]) -> bool {
        self.manifests.contains(&ManifestHash::from_bytes(*hash))
            || self.policies.contains(&PolicyHash::from_bytes(*hash))
            || self.replica_evidence.contains(&EvidenceHash::from_bytes(*hash))
    }

    /// The key that a replica signs with, if it introduced one.
    pub fn replica_key(&self, replica: &ReplicaId) -> Option<LogPublicKey> {
        self.replicas.get(replica).copied()
    }

    /// Whether a checkpoint may cover a stream that this key signed beside the log's: once replicas sign, only streams
    /// of replicas that introduced their key are covered further.
    pub fn may_cover(&self, stream: &StreamId, key: Option<LogPublicKey>) -> bool {
        match stream {
            StreamId::Replica(replica) => {
                self.replicas.is_empty() || self.replica_key(replica) == key && key.is_some()
            }
            StreamId::Control => false,
        }
    }

    pub(super) fn unjudged(&self) -> &[Introduced] {
        &self.unjudged
    }

    pub(super) fn judged_first(&mut self) {
        self.unjudged.remove(0);
    }

    pub(super) fn judged_all(&mut self) {
        self.unjudged.clear();
    }

    /// Those of the given heads that are news.
    pub fn moved(&self, heads: Vec<StreamHead>) -> Vec<StreamHead> {
        let news = |head: &StreamHead| head.size > self.heads.get(&head.stream).map_or(0, |known| known.size);
        heads.into_iter().filter(news).collect()
    }

    /// Folds one event in. Total: every event that was stored can be applied.
    pub fn apply(&mut self, event: &Event) {
        match &event.fact {
            Fact::ManifestSet {
                manifest,
                policies,
                transition,
                transition_signature,
                root_ca,
                mesh_ca,
                ..
            } => {
                self.ca = Some(CaRecord { root: root_ca.clone(), mesh: mesh_ca.clone() });
                self.manifests.insert(*manifest);
                self.policies.extend(policies);
                self.proposals.clear(); // they begin where history was, not where it is
                self.withdrawn.clear();
                self.entries.push(Entry {
                    at: event.at,
                    manifest: *manifest,
                    policies: policies.clone(),
                    transition: *transition,
                    signature: transition_signature.clone(),
                });
                self.add_authority(mesh_ca);
            }
            Fact::RecoveredByUser { root_ca, mesh_ca, .. } => {
                self.ca = Some(CaRecord { root: root_ca.clone(), mesh: mesh_ca.clone() });
                self.recoveries += 1;
                self.add_authority(mesh_ca);
            }
            Fact::PeersEvicted { policies, keys, .. } => {
                self.evicted.policies.extend(policies);
                self.evicted.keys.extend(keys);
                self.evicted.times += 1;
            }
            Fact::Checkpoint { heads } => {
                self.heads.extend(heads.iter().map(|head| (head.stream, head.clone())));
            }
            Fact::ManifestProposed { manifest, policies, transition, approval, .. } => {
                self.manifests.insert(*manifest);
                self.policies.extend(policies);
                let approvals = BTreeMap::from([(approval.owner, approval.signature.clone())]);
                let (at, manifest, policies) = (event.at, *manifest, policies.clone());
                self.proposals.insert(*transition, Proposal { at, manifest, policies, approvals });
            }
            Fact::ProposalApproved { transition, approval } => {
                if let Some(proposal) = self.proposals.get_mut(transition) {
                    proposal.approvals.insert(approval.owner, approval.signature.clone());
                }
            }
            Fact::ProposalWithdrawn { transition, .. } => {
                self.proposals.remove(transition);
                self.withdrawn.insert(*transition);
            }
            Fact::SeedSharesCreated { owners, threshold, commitments, document } => {
                self.seed_shares = SeedShareRecord {
                    owners: owners.clone(),
                    needed: usize::try_from(*threshold).unwrap_or(usize::MAX),
                    commitments: commitments.clone(),
                    document: document.clone(),
                };
            }
            Fact::DeploymentVouched { owner, public_key, signature } => {
                let voucher = Voucher { public_key: public_key.clone(), signature: signature.clone() };
                self.vouchers.insert(*owner, voucher);
            }
            Fact::OlderHeadAccepted { public_key, signature, given_up, accepted, .. } => {
                self.older_heads.push(OlderHead {
                    at: event.at,
                    public_key: public_key.clone(),
                    signature: signature.clone(),
                    given_up: given_up.clone(),
                    accepted: accepted.clone(),
                });
            }
            Fact::ReplicaVouched { key, evidence, platform } => {
                let (replica, key) = (event.replica, LogPublicKey::from_bytes(*key));
                self.replicas.insert(replica, key);
                self.replica_evidence.insert(*evidence);
                self.unjudged.push(Introduced {
                    replica,
                    key,
                    evidence: *evidence,
                    platform: platform.clone(),
                    at: event.at,
                    manifest: self.latest().map(|latest| latest.manifest),
                });
            }
            Fact::RecoveryGranted { .. }
            | Fact::RecoveryReceived { .. }
            | Fact::ReplicaStarted { .. }
            | Fact::ReplicaStopped
            | Fact::StorageRefused { .. }
            | Fact::CertificateIssued { .. }
            | Fact::ServiceCertificateIssued { .. }
            | Fact::AttestationRefused { .. }
            | Fact::TransitKeyUsed { .. }
            | Fact::SecretReleased { .. } => {}
        }
    }

    /// Whether `cmd` may extend the history, and by what right. `current` is the manifest in force;
    /// `bootstrap` is the key that must have signed the first one, if there is such a rule.
    pub fn decide_set_manifest(
        &self,
        cmd: &SetManifest,
        current: Option<&Manifest>,
        bootstrap: Option<&OwnerKey>,
    ) -> Result<Permit, SetManifestError> {
        let latest = self.latest().map(|entry| entry.transition);
        if let Some(got) = cmd.previous
            && got != latest.unwrap_or(TransitionHash::ZERO)
        {
            return Err(self.stale(got, &cmd.manifest));
        }
        // Who asks comes before what is asked: anybody can send 16 MiB of policies to be hashed.
        let transition = self.transition_of(&cmd.manifest);
        let permit = self.permit(cmd, current, transition, bootstrap)?;
        self.check_acceptable(&cmd.manifest, &cmd.policies, current)?;
        Ok(permit)
    }

    fn permit(
        &self,
        cmd: &SetManifest,
        current: Option<&Manifest>,
        transition: TransitionHash,
        bootstrap: Option<&OwnerKey>,
    ) -> Result<Permit, SetManifestError> {
        let Some(current) = current else { return first(cmd, transition, bootstrap) };
        if !cmd.signatures.is_empty() {
            self.not_withdrawn(&transition)?;
        }
        authorise(current, cmd, transition)
    }

    /// The transition that a manifest would make now.
    fn transition_of(&self, manifest: &Manifest) -> TransitionHash {
        TransitionHash::chain(self.latest().map(|entry| entry.transition), manifest.hash())
    }

    /// Whether a manifest and its policies are acceptable as such.
    fn check_acceptable(
        &self,
        manifest: &Manifest,
        policies: &[Vec<u8>],
        current: Option<&Manifest>,
    ) -> Result<(), SetManifestError> {
        manifest.check_names(current.map(Manifest::body))?;
        let documents: BTreeSet<PolicyHash> = policies.iter().map(|policy| PolicyHash::of(policy)).collect();
        if let Some(hash) = manifest.policies.keys().find(|hash| !documents.contains(hash)) {
            return Err(SetManifestError::PolicyMissing(*hash));
        }
        let lists = [
            ("WorkloadOwnerPubKeys", &manifest.workload_owner_pub_keys),
            ("AuditorPubKeys", &manifest.auditor_pub_keys),
        ];
        for (list, keys) in lists {
            for (index, key) in keys.iter().enumerate() {
                check_workload_owner_key(key.der()).map_err(|error| SetManifestError::OwnerKey {
                    list,
                    index,
                    error,
                })?;
            }
        }
        let same_owners = |current: &Manifest| {
            current.seedshare_owner_pub_keys == manifest.seedshare_owner_pub_keys
                && current.seedshare_owners_needed() == manifest.seedshare_owners_needed()
        };
        if !current.is_none_or(same_owners) {
            return Err(SetManifestError::SeedshareOwnersChanged);
        }
        Ok(())
    }

    /// A signature stays valid for its transition for ever, and everybody has read it in the history: whoever withdrew
    /// it would have withdrawn nothing, if it counted again.
    fn not_withdrawn(&self, transition: &TransitionHash) -> Result<(), SetManifestError> {
        match self.withdrawn.contains(transition) {
            true => Err(SetManifestError::Withdrawn(*transition)),
            false => Ok(()),
        }
    }

    /// Whether an owner may vouch for the deployment with this root key.
    pub fn decide_vouch(
        &self,
        public_key: &[u8],
        signature: &[u8],
        root_key: &[u8],
        current: &Manifest,
    ) -> Result<KeyDigest, SetManifestError> {
        let owner = KeyDigest::of(public_key);
        if !current.workload_owner_digests().any(|listed| listed == owner) {
            return Err(SetManifestError::NotAnOwner(owner));
        }
        if !self.vouchers.contains_key(&owner) && self.vouchers.len() >= MAX_VOUCHERS {
            return Err(SetManifestError::TooManyVouchers(MAX_VOUCHERS));
        }
        keys::verify_ecdsa_sha256(public_key, keys::root_voucher(root_key).as_bytes(), signature)
            .map_err(|_| SetManifestError::UntrustedSignature)?;
        Ok(owner)
    }

    /// Whether owners may shut these out of the mesh: their signatures.
    pub fn decide_evict(
        &self,
        policies: &[PolicyHash],
        keys: &[KeyDigest],
        signatures: &[Vec<u8>],
        current: &Manifest,
    ) -> Result<Vec<Approval>, SetManifestError> {
        let latest = self.latest().ok_or(SetManifestError::NothingToChange)?;
        if current.workload_owner_digests().next().is_none() {
            return Err(SetManifestError::UpdatesDisabled);
        }
        if policies.is_empty() && keys.is_empty() {
            return Err(SetManifestError::NobodyToEvict);
        }
        let with = |known: usize, more: usize| known + more <= MAX_EVICTED;
        if !with(self.evicted.policies.len(), policies.len()) || !with(self.evicted.keys.len(), keys.len()) {
            return Err(SetManifestError::TooManyEvicted(MAX_EVICTED));
        }
        if let Some(policy) = policies
            .iter()
            .find(|policy| current.policies.get(policy).is_some_and(|entry| entry.role == Role::Coordinator))
        {
            return Err(SetManifestError::EvictsCoordinator(*policy));
        }
        at_most(current.workload_owner_digests().count(), signatures.len())?;
        let message = keys::eviction(&latest.transition, policies, keys);
        let signed = signers(current, &message, signatures.iter().map(Vec::as_slice));
        let needed = current.workload_owners_needed();
        match signed.len() {
            0 => Err(SetManifestError::UntrustedEviction(latest.transition)),
            few if few < needed => Err(SetManifestError::TooFewSignatures { needed, valid: few }),
            _ => Ok(signed.into_iter().map(|(owner, signature)| Approval { owner, signature }).collect()),
        }
    }

    /// Why a change that begins at `got` cannot be: maybe it was made already and only the answer to
    /// it got lost.
    fn stale(&self, got: TransitionHash, manifest: &Manifest) -> SetManifestError {
        let expected = self.latest().map(|entry| entry.transition);
        let previous = Some(got).filter(|got| *got != TransitionHash::ZERO);
        match self.latest() {
            Some(latest) if latest.transition == TransitionHash::chain(previous, manifest.hash()) => {
                SetManifestError::AlreadySet { transition: latest.transition, at: latest.at }
            }
            _ => SetManifestError::StaleTransition { expected, got },
        }
    }

    /// What a change is told while the seed is away.
    pub(super) fn while_waiting(&self, manifest: &Manifest) -> SetManifestError {
        match self.latest() {
            Some(latest) if latest.manifest == manifest.hash() => {
                SetManifestError::SetBeforeRestart { transition: latest.transition, at: latest.at }
            }
            _ => SetManifestError::NeedsRecovery,
        }
    }

    /// Whether a workload owner may propose this manifest: the owners who signed it with this, at most
    /// one, and the transition it would make.
    pub fn decide_propose(
        &self,
        manifest: &Manifest,
        policies: &[Vec<u8>],
        signature: &[u8],
        current: &Manifest,
    ) -> Result<(TransitionHash, BTreeMap<KeyDigest, Vec<u8>>), SetManifestError> {
        let transition = self.transition_of(manifest);
        self.not_withdrawn(&transition)?;
        let mut signed = approvals(current, &transition, [signature].into_iter());
        if signed.is_empty() {
            return Err(SetManifestError::UntrustedSignature);
        }
        self.check_acceptable(manifest, policies, Some(current))?;
        match self.proposals.get(&transition) {
            Some(proposal) => signed.extend(proposal.approvals.clone()),
            None if self.proposals.len() >= MAX_PROPOSALS => {
                return Err(SetManifestError::TooManyProposals(self.proposals.len()));
            }
            None => {}
        }
        Ok((transition, signed))
    }

    /// Whether this is a workload owner's signature of a proposal: everybody who signed it now.
    pub fn decide_approve(
        &self,
        transition: &TransitionHash,
        signature: &[u8],
        current: &Manifest,
    ) -> Result<(&Proposal, BTreeMap<KeyDigest, Vec<u8>>), SetManifestError> {
        let proposal =
            self.proposals.get(transition).ok_or(SetManifestError::UnknownProposal(*transition))?;
        let signed = approvals(current, transition, [signature].into_iter());
        if signed.is_empty() {
            return Err(SetManifestError::UntrustedSignature);
        }
        Ok((proposal, signed.into_iter().chain(proposal.approvals.clone()).collect()))
    }

    /// Whether this key's owner may withdraw a proposal.
    pub fn decide_withdraw(
        &self,
        transition: &TransitionHash,
        caller: Option<KeyDigest>,
        current: &Manifest,
    ) -> Result<KeyDigest, SetManifestError> {
        if !self.proposals.contains_key(transition) {
            return Err(SetManifestError::UnknownProposal(*transition));
        }
        let caller = caller.ok_or(SetManifestError::NoKey)?;
        let is_owner = current.workload_owner_digests().any(|owner| owner == caller);
        is_owner.then_some(caller).ok_or(SetManifestError::NotAnOwner(caller))
    }

    /// Whether the owner of `key` may bring the seed back.
    pub fn decide_recover(&self, key: KeyDigest, current: &Manifest) -> Result<TransitionHash, RecoverError> {
        let owners = &current.seedshare_owner_pub_keys;
        if !owners.iter().map(OwnerKey::digest).any(|owner| owner == key) {
            return Err(RecoverError::NotAnOwner(key));
        }
        self.latest().map(|entry| entry.transition).ok_or(RecoverError::NothingToRecover)
    }
}

/// Unsigned evidence, which anybody can make, needs the consent of whoever runs this Coordinator.
pub(super) fn decide_platforms(manifest: &Manifest, allow_insecure: bool) -> Result<(), SetManifestError> {
    if manifest.reference_values.insecure && !allow_insecure {
        return Err(SetManifestError::InsecureNotAllowed);
    }
    Ok(())
}

/// The first manifest may be set by anyone, unless a bootstrap key must have signed it.
fn first(
    cmd: &SetManifest,
    transition: TransitionHash,
    bootstrap: Option<&OwnerKey>,
) -> Result<Permit, SetManifestError> {
    let Some(key) = bootstrap else {
        return Ok(Permit { transition, right: Authorisation::First, approvals: Vec::new() });
    };
    at_most(1, cmd.signatures.len())?;
    let (owner, message) = (key.digest(), transition.to_string());
    let is_signed =
        |signature: &&Vec<u8>| keys::verify_ecdsa_sha256(key.der(), message.as_bytes(), signature).is_ok();
    let signature =
        cmd.signatures.iter().find(is_signed).ok_or(SetManifestError::NeedsBootstrapKey(owner))?.clone();
    let approvals = vec![Approval { owner, signature }];
    Ok(Permit { transition, right: Authorisation::Bootstrap(owner), approvals })
}

/// Anybody can send signatures, and each costs time to verify: no more than owners could have made.
fn at_most(most: usize, found: usize) -> Result<(), SetManifestError> {
    if found > most { Err(SetManifestError::TooManySignatures { most, found }) } else { Ok(()) }
}

/// By the client's key or by detached signatures, each from a workload owner of the manifest in
/// force (docs/spec/control-plane.md, sections 7.3 and 7.4).
fn authorise(
    current: &Manifest,
    cmd: &SetManifest,
    transition: TransitionHash,
) -> Result<Permit, SetManifestError> {
    if current.workload_owner_digests().next().is_none() {
        return Err(SetManifestError::UpdatesDisabled);
    }
    if !cmd.signatures.is_empty() {
        at_most(current.workload_owner_digests().count(), cmd.signatures.len())?;
        let signatures = cmd.signatures.iter().map(Vec::as_slice);
        return permit(current, transition, approvals(current, &transition, signatures));
    }
    let caller = cmd.caller.ok_or(SetManifestError::NoKey)?;
    if !current.workload_owner_digests().any(|owner| owner == caller) {
        return Err(SetManifestError::NotAnOwner(caller));
    }
    match current.workload_owners_needed() {
        1 => Ok(Permit { transition, right: Authorisation::OwnerKey(caller), approvals: Vec::new() }),
        // A connection's key leaves nothing that others could check later.
        needed => Err(SetManifestError::TooFewSignatures { needed, valid: 0 }),
    }
}

impl Projection for State {
    const NAME: &'static str = "manifest history 6";

    fn apply(&mut self, _: u64, event: &Event) {
        Self::apply(self, event);
    }
}

/// Whose certificates count in the mesh.
#[derive(Debug, PartialEq, Eq)]
pub struct SignedPeers {
    /// The list.
    pub list: continuity::Peers,
    /// What travels: signed by the mesh CA in force, with the root's certificate for it.
    pub bytes: Vec<u8>,
}

/// What everybody but the ledger sees: immutable, replaced as a whole.
#[derive(Clone)]
pub struct Snapshot {
    /// The folded history.
    pub state: Arc<State>,
    /// What the Coordinator can do now.
    pub phase: Phase,
    /// Whose certificates count in the mesh, signed; none while there is nobody to sign.
    pub peers: Option<Arc<SignedPeers>>,
}

impl Snapshot {
    /// The manifest in force, if there is one and the seed is in memory.
    pub fn active(&self) -> Option<&Arc<Active>> {
        match &self.phase {
            Phase::Active(active) => Some(active),
            Phase::NeedsRecovery | Phase::Uninitialised => None,
        }
    }

    /// The manifest in force, or why there is none.
    pub fn require(&self) -> Result<&Arc<Active>, NotInForce> {
        match &self.phase {
            Phase::Active(active) => Ok(active),
            Phase::NeedsRecovery => Err(NotInForce::NeedsRecovery),
            Phase::Uninitialised => Err(NotInForce::NoManifest),
        }
    }
}

/// Why this Coordinator can act on no manifest. Clients match the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInForce {
    /// None was ever set.
    #[error("no manifest configured")]
    NoManifest,
    /// There is a history, but the seed is not in memory.
    #[error("coordinator is in recovery mode")]
    NeedsRecovery,
}

/// What a Coordinator can do (docs/spec/control-plane.md, section 7.1).
#[derive(Clone)]
pub enum Phase {
    /// No manifest was ever set.
    Uninitialised,
    /// There is a history, but the seed is not in memory.
    NeedsRecovery,
    /// In force.
    Active(Arc<Active>),
}

/// A manifest in force, with the keys to act on it.
pub struct Active {
    /// Number of manifests so far.
    pub generation: u64,
    /// The transition in force.
    pub transition: TransitionHash,
    /// Its signature, ASN.1 DER.
    pub signature: Vec<u8>,
    /// The manifest.
    pub manifest: Arc<Manifest>,
    /// Keys of the deployment.
    pub engine: Arc<SeedEngine>,
    /// Certificate authority of this generation.
    pub ca: MeshCa,
    /// Secret shared with the other replicas.
    pub replica_secret: ReplicaSecret,
    /// Every manifest, oldest first.
    pub manifests: Vec<Arc<[u8]>>,
    /// Every policy document of the history.
    pub policies: Vec<Arc<[u8]>>,
}

impl Active {
    /// Bytes of all manifests and policies of the history, which some answers repeat.
    pub fn history_bytes(&self) -> usize {
        self.manifests.iter().chain(&self.policies).map(|document| document.len()).sum()
    }

    /// Whether a workload with this policy may receive the secrets of a Coordinator.
    pub fn is_coordinator(&self, policy: &PolicyHash) -> bool {
        self.manifest.policies.get(policy).is_some_and(|entry| entry.role == Role::Coordinator)
    }
}

#[cfg(test)]
mod tests {
    use manifest::{ReplicaId, RequestId};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const POLICY: &[u8] = b"policy of the Coordinator";

    fn manifest(owners: &[&str], note: u32) -> Manifest {
        let text = json!({
            "Policies": { PolicyHash::of(POLICY).to_string(): { "SANs": ["coordinator"], "Role": "coordinator" } },
            "ReferenceValues": { "snp": [{
                "ProductName": "Milan",
                "TrustedMeasurement": "22".repeat(48),
                "MinimumTCB": {
                    "BootloaderVersion": 3, "TEEVersion": 0, "SNPVersion": 8, "MicrocodeVersion": 115
                },
                "Platform": note.to_string(),
            }] },
            "WorkloadOwnerKeyDigests": owners.iter().map(|o| KeyDigest::of(o.as_bytes())).collect::<Vec<_>>(),
            "SeedshareOwnerPubKeys": ["00"],
        });
        Manifest::parse(text.to_string().as_bytes()).unwrap()
    }

    fn set(manifest: Manifest) -> SetManifest {
        SetManifest {
            manifest,
            policies: vec![POLICY.to_vec()],
            previous: None,
            caller: None,
            signatures: vec![],
            request: RequestId::from_bytes([0; 16]),
        }
    }

    fn event(fact: Fact) -> Event {
        let [replica, request] = [[1; 16], [2; 16]];
        Event {
            at: Timestamp::from_millis(7),
            replica: ReplicaId::from_bytes(replica),
            request: RequestId::from_bytes(request),
            fact,
        }
    }

    fn manifest_set(manifest: &Manifest, previous: Option<TransitionHash>) -> Event {
        event(Fact::ManifestSet {
            generation: 1,
            manifest: manifest.hash(),
            policies: vec![PolicyHash::of(POLICY)],
            previous,
            transition: TransitionHash::chain(previous, manifest.hash()),
            transition_signature: vec![1],
            authorised_by: Authorisation::First,
            wrapped_mesh_key: vec![],
            root_ca: vec![],
            mesh_ca: vec![],
            approvals: vec![],
        })
    }

    fn refusal(cmd: &SetManifest, current: &Manifest) -> SetManifestError {
        let mut state = State::default();
        state.apply(&manifest_set(current, None));
        state.decide_set_manifest(cmd, Some(current), None).unwrap_err()
    }

    #[test]
    fn first_manifest_may_be_set_by_anyone_but_needs_its_policies() {
        let first = set(manifest(&[], 1));
        let permit = State::default().decide_set_manifest(&first, None, None).unwrap();
        assert_eq!(permit.right, Authorisation::First);
        assert_eq!(permit.transition, TransitionHash::chain(None, first.manifest.hash()));
        let without = SetManifest { policies: vec![], ..first };
        let refused = State::default().decide_set_manifest(&without, None, None);
        assert!(
            matches!(refused, Err(SetManifestError::PolicyMissing(hash)) if hash == PolicyHash::of(POLICY))
        );
    }

    #[test]
    fn update_needs_an_owner_of_the_manifest_in_force() {
        let current = manifest(&["anna"], 1);
        let next = |caller: Option<&str>| SetManifest {
            caller: caller.map(|name| KeyDigest::of(name.as_bytes())),
            ..set(manifest(&["ben"], 2))
        };
        assert!(matches!(refusal(&next(None), &current), SetManifestError::NoKey));
        assert!(matches!(refusal(&next(Some("ben")), &current), SetManifestError::NotAnOwner(_)));
        let forged = SetManifest { signatures: vec![vec![1, 2, 3]], ..next(Some("anna")) };
        assert!(matches!(refusal(&forged, &current), SetManifestError::UntrustedSignature));
        let flood = SetManifest { signatures: vec![vec![1, 2, 3]; 100_000], ..next(Some("anna")) };
        let owners = current.workload_owner_digests().count();
        assert!(
            matches!(refusal(&flood, &current), SetManifestError::TooManySignatures { most, .. } if most == owners)
        );
        assert!(matches!(refusal(&next(Some("anna")), &manifest(&[], 1)), SetManifestError::UpdatesDisabled));
        let mut state = State::default();
        state.apply(&manifest_set(&current, None));
        let permit = state.decide_set_manifest(&next(Some("anna")), Some(&current), None).unwrap();
        assert_eq!(permit.right, Authorisation::OwnerKey(KeyDigest::of(b"anna")));
    }

    #[test]
    fn stale_transition_is_refused_with_both_values() {
        let current = manifest(&["anna"], 1);
        let stale = SetManifest { previous: Some(TransitionHash::ZERO), ..set(manifest(&["anna"], 2)) };
        let latest = TransitionHash::chain(None, current.hash());
        let text = refusal(&stale, &current).to_string();
        assert!(text.contains(&latest.to_string()) && text.contains(&TransitionHash::ZERO.to_string()));
    }

    #[test]
    fn only_a_seedshare_owner_recovers() {
        let current = manifest(&[], 1);
        let mut state = State::default();
        state.apply(&manifest_set(&current, None));
        assert!(matches!(
            state.decide_recover(KeyDigest::of(b"stranger"), &current),
            Err(RecoverError::NotAnOwner(_))
        ));
        let owner = KeyDigest::of(&[0]);
        assert_eq!(
            state.decide_recover(owner, &current).unwrap(),
            TransitionHash::chain(None, current.hash())
        );
    }

    proptest! {
        /// Whatever is in the log, folding its encoding rebuilds the live state at every prefix.
        #[test]
        fn replay_of_any_prefix_rebuilds_the_live_state(notes in prop::collection::vec(prop::option::of(0_u32..9), 0..12)) {
            let (mut live, mut log) = (State::default(), Vec::new());
            for note in notes {
                let previous = live.latest().map(|entry| entry.transition);
                let next = match note {
                    Some(note) => manifest_set(&manifest(&[], note), previous),
                    None => event(Fact::ReplicaStopped),
                };
                live.apply(&next);
                log.push(next.to_cbor().unwrap());
                let mut replayed = State::default();
                log.iter().for_each(|bytes| replayed.apply(&Event::from_cbor(bytes).unwrap()));
                prop_assert_eq!(&replayed, &live);
            }
        }
    }
}
