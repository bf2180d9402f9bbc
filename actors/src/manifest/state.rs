//! What the control stream means, and what may be added to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use keys::{MeshCa, ReplicaSecret, SeedEngine};
use manifest::{KeyDigest, Manifest, ManifestHash, OwnerKey, PolicyHash, Role, Timestamp, TransitionHash};
use serde::{Deserialize, Serialize};
use storage_schema::{Authorisation, Event, Fact, Projection, StreamHead, StreamId};

use super::messages::{RecoverError, SetManifest, SetManifestError};

/// The fold over the control stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    entries: Vec<Entry>,
    recoveries: u64,
    heads: BTreeMap<StreamId, StreamHead>,
    /// What the entries name: hashes of manifests and policies, each once.
    manifests: BTreeSet<ManifestHash>,
    policies: BTreeSet<PolicyHash>,
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

impl State {
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

    /// Whether this is the hash of a manifest or a policy of the history.
    pub fn names_blob(&self, hash: &[u8; 32]) -> bool {
        self.manifests.contains(&ManifestHash::from_bytes(*hash))
            || self.policies.contains(&PolicyHash::from_bytes(*hash))
    }

    /// Those of the given heads that are news.
    pub fn moved(&self, heads: Vec<StreamHead>) -> Vec<StreamHead> {
        let news = |head: &StreamHead| head.size > 0 && self.heads.get(&head.stream) != Some(head);
        heads.into_iter().filter(news).collect()
    }

    /// Folds one event in. Total: every event that was stored can be applied.
    pub fn apply(&mut self, event: &Event) {
        match &event.fact {
            Fact::ManifestSet { manifest, policies, transition, transition_signature, .. } => {
                self.manifests.insert(*manifest);
                self.policies.extend(policies);
                self.entries.push(Entry {
                    at: event.at,
                    manifest: *manifest,
                    policies: policies.clone(),
                    transition: *transition,
                    signature: transition_signature.clone(),
                });
            }
            Fact::RecoveredByUser { .. } => self.recoveries += 1,
            Fact::Checkpoint { heads } => {
                self.heads.extend(heads.iter().map(|head| (head.stream, head.clone())));
            }
            Fact::SeedSharesCreated { .. }
            | Fact::RecoveryGranted { .. }
            | Fact::RecoveryReceived { .. }
            | Fact::ReplicaStarted { .. }
            | Fact::ReplicaStopped
            | Fact::CertificateIssued { .. }
            | Fact::AttestationRefused { .. }
            | Fact::SecretReleased { .. } => {}
        }
    }

    /// Whether `cmd` may extend the history, and by what right. `current` is the manifest in force.
    pub fn decide_set_manifest(
        &self,
        cmd: &SetManifest,
        current: Option<&Manifest>,
    ) -> Result<(TransitionHash, Authorisation), SetManifestError> {
        let latest = self.latest().map(|entry| entry.transition);
        if let Some(got) = cmd.previous
            && got != latest.unwrap_or(TransitionHash::ZERO)
        {
            return Err(SetManifestError::StaleTransition { expected: latest, got });
        }
        for hash in cmd.manifest.policies.keys() {
            if !cmd.policies.iter().any(|policy| PolicyHash::of(policy) == *hash) {
                return Err(SetManifestError::PolicyMissing(*hash));
            }
        }
        let transition = TransitionHash::chain(latest, cmd.manifest.hash());
        let Some(current) = current else { return Ok((transition, Authorisation::First)) };
        if current.seedshare_owner_pub_keys != cmd.manifest.seedshare_owner_pub_keys {
            return Err(SetManifestError::SeedshareOwnersChanged);
        }
        Ok((transition, authorise(current, cmd, &transition)?))
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

/// By the client's key or by a detached signature, each from a workload owner of the manifest in
/// force (spec control-plane.md 7.3 and 7.4).
fn authorise(
    current: &Manifest,
    cmd: &SetManifest,
    transition: &TransitionHash,
) -> Result<Authorisation, SetManifestError> {
    if current.workload_owner_digests().next().is_none() {
        return Err(SetManifestError::UpdatesDisabled);
    }
    if let Some(signature) = &cmd.signature {
        let message = transition.to_string();
        let signer = current
            .workload_owner_pub_keys
            .iter()
            .find(|owner| keys::verify_ecdsa_sha256(owner.der(), message.as_bytes(), signature).is_ok());
        return signer
            .map(|owner| Authorisation::Signature(owner.digest()))
            .ok_or(SetManifestError::UntrustedSignature);
    }
    let caller = cmd.caller.ok_or(SetManifestError::NoKey)?;
    if current.workload_owner_digests().any(|owner| owner == caller) {
        Ok(Authorisation::OwnerKey(caller))
    } else {
        Err(SetManifestError::NotAnOwner(caller))
    }
}

impl Projection for State {
    const NAME: &'static str = "manifest history 2";

    fn apply(&mut self, _: u64, event: &Event) {
        Self::apply(self, event);
    }
}

/// What everybody but the ledger sees: immutable, replaced as a whole.
#[derive(Clone)]
pub struct Snapshot {
    /// The folded history.
    pub state: Arc<State>,
    /// What the Coordinator can do now.
    pub phase: Phase,
}

/// What a Coordinator can do (spec control-plane.md 7.1).
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
            signature: None,
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
        })
    }

    fn refusal(cmd: &SetManifest, current: &Manifest) -> SetManifestError {
        let mut state = State::default();
        state.apply(&manifest_set(current, None));
        state.decide_set_manifest(cmd, Some(current)).unwrap_err()
    }

    #[test]
    fn first_manifest_may_be_set_by_anyone_but_needs_its_policies() {
        let first = set(manifest(&[], 1));
        let (transition, right) = State::default().decide_set_manifest(&first, None).unwrap();
        assert_eq!(right, Authorisation::First);
        assert_eq!(transition, TransitionHash::chain(None, first.manifest.hash()));
        let without = SetManifest { policies: vec![], ..first };
        let refused = State::default().decide_set_manifest(&without, None);
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
        let forged = SetManifest { signature: Some(vec![1, 2, 3]), ..next(Some("anna")) };
        assert!(matches!(refusal(&forged, &current), SetManifestError::UntrustedSignature));
        assert!(matches!(refusal(&next(Some("anna")), &manifest(&[], 1)), SetManifestError::UpdatesDisabled));
        let mut state = State::default();
        state.apply(&manifest_set(&current, None));
        let (_, right) = state.decide_set_manifest(&next(Some("anna")), Some(&current)).unwrap();
        assert_eq!(right, Authorisation::OwnerKey(KeyDigest::of(b"anna")));
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
