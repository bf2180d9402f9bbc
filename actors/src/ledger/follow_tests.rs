//! Ledgers of several replicas on one store that loses answers and lies.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use attestation::simulated::{SimulatedKind, SimulatedMachine};
use keys::{CaKey, ReplicaSecret, Seed, generate_workload_owner_key};
use manifest::{KeyDigest, Manifest, PolicyHash, ReplicaId, RequestId, Timestamp, TransitionHash};
use serde_json::{Value, json};
use storage_schema::{BlobHash, EventStore, MemoryStore, Replicated, StoreError, StreamId, signed_head};
use tokio::sync::watch;

use super::{
    Active, Adopt, AdoptError, Follow, Ledger, LedgerError, Phase, ReplicaKey, SetManifest, SetManifestError,
    SetManifestReply,
};
use crate::FixedClock;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const POLICY: &[u8] = b"policy of the Coordinator";

/// A shared store whose answers to appends can get lost, and which may not give blobs.
#[derive(Default)]
struct Shared {
    inner: MemoryStore,
    loses_answers: AtomicBool,
    keeps_blobs: AtomicBool,
}

impl EventStore for Shared {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        self.inner.append(stream, index, segment)?;
        if self.loses_answers.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the answer is lost (test)".into()));
        }
        Ok(())
    }

    fn read(&self, stream: &StreamId, index: u64, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.inner.read(stream, index, bytes)
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        self.inner.put_blob(bytes)
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        if self.keeps_blobs.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("no quorum (test)".into()));
        }
        self.inner.get_blob(hash)
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.inner.put_derived(name, value)
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get_derived(name)
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        self.inner.streams()
    }
}

type Store = Replicated<MemoryStore>;
type TestLedger = Ledger<Store, FixedClock>;

fn replica(shared: &Arc<Shared>, id: u8) -> TestLedger {
    let shared: Arc<dyn EventStore> = Arc::<Shared>::clone(shared);
    let store = Arc::new(Replicated::shared(MemoryStore::default(), shared));
    let (publish, _) = watch::channel(TestLedger::nothing());
    Ledger::open(store, FixedClock(NOW), ReplicaId::from_bytes([id; 16]), Arc::new(publish)).unwrap()
}

fn owner() -> (Vec<u8>, KeyDigest) {
    let (_, public) = generate_workload_owner_key().unwrap();
    let digest = KeyDigest::of(&public);
    (public, digest)
}

fn manifest(owner: &[u8], name: &str, platform: &str) -> Manifest {
    let value: Value = json!({
        "Policies": { PolicyHash::of(POLICY).to_string(): { "SANs": ["coordinator", name], "Role": "coordinator" } },
        "ReferenceValues": { "snp": [{
            "ProductName": "Milan",
            "TrustedMeasurement": "22".repeat(48),
            "MinimumTCB": { "BootloaderVersion": 3, "TEEVersion": 0, "SNPVersion": 8, "MicrocodeVersion": 115 },
            "Platform": platform,
        }] },
        "WorkloadOwnerPubKeys": [hex::encode(owner)],
    });
    Manifest::parse(value.to_string().as_bytes()).unwrap()
}

fn set(
    ledger: &mut TestLedger,
    manifest: &Manifest,
    caller: KeyDigest,
    previous: Option<TransitionHash>,
) -> Result<SetManifestReply, SetManifestError> {
    let mut request = [0; 16];
    request.copy_from_slice(&manifest.hash().as_bytes()[..16]);
    let command = SetManifest {
        manifest: manifest.clone(),
        policies: vec![POLICY.to_vec()],
        previous,
        caller: Some(caller),
        signatures: Vec::new(),
        request: RequestId::from_bytes(request),
    };
    ledger.on_the_latest(|ledger| ledger.set_manifest(&command))
}

fn active(ledger: &TestLedger) -> Arc<Active> {
    match ledger.phase() {
        Phase::Active(active) => active,
        Phase::NeedsRecovery => panic!("it needs recovery"),
        Phase::Uninitialised => panic!("it has no manifest"),
    }
}

fn secrets_of(ledger: &TestLedger) -> Adopt {
    let active = active(ledger);
    let last = ledger.log.head().segments - 1;
    let segment = ledger.store.read(&StreamId::Control, last, 1).unwrap().remove(0).1;
    Adopt {
        seed: active.engine.seed().clone(),
        salt: *active.engine.salt(),
        replica_secret: ReplicaSecret::from_bytes(*active.replica_secret.expose()),
        mesh_key: CaKey::from_pkcs8(&active.ca.mesh_key().to_pkcs8().unwrap()).unwrap(),
        transition: active.transition,
        signed_head: signed_head(&segment).unwrap().to_vec(),
        from: "a test".into(),
    }
}

fn same(one: &TestLedger, two: &TestLedger) {
    let (one, two) = (active(one), active(two));
    assert_eq!(one.transition, two.transition);
    assert_eq!(one.replica_secret.expose(), two.replica_secret.expose());
    assert_eq!((one.ca.mesh_der(), one.ca.root_der()), (two.ca.mesh_der(), two.ca.root_der()));
}

#[test]
fn a_replica_joins_follows_from_the_log_and_loses_races_without_harm() {
    let (shared, (key, owner)) = (Arc::new(Shared::default()), owner());
    let (mut one, mut two) = (replica(&shared, 1), replica(&shared, 2));
    let first = set(&mut one, &manifest(&key, "a", "x"), owner, None).unwrap().transition;
    two.follow(&Follow).unwrap();
    assert!(matches!(two.phase(), Phase::NeedsRecovery));
    two.adopt(&secrets_of(&one)).unwrap();
    same(&one, &two);

    // Each changes it in turn; the other follows from the log alone. Neither reads before it decides.
    let second = set(&mut two, &manifest(&key, "b", "x"), owner, Some(first)).unwrap().transition;
    let third = set(&mut one, &manifest(&key, "c", "x"), owner, Some(second)).unwrap().transition;
    let stale = set(&mut two, &manifest(&key, "d", "x"), owner, Some(second));
    assert!(
        matches!(&stale, Err(SetManifestError::StaleTransition { expected, .. }) if *expected == Some(third)),
        "{stale:?}"
    );
    set(&mut two, &manifest(&key, "e", "x"), owner, None).unwrap();
    one.follow(&Follow).unwrap();
    same(&one, &two);

    // Other machines may be Coordinators: a fresh secret, which only a peer has.
    set(&mut one, &manifest(&key, "f", "y"), owner, None).unwrap();
    two.follow(&Follow).unwrap();
    assert!(matches!(two.phase(), Phase::NeedsRecovery));
    two.adopt(&secrets_of(&one)).unwrap();
    same(&one, &two);
}

#[test]
fn a_change_whose_manifest_cannot_be_read_just_now_is_followed_later_and_not_passed_over() {
    let (shared, (key, owner)) = (Arc::new(Shared::default()), owner());
    let (mut one, mut two) = (replica(&shared, 1), replica(&shared, 2));
    let first = set(&mut one, &manifest(&key, "a", "x"), owner, None).unwrap().transition;
    two.adopt(&secrets_of(&one)).unwrap();
    let second = set(&mut one, &manifest(&key, "b", "x"), owner, Some(first)).unwrap().transition;

    shared.keeps_blobs.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        // Not "all is known": certificates would go on being issued under the first one.
        two.follow(&Follow).unwrap_err();
        assert_eq!(active(&two).transition, first);
        assert!(set(&mut two, &manifest(&key, "c", "x"), owner, Some(second)).is_err());
    }
    shared.keeps_blobs.store(false, Ordering::Relaxed);
    two.follow(&Follow).unwrap();
    same(&one, &two);
    set(&mut two, &manifest(&key, "c", "x"), owner, Some(second)).unwrap();
    one.follow(&Follow).unwrap();
    same(&one, &two);
}

#[test]
fn an_own_change_that_cannot_be_put_in_force_just_now_is_so_with_the_next_look() {
    let (key, owner) = owner();
    // With the old secret, and with a fresh one.
    for platform in ["x", "y"] {
        let shared = Arc::new(Shared::default());
        let (mut one, mut two) = (replica(&shared, 1), replica(&shared, 2));
        let first = set(&mut one, &manifest(&key, "a", "x"), owner, None).unwrap().transition;
        two.adopt(&secrets_of(&one)).unwrap();

        // In the log it is; the first manifest, which two has no copy of yet, cannot be read.
        let second = manifest(&key, "b", platform);
        shared.keeps_blobs.store(true, Ordering::Relaxed);
        let outcome = set(&mut two, &second, owner, None);
        assert!(matches!(outcome, Err(SetManifestError::Fault(_))), "{platform}: {:?}", outcome.map(drop));
        two.follow(&Follow).unwrap_err();
        assert_eq!(active(&two).transition, first);
        shared.keeps_blobs.store(false, Ordering::Relaxed);
        two.follow(&Follow).unwrap();
        assert_eq!(active(&two).manifest.hash(), second.hash());
        let third = manifest(&key, "c", platform);
        let now = active(&two).transition;
        set(&mut two, &third, owner, Some(now)).unwrap();
    }
}

#[test]
fn a_change_whose_answer_was_lost_is_followed_and_the_first_one_keeps_its_seed_shares() {
    let (shared, (key, owner)) = (Arc::new(Shared::default()), owner());
    let mut one = replica(&shared, 1);
    let mut first = manifest(&key, "a", "x").bytes().to_vec();
    let seedshare = keys::generate_seedshare_owner_key().unwrap().1;
    let text = String::from_utf8(first.clone()).unwrap();
    first = text
        .replacen('{', &format!("{{\"SeedshareOwnerPubKeys\":[\"{}\"],", hex::encode(seedshare)), 1)
        .into();
    let first = Manifest::parse(&first).unwrap();

    shared.loses_answers.store(true, Ordering::Relaxed);
    let unknown = set(&mut one, &first, owner, None);
    assert!(matches!(unknown, Err(SetManifestError::Fault(_))), "{unknown:?}");
    shared.loses_answers.store(false, Ordering::Relaxed);
    let reply = set(&mut one, &first, owner, None).unwrap();
    assert_eq!(reply.shares.unwrap().shares.len(), 1, "nobody else could ever make them");
    assert_eq!(active(&one).generation, 1);

    // Where the answer was lost on its way to the caller, the ledger knows of nothing: they come again all the same.
    let mut alone = replica(&Arc::new(Shared::default()), 1);
    let given = set(&mut alone, &first, owner, None).unwrap().shares.unwrap();
    let again = set(&mut alone, &first, owner, None).unwrap();
    assert_eq!(again.shares.unwrap().shares[0].ciphertext, given.shares[0].ciphertext);
    assert_eq!(active(&alone).generation, 1);
    let changed = set(&mut alone, &first, owner, Some(again.transition)).unwrap();
    assert!(
        changed.shares.is_none() && active(&alone).generation == 2,
        "who names what is in force wants a change"
    );

    // The same for a change that makes a fresh secret: only this replica can open it.
    let body = String::from_utf8(first.bytes().to_vec()).unwrap();
    let other = Manifest::parse(body.replace("\"x\"", "\"y\"").as_bytes()).unwrap();
    shared.loses_answers.store(true, Ordering::Relaxed);
    assert!(set(&mut one, &other, owner, None).is_err());
    shared.loses_answers.store(false, Ordering::Relaxed);
    one.follow(&Follow).unwrap();
    assert_eq!((active(&one).generation, active(&one).manifest.hash()), (2, other.hash()));
}

#[test]
fn a_peer_or_a_store_that_lies_is_refused_by_name() {
    let (shared, (key, owner)) = (Arc::new(Shared::default()), owner());
    let mut one = replica(&shared, 1);
    set(&mut one, &manifest(&key, "a", "x"), owner, None).unwrap();
    let old = secrets_of(&one);
    set(&mut one, &manifest(&key, "b", "x"), owner, None).unwrap();
    let refused = |adopt: &Adopt| {
        let mut two = replica(&shared, 2);
        let error = two.adopt(adopt).unwrap_err();
        assert!(matches!(two.phase(), Phase::NeedsRecovery));
        assert!(two.store.local().streams().unwrap().is_empty(), "nothing of it is kept");
        error
    };
    assert!(matches!(refused(&old), AdoptError::MovedOn { .. }));
    let seed = Seed::generate().unwrap();
    assert!(matches!(refused(&Adopt { seed, ..secrets_of(&one) }), AdoptError::WrongSeed(_)));
    let mesh_key = CaKey::generate().unwrap();
    let error = refused(&Adopt { mesh_key, ..secrets_of(&one) });
    assert!(error.to_string().contains("mesh CA key"), "{error}");
    let signed_head = vec![1; 300];
    assert!(matches!(refused(&Adopt { signed_head, ..secrets_of(&one) }), AdoptError::Head(_)));

    let honest = secrets_of(&one);
    shared.inner.tamper(&StreamId::Control, |segments| drop(segments.pop()));
    assert!(matches!(refused(&honest), AdoptError::StoreBehind { ours: 2, theirs: 3 }));
}

/// A machine, a manifest that accepts it, and replicas that sign with keys of their own.
struct Machines {
    directory: tempfile::TempDir,
    manifest: Manifest,
    owner: KeyDigest,
}

impl Machines {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        SimulatedMachine::create(directory.path(), SimulatedKind::Snp, NOW).unwrap();
        let machine = SimulatedMachine::open(directory.path()).unwrap();
        let (key, owner) = owner();
        let manifest = json!({
            "Policies": {
                PolicyHash::of(POLICY).to_string(): { "SANs": ["coordinator"], "Role": "coordinator" },
                PolicyHash::of(b"web").to_string(): { "SANs": ["web"] },
            },
            "ReferenceValues": machine.reference_values(),
            "WorkloadOwnerPubKeys": [hex::encode(key)],
        });
        let manifest = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
        Self { directory, manifest, owner }
    }

    fn key(&self, policy: &[u8]) -> Arc<ReplicaKey> {
        let machine = SimulatedMachine::open(self.directory.path()).unwrap();
        Arc::new(ReplicaKey::generate(Arc::new(machine.guest(PolicyHash::of(policy)))).unwrap())
    }

    fn replica(&self, shared: &Arc<Shared>, id: u8, policy: &[u8]) -> TestLedger {
        replica(shared, id).with_replica_key(Some(self.key(policy)))
    }

    fn set(&self, ledger: &mut TestLedger) -> Result<SetManifestReply, SetManifestError> {
        let command = SetManifest {
            manifest: self.manifest.clone(),
            policies: vec![POLICY.to_vec(), b"web".to_vec()],
            previous: ledger.state.latest().map(|latest| latest.transition),
            caller: Some(self.owner),
            signatures: Vec::new(),
            request: RequestId::from_bytes([1; 16]),
        };
        ledger.on_the_latest(|ledger| ledger.set_manifest(&command))
    }
}

#[test]
fn each_replica_introduces_its_key_before_it_writes_and_the_others_judge_it() {
    let (machines, shared) = (Machines::new(), Arc::new(Shared::default()));
    let (mut one, mut two) = (machines.replica(&shared, 1, POLICY), machines.replica(&shared, 2, POLICY));
    machines.set(&mut one).unwrap();
    assert!(one.log.position().is_signed_by_replicas());
    two.adopt(&secrets_of(&one)).unwrap();
    assert!(two.signs(), "before it issues anything");
    machines.set(&mut two).unwrap();
    one.follow(&Follow).unwrap();
    same(&one, &two);
    let [first, second] = [1, 2].map(|id| ReplicaId::from_bytes([id; 16]));
    let key = |replica| one.state.replica_key(replica);
    assert!(key(&first).is_some() && key(&second).is_some() && key(&first) != key(&second));
    // Checkpoints cover the streams of these keys only.
    let stream = StreamId::Replica(second);
    assert!(one.state.may_cover(&stream, key(&second)));
    assert!(!one.state.may_cover(&stream, key(&first)) && !one.state.may_cover(&stream, None));
    // A restart reads and judges all of it anew.
    let again = replica(&shared, 3);
    assert_eq!(again.state.entries().len(), 2);
}

/// Seedshare owners have the seed, and so the log's key; a machine of their own makes genuine evidence, but not of a
/// Coordinator.
#[test]
fn nothing_is_believed_of_a_log_that_whoever_owns_the_seed_wrote() {
    let (machines, shared) = (Machines::new(), Arc::new(Shared::default()));
    let mut one = machines.replica(&shared, 1, POLICY);
    machines.set(&mut one).unwrap();
    let secrets = active(&one);
    // A change as the Coordinator would write it, by a program of theirs.
    let change = one.store.read(&StreamId::Control, 0, 1).unwrap().remove(0).1;
    let mut position = storage_schema::Position::start(StreamId::Control, None);
    let written = position.advance(0, &change).unwrap().events;
    let read = |bytes: &[u8]| storage_schema::Event::from_cbor(bytes).unwrap();
    let genuine = read(written.last().unwrap());
    let storage_schema::Fact::ReplicaVouched { platform, .. } = genuine.fact else { panic!("{genuine:?}") };
    let event = storage_schema::Event { replica: ReplicaId::from_bytes([9; 16]), ..read(written[0]) };
    let forger = machines.key(b"web");
    let evidence = forger.evidence(event.replica).unwrap().document;
    let hash = shared.put_blob(&evidence).unwrap();
    let introduction = storage_schema::Event {
        fact: storage_schema::Fact::ReplicaVouched {
            key: *forger.key().public().as_bytes(),
            evidence: manifest::EvidenceHash::from_bytes(*hash.as_bytes()),
            platform,
        },
        ..event.clone()
    };
    let for_forger: Arc<dyn EventStore> = Arc::<Shared>::clone(&shared);
    let store = Arc::new(Replicated::shared(MemoryStore::default(), for_forger));
    let mut log = storage_schema::Log::open(store, StreamId::Control, None, |_, _| {}).unwrap();
    let by = storage_schema::Signer { log: secrets.engine.log_key(), replica: Some(forger.key()) };
    log.append(&[introduction, event], by).unwrap();

    let before = active(&one).transition;
    for _ in 0..2 {
        let error = one.follow(&Follow).unwrap_err();
        assert!(matches!(error, LedgerError::NotVouched { .. }), "{error}");
        assert!(error.to_string().contains("does not have the role coordinator"), "{error}");
        assert_eq!(active(&one).transition, before);
        assert!(machines.set(&mut one).is_err(), "nothing is added to it");
    }
    // Nor does a replica that starts believe it.
    let for_new: Arc<dyn EventStore> = Arc::<Shared>::clone(&shared);
    let store = Arc::new(Replicated::shared(MemoryStore::default(), for_new));
    let (publish, _) = watch::channel(TestLedger::nothing());
    let opened = Ledger::open(store, FixedClock(NOW), ReplicaId::from_bytes([3; 16]), Arc::new(publish));
    assert!(matches!(opened, Err(LedgerError::NotVouched { .. })));
}

#[test]
fn a_coordinator_that_its_manifest_does_not_accept_signs_with_the_logs_key_alone_or_not_at_all() {
    let (machines, shared) = (Machines::new(), Arc::new(Shared::default()));
    let mut alone = machines.replica(&shared, 1, b"web");
    machines.set(&mut alone).unwrap();
    assert!(!alone.log.position().is_signed_by_replicas());
    let mut one = machines.replica(&shared, 2, POLICY);
    one.adopt(&secrets_of(&alone)).unwrap();
    assert!(one.signs());
    // From now on the other one cannot write any more.
    let refused = machines.set(&mut alone);
    assert!(matches!(refused, Err(SetManifestError::Fault(LedgerError::NotVouched { .. }))), "{refused:?}");
}
