//! Owners with real keys, against a ledger on a store in memory.

use std::sync::Arc;

use keys::{generate_seedshare_owner_key, generate_workload_owner_key, sign_ecdsa_sha256};
use manifest::{KeyDigest, Manifest, OwnerKey, PolicyHash, ReplicaId, RequestId, Timestamp, TransitionHash};
use serde_json::{Value, json};
use storage_schema::{Checkpoint, Head, MemoryStore, StreamId};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{
    Acceptance, ApproveProposal, Ledger, Phase, ProposalReply, ProposeManifest, Recover, RecoverError,
    RecoverReply, SetManifest, SetManifestError, SetManifestReply, WithdrawProposal,
};
use crate::FixedClock;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const POLICY: &[u8] = b"policy of the Coordinator";
const REQUEST: RequestId = RequestId::from_bytes([2; 16]);

type TestLedger = Ledger<MemoryStore, FixedClock>;

struct Owner {
    pem: Zeroizing<String>,
    public: Vec<u8>,
}

impl Owner {
    fn workload() -> Self {
        let (pem, public) = generate_workload_owner_key().unwrap();
        Self { pem, public }
    }

    fn seedshare() -> Self {
        let (pem, public) = generate_seedshare_owner_key().unwrap();
        Self { pem, public }
    }

    fn digest(&self) -> KeyDigest {
        KeyDigest::of(&self.public)
    }

    fn sign(&self, transition: &TransitionHash) -> Vec<u8> {
        sign_ecdsa_sha256(&self.pem, transition.to_string().as_bytes()).unwrap()
    }
}

fn open(store: &Arc<MemoryStore>) -> TestLedger {
    let (publish, _) = watch::channel(TestLedger::nothing());
    let replica = ReplicaId::from_bytes([1; 16]);
    Ledger::open(Arc::clone(store), FixedClock(NOW), replica, Arc::new(publish)).unwrap()
}

fn manifest(note: u32, change: impl Fn(&mut Value)) -> Manifest {
    let mut value = json!({
        "Policies": { PolicyHash::of(POLICY).to_string(): { "SANs": ["coordinator"], "Role": "coordinator" } },
        "ReferenceValues": { "snp": [{
            "ProductName": "Milan",
            "TrustedMeasurement": "22".repeat(48),
            "MinimumTCB": { "BootloaderVersion": 3, "TEEVersion": 0, "SNPVersion": 8, "MicrocodeVersion": 115 },
            "Platform": note.to_string(),
        }] },
    });
    change(&mut value);
    Manifest::parse(value.to_string().as_bytes()).unwrap()
}

fn with_owners(note: u32, needed: u32, owners: &[&Owner]) -> Manifest {
    manifest(note, |m| {
        m["WorkloadOwnerPubKeys"] = owners.iter().map(|owner| hex::encode(&owner.public)).collect();
        m["WorkloadOwnerThreshold"] = needed.into();
    })
}

fn set(
    ledger: &mut TestLedger,
    manifest: Manifest,
    signatures: Vec<Vec<u8>>,
) -> Result<SetManifestReply, SetManifestError> {
    let policies = vec![POLICY.to_vec()];
    ledger.set_manifest(&SetManifest {
        manifest,
        policies,
        previous: None,
        caller: None,
        signatures,
        request: REQUEST,
    })
}

fn latest(ledger: &TestLedger) -> TransitionHash {
    ledger.state.latest().unwrap().transition
}

fn next(ledger: &TestLedger, manifest: &Manifest) -> TransitionHash {
    TransitionHash::chain(Some(latest(ledger)), manifest.hash())
}

fn propose(
    ledger: &mut TestLedger,
    manifest: &Manifest,
    by: &Owner,
) -> Result<ProposalReply, SetManifestError> {
    let signature = by.sign(&next(ledger, manifest));
    let policies = vec![POLICY.to_vec()];
    ledger.propose(&ProposeManifest { manifest: manifest.clone(), policies, signature, request: REQUEST })
}

#[test]
fn two_of_three_owners_change_the_manifest_and_one_does_not() {
    let [anna, ben, cleo, stranger] = std::array::from_fn(|_| Owner::workload());
    let mut ledger = open(&Arc::default());
    let owners = [&anna, &ben, &cleo];
    set(&mut ledger, with_owners(1, 2, &owners), vec![]).unwrap();
    let first = latest(&ledger);

    // One signature, however often it is repeated, or one owner's key, is one owner.
    let change = with_owners(2, 2, &owners);
    let transition = next(&ledger, &change);
    let alone = set(&mut ledger, change.clone(), vec![anna.sign(&transition), anna.sign(&transition)]);
    assert!(matches!(alone, Err(SetManifestError::TooFewSignatures { needed: 2, valid: 1 })));
    let by_key = SetManifest {
        manifest: change.clone(),
        policies: vec![POLICY.to_vec()],
        previous: None,
        caller: Some(anna.digest()),
        signatures: vec![],
        request: REQUEST,
    };
    assert!(matches!(ledger.set_manifest(&by_key), Err(SetManifestError::TooFewSignatures { valid: 0, .. })));

    assert!(matches!(propose(&mut ledger, &change, &stranger), Err(SetManifestError::UntrustedSignature)));
    let Ok(ProposalReply::Pending { transition: name, signed, needed: 2 }) =
        propose(&mut ledger, &change, &anna)
    else {
        panic!("one signature is not enough")
    };
    assert_eq!((name, signed), (transition, vec![anna.digest()]));
    assert_eq!(ledger.state.proposals()[&transition].manifest, change.hash());

    // A retry, another's signature of something else, and a stranger's, add nothing.
    let approve = |ledger: &mut TestLedger, signature| {
        ledger.approve(&ApproveProposal { transition, signature, request: REQUEST })
    };
    assert!(
        matches!(approve(&mut ledger, anna.sign(&transition)), Ok(ProposalReply::Pending { signed, .. }) if signed.len() == 1)
    );
    assert!(matches!(approve(&mut ledger, ben.sign(&first)), Err(SetManifestError::UntrustedSignature)));
    assert!(matches!(
        approve(&mut ledger, stranger.sign(&transition)),
        Err(SetManifestError::UntrustedSignature)
    ));
    assert_eq!(latest(&ledger), first);

    assert!(
        matches!(approve(&mut ledger, ben.sign(&transition)), Ok(ProposalReply::Set(reply)) if reply.transition == transition)
    );
    assert_eq!(latest(&ledger), transition);
    assert!(ledger.state.proposals().is_empty());
    assert!(matches!(
        approve(&mut ledger, cleo.sign(&transition)),
        Err(SetManifestError::UnknownProposal(_))
    ));

    // Both signatures at once need no proposal.
    let change = with_owners(3, 1, &owners);
    let transition = next(&ledger, &change);
    set(&mut ledger, change, vec![ben.sign(&transition), cleo.sign(&transition)]).unwrap();
}

#[test]
fn proposals_survive_a_restart_can_be_withdrawn_and_are_void_after_another_change() {
    let [anna, ben] = std::array::from_fn(|_| Owner::workload());
    let store = Arc::default();
    let mut ledger = open(&store);
    set(&mut ledger, with_owners(1, 2, &[&anna, &ben]), vec![]).unwrap();
    let [change, other] = [2, 3].map(|note| with_owners(note, 2, &[&anna, &ben]));
    let transition = next(&ledger, &change);
    propose(&mut ledger, &change, &anna).unwrap();
    propose(&mut ledger, &other, &ben).unwrap();
    assert_eq!(open(&store).state.proposals().len(), 2, "read back from the log");

    let withdraw = |ledger: &mut TestLedger, caller| {
        ledger.withdraw(&WithdrawProposal { transition, caller, request: REQUEST })
    };
    assert!(matches!(withdraw(&mut ledger, None), Err(SetManifestError::NoKey)));
    assert!(matches!(
        withdraw(&mut ledger, Some(KeyDigest::of(b"no"))),
        Err(SetManifestError::NotAnOwner(_))
    ));
    withdraw(&mut ledger, Some(ben.digest())).unwrap();
    assert_eq!(ledger.state.proposals().len(), 1);

    assert!(matches!(propose(&mut ledger, &other, &anna), Ok(ProposalReply::Set(_))), "the second signature");
    assert!(ledger.state.proposals().is_empty(), "the first begins at a past transition");
}

/// Signatures of a withdrawn change are in the history for everybody to read, and valid for ever.
#[test]
fn a_withdrawn_change_is_refused_until_history_moves() {
    let [anna, ben] = std::array::from_fn(|_| Owner::workload());
    let store = Arc::default();
    let mut ledger = open(&store);
    set(&mut ledger, with_owners(1, 2, &[&anna, &ben]), vec![]).unwrap();
    let change = with_owners(2, 2, &[&anna, &ben]);
    let transition = next(&ledger, &change);
    propose(&mut ledger, &change, &anna).unwrap();
    ledger.withdraw(&WithdrawProposal { transition, caller: Some(anna.digest()), request: REQUEST }).unwrap();
    let is_withdrawn = |error| matches!(error, SetManifestError::Withdrawn(found) if found == transition);
    let both = || vec![anna.sign(&transition), ben.sign(&transition)];
    assert!(
        is_withdrawn(set(&mut ledger, change.clone(), both()).unwrap_err()),
        "the old signature and another"
    );
    assert!(is_withdrawn(propose(&mut ledger, &change, &ben).unwrap_err()), "taken back by another owner");
    let latest = ledger.state.latest().unwrap().transition;
    assert_eq!(open(&store).state.latest().unwrap().transition, latest, "and after a restart");
    let other = with_owners(3, 2, &[&anna, &ben]);
    let transition = next(&ledger, &other);
    set(&mut ledger, other, vec![anna.sign(&transition), ben.sign(&transition)]).unwrap();
}

#[test]
fn an_older_manifest_with_digests_alone_accepts_signatures() {
    let anna = Owner::workload();
    let older = |note| manifest(note, |m| m["WorkloadOwnerKeyDigests"] = json!([anna.digest()]));
    let mut ledger = open(&Arc::default());
    set(&mut ledger, older(1), vec![]).unwrap();
    let transition = next(&ledger, &older(2));
    let stranger = Owner::workload().sign(&transition);
    assert!(matches!(set(&mut ledger, older(2), vec![stranger]), Err(SetManifestError::UntrustedSignature)));
    set(&mut ledger, older(2), vec![anna.sign(&transition)]).unwrap();
}

#[test]
fn the_bootstrap_key_must_sign_the_first_manifest_and_no_later_one() {
    let [bootstrap, anna] = std::array::from_fn(|_| Owner::workload());
    let mut ledger =
        open(&Arc::default()).with_bootstrap_key(Some(OwnerKey::from_der(bootstrap.public.clone())));
    let first = with_owners(1, 1, &[&anna]);
    let transition = TransitionHash::chain(None, first.hash());
    let refused = set(&mut ledger, first.clone(), vec![anna.sign(&transition)]);
    assert!(matches!(refused, Err(SetManifestError::NeedsBootstrapKey(key)) if key == bootstrap.digest()));
    set(&mut ledger, first, vec![bootstrap.sign(&transition)]).unwrap();
    let second = with_owners(2, 1, &[&anna]);
    let transition = next(&ledger, &second);
    let refused = set(&mut ledger, second, vec![bootstrap.sign(&transition)]);
    assert!(matches!(refused, Err(SetManifestError::UntrustedSignature)));
}

#[test]
fn unsigned_evidence_is_believed_only_by_a_coordinator_that_was_told_to() {
    let insecure =
        || manifest(1, |manifest| manifest["ReferenceValues"] = serde_json::json!({ "insecure": true }));
    let mut ledger = open(&Arc::default());
    let refused = set(&mut ledger, insecure(), vec![]);
    assert!(matches!(refused, Err(SetManifestError::InsecureNotAllowed)));
    let mut ledger = open(&Arc::default()).with_insecure_allowed(true);
    set(&mut ledger, insecure(), vec![]).unwrap();
}

#[test]
fn a_retry_after_a_lost_answer_is_told_that_the_change_took_effect() {
    let store = Arc::default();
    let mut ledger = open(&store);
    let retry = SetManifest {
        manifest: manifest(1, |_| {}),
        policies: vec![POLICY.to_vec()],
        previous: Some(TransitionHash::ZERO),
        caller: None,
        signatures: vec![],
        request: REQUEST,
    };
    ledger.set_manifest(&retry).unwrap();
    let again = ledger.set_manifest(&retry).unwrap_err();
    assert!(
        matches!(again, SetManifestError::AlreadySet { at: NOW, transition } if transition == latest(&ledger))
    );
    // The process died between the flush and the answer.
    let again = open(&store).set_manifest(&retry).unwrap_err();
    assert!(
        matches!(again, SetManifestError::SetBeforeRestart { at: NOW, transition } if transition == latest(&ledger))
    );
    let other = SetManifest { manifest: manifest(2, |_| {}), ..retry };
    assert!(matches!(ledger.set_manifest(&other), Err(SetManifestError::StaleTransition { .. })));
}

#[test]
fn whoever_is_no_coordinator_any_more_cannot_open_the_next_mesh_key() {
    let anna = Owner::workload();
    let store = Arc::default();
    let mut ledger = open(&store);
    set(&mut ledger, with_owners(1, 1, &[&anna]), vec![]).unwrap();
    let secret = |ledger: &TestLedger| match ledger.phase() {
        Phase::Active(active) => active.replica_secret.clone(),
        _ => panic!("in force"),
    };
    let wrapped = |ledger: &TestLedger| {
        let mut wrapped = Vec::new();
        let mut log = storage_schema::Log::open(
            Arc::clone(&store),
            storage_schema::StreamId::Control,
            ledger.log_key(),
            |_, event| {
                if let storage_schema::Fact::ManifestSet { wrapped_mesh_key, .. } = event.fact {
                    wrapped = wrapped_mesh_key;
                }
            },
        )
        .unwrap();
        log.catch_up(|_, _| {}).unwrap();
        wrapped
    };
    // `note` is part of the reference values, so this changes who may be a Coordinator.
    let old = secret(&ledger);
    let change = with_owners(2, 1, &[&anna]);
    let transition = next(&ledger, &change);
    set(&mut ledger, change, vec![anna.sign(&transition)]).unwrap();
    assert!(old.unwrap_key(&wrapped(&ledger), &transition).is_err());

    // This does not: a replica follows from the log alone.
    let old = secret(&ledger);
    let change = manifest(2, |m| {
        m["WorkloadOwnerPubKeys"] = json!([hex::encode(&anna.public)]);
        m["MinimumAPIVersion"] = json!("v1");
    });
    let transition = next(&ledger, &change);
    set(&mut ledger, change, vec![anna.sign(&transition)]).unwrap();
    let opened = old.unwrap_key(&wrapped(&ledger), &transition).unwrap();
    let Phase::Active(active) = ledger.phase() else { panic!("in force") };
    assert_eq!(opened.public_der(), active.ca.mesh_key().public_der());
}

#[test]
fn two_of_three_seedshare_owners_recover_and_a_bad_share_is_named() {
    let owners: [Owner; 3] = std::array::from_fn(|_| Owner::seedshare());
    let store = Arc::default();
    let mut ledger = open(&store);
    let first = manifest(1, |m| {
        m["SeedshareOwnerPubKeys"] = owners.iter().map(|owner| hex::encode(&owner.public)).collect();
        m["SeedShareOwnerThreshold"] = 2.into();
    });
    let shares = set(&mut ledger, first, vec![]).unwrap().shares.unwrap();
    let transition = latest(&ledger);
    let parts: Vec<_> = owners
        .iter()
        .zip(&shares.shares)
        .map(|(owner, share)| keys::decrypt_seed_share(&share.ciphertext, &owner.pem).unwrap())
        .collect();

    let send = |ledger: &mut TestLedger, owner: &Owner, part: &[u8]| {
        let seed = Zeroizing::new(part.to_vec());
        ledger.recover(&Recover {
            acceptance: None,
            seed,
            salt: shares.salt,
            caller: Some(owner.digest()),
            checkpoint: String::new(),
            request: REQUEST,
        })
    };
    let mut ledger = open(&store);
    assert!(matches!(
        send(&mut ledger, &owners[0], &parts[0]),
        Ok(RecoverReply::Waiting { received: 1, needed: 2 })
    ));
    // Again, another's part, a changed one, and a part of no sensible size.
    assert!(matches!(
        send(&mut ledger, &owners[0], &parts[0]),
        Ok(RecoverReply::Waiting { received: 1, needed: 2 })
    ));
    let bad = send(&mut ledger, &owners[1], &parts[0]);
    assert!(matches!(bad, Err(RecoverError::BadShare { owner, received: 1 }) if owner == owners[1].digest()));
    let mut changed = parts[1].to_vec();
    changed[40] ^= 1;
    assert!(matches!(send(&mut ledger, &owners[1], &changed), Err(RecoverError::BadShare { .. })));
    assert!(matches!(send(&mut ledger, &owners[1], &[1; 66]), Err(RecoverError::Malformed(_))));

    // A restart forgets the part; it can be sent again.
    let mut ledger = open(&store);
    assert!(matches!(
        send(&mut ledger, &owners[2], &parts[2]),
        Ok(RecoverReply::Waiting { received: 1, .. })
    ));
    let done = send(&mut ledger, &owners[0], &parts[0]).unwrap();
    assert_eq!(done, RecoverReply::Recovered(transition));
    assert!(matches!(send(&mut ledger, &owners[1], &parts[1]), Err(RecoverError::AlreadyRecovered)));
}

#[test]
fn an_older_history_counts_only_with_an_owners_word_for_both_heads() {
    let (anna, ben) = (Owner::seedshare(), Owner::seedshare());
    let workload = Owner::workload();
    let store = Arc::<MemoryStore>::default();
    let mut ledger = open(&store);
    let with = |note: u32| {
        manifest(note, |m| {
            m["SeedshareOwnerPubKeys"] = json!([hex::encode(&anna.public), hex::encode(&ben.public)]);
            m["WorkloadOwnerPubKeys"] = json!([hex::encode(&workload.public)]);
        })
    };
    let shares = set(&mut ledger, with(1), vec![]).unwrap().shares.unwrap();
    let seed = keys::decrypt_seed_share(&shares.shares[0].ciphertext, &anna.pem).unwrap();
    let old = ledger.log.head();
    let change = with(2);
    let signature = workload.sign(&next(&ledger, &change));
    set(&mut ledger, change, vec![signature]).unwrap();
    let Phase::Active(active) = ledger.phase() else { panic!("in force") };
    let newer = ledger.log.head();
    let checkpoint = Checkpoint::sign(&newer, active.engine.log_key());
    let log = active.engine.log_key().public();

    // The disk is one of before.
    store.tamper(&StreamId::Control, |segments| drop(segments.pop()));
    let mut ledger = open(&store);
    assert_eq!(ledger.log.head(), old);
    let mut recover = |by: &Owner, word: Option<(&Owner, String)>| {
        let acceptance = word.map(|(signer, text)| {
            let (signature, public_key) = keys::sign_rsa_pss(&signer.pem, text.as_bytes()).unwrap();
            Acceptance { public_key, signature }
        });
        let recovered = ledger.recover(&Recover {
            seed: seed.clone(),
            salt: shares.salt,
            caller: Some(by.digest()),
            checkpoint: checkpoint.clone(),
            acceptance,
            request: REQUEST,
        });
        (recovered, ledger.state.older_heads().to_vec())
    };
    let text = |given_up: &Head, accepted: &Head| {
        keys::older_head_acceptance(&log, (given_up.size, &given_up.root), (accepted.size, &accepted.root))
    };
    for word in [
        None,
        Some((&ben, text(&newer, &old))),    // not the one who recovers
        Some((&anna, text(&old, &old))),     // another head is given up
        Some((&anna, text(&newer, &newer))), // another one is accepted
        Some((&anna, text(&newer, &Head { root: [1; 32], ..old.clone() }))),
    ] {
        let (refused, recorded) = recover(&anna, word);
        assert!(matches!(refused, Err(RecoverError::RolledBack(_))), "{refused:?}");
        assert!(recorded.is_empty());
    }
    let (recovered, recorded) = recover(&anna, Some((&anna, text(&newer, &old))));
    assert!(matches!(recovered, Ok(RecoverReply::Recovered(_))), "{recovered:?}");
    let [recorded] = recorded.as_slice() else { panic!("{recorded:?}") };
    assert_eq!((recorded.given_up.size, recorded.given_up.root), (newer.size, newer.root));
    assert_eq!((recorded.accepted.size, recorded.accepted.root), (old.size, old.root));
    let again = open(&store);
    assert_eq!(again.state.older_heads(), std::slice::from_ref(recorded), "it stays in the log");
}
