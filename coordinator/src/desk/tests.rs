//! Who gets what, without a socket: a desk with its actors, over a store in memory.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use actix::{Actor as _, Supervisor, SyncArbiter};
use actors::{Authority, Handover, Journal, Ledger, Mailbox, NotInForce, SetManifestError, Verifiers};
use attestation::{
    Anchors, Evidence, EvidenceOid, Issuer as _, ReportData, SnpEvidence,
    simulated::{SimulatedKind, SimulatedMachine},
};
use endorsements::{Endorsements, Fetcher, Services};
use etcd_store::{EtcdOptions, EtcdStore};
use keys::{Salt, WorkloadSecretId};
use manifest::{KeyDigest, PolicyHash, ReplicaId, SerialNumber};
use serde_json::json;
use storage_schema::{Archive, BlobHash, Log, MemoryStore, Replicated, StreamId};
use tempfile::TempDir;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::*;
use crate::{
    clock::{SystemClock, now},
    metrics::Metrics,
};

const COORDINATOR: &[u8] = b"policy of the Coordinator";
const WEB: &[u8] = b"policy of the web server";
const REPLICA: ReplicaId = ReplicaId::from_bytes([1; 16]);
const KEY: &[u8] = b"the workload's key";
const NONCE: &[u8] = b"the nonce of its connection";

/// A machine to run on. Making one takes RSA keys, so all tests share it.
static MACHINE: LazyLock<TempDir> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    SimulatedMachine::create(directory.path(), SimulatedKind::Snp, now()).unwrap();
    directory
});
/// Private key, PEM, and public key of the seedshare owner.
static SEED_OWNER: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
    let (pem, public) = keys::generate_seedshare_owner_key().unwrap();
    (pem.to_string(), public)
});

fn machine() -> SimulatedMachine {
    SimulatedMachine::open(MACHINE.path()).unwrap()
}

fn source() -> SocketAddr {
    "192.0.2.1:4711".parse().unwrap()
}

struct Office {
    desk: Desk<MemoryStore>,
    /// Keys of workload owners: private PEM and digest.
    owners: Vec<(String, Vec<u8>)>,
}

/// Runs a test on the actors' own thread.
fn on_a_desk<F: Future<Output = ()>>(standing: Standing, test: impl FnOnce(Office) -> F + 'static) {
    on_a_desk_with(standing, Endorsements::none(), test);
}

fn on_a_desk_with<F: Future<Output = ()>>(
    standing: Standing,
    endorsements: Endorsements,
    test: impl FnOnce(Office) -> F + 'static,
) {
    actix::System::new().block_on(async move {
        let store = Arc::new(Replicated::alone(MemoryStore::default()));
        let (publish, snapshot) = watch::channel(Ledger::<Store<MemoryStore>, SystemClock>::nothing());
        let (publish, for_ledger) = (Arc::new(publish), Arc::clone(&store));
        let ledger = SyncArbiter::start(1, move || {
            Ledger::open(Arc::clone(&for_ledger), SystemClock, REPLICA, Arc::clone(&publish)).unwrap()
        });
        let endorsements = Arc::new(endorsements);
        let known = Arc::clone(&endorsements);
        let verifiers = Mailbox::new(SyncArbiter::start(1, move || Verifiers::new(Arc::clone(&known))), 8);
        let archive = Arc::new(Archive::new(Arc::clone(&store)));
        let for_journal = Arc::clone(&archive);
        let journal = Supervisor::start(move |_| {
            Journal::new(&for_journal, SystemClock, REPLICA, None, Arc::new(|_| {}))
        });
        let journal = Mailbox::new(journal, 8);
        let for_authority = journal.clone();
        let authority = Supervisor::start(move |_| Authority::new(for_authority, SystemClock, 1));
        let desk = Desk {
            certificate_lifetime: Duration::from_hours(1),
            replica: REPLICA,
            standing: Arc::new(standing),
            metrics: Metrics::default(),
            archive,
            store,
            endorsements,
            stop: watch::channel(false).1,
            snapshot,
            ledger: Mailbox::new(ledger, 8),
            verifiers,
            secrets: Secrets::new(
                Mailbox::new(authority, 8),
                Mailbox::new(Handover::new(journal.clone()).start(), 8),
            ),
            journal,
            challenges: Arc::default(),
            recoveries: Arc::default(),
            vendors: Arc::default(),
            transit_uses: Arc::default(),
        };
        let owner = || {
            let (pem, public) = keys::generate_workload_owner_key().unwrap();
            (pem.to_string(), public)
        };
        test(Office { desk, owners: vec![owner(), owner()] }).await;
    });
}

/// A standing that depends on a store which does not answer.
fn shared() -> Standing {
    let options = EtcdOptions {
        endpoints: vec!["http://127.0.0.1:9".into()],
        prefix: "p/".into(),
        tls: None,
        user: None,
        deadline: Duration::from_millis(1),
    };
    Standing::shared(Arc::new(EtcdStore::new(&options).unwrap()))
}

impl Office {
    fn digest(&self, owner: usize) -> KeyDigest {
        KeyDigest::of(&self.owners[owner].1)
    }

    fn manifest(&self, needed: usize, changes: serde_json::Value) -> Vec<u8> {
        let mut manifest = json!({
            "Policies": {
                PolicyHash::of(COORDINATOR).to_string(): { "SANs": ["coordinator"], "Role": "coordinator" },
                PolicyHash::of(WEB).to_string(): { "SANs": ["web"], "WorkloadSecretID": "web" },
            },
            "ReferenceValues": machine().reference_values(),
            "SeedshareOwnerPubKeys": [hex::encode(&SEED_OWNER.1)],
            "WorkloadOwnerPubKeys": self.owners.iter().map(|(_, key)| hex::encode(key)).collect::<Vec<_>>(),
        });
        if needed > 1 {
            manifest["WorkloadOwnerThreshold"] = needed.into();
        }
        for (key, value) in changes.as_object().into_iter().flatten() {
            manifest[key] = value.clone();
        }
        manifest.to_string().into_bytes()
    }

    async fn set(&self, needed: usize, changes: serde_json::Value) -> Result<Vec<u8>, Failure> {
        let policies = vec![COORDINATOR.to_vec(), WEB.to_vec()];
        let new = NewManifest {
            manifest: self.manifest(needed, changes),
            policies,
            previous: None,
            caller: Some(self.digest(0)),
            signatures: Vec::new(),
        };
        Ok(self.desk.set_manifest(new).await?.mesh_pem.into_bytes())
    }

    fn presented(policy: &[u8]) -> Presented {
        let expected = ReportData::bind(KEY, NONCE);
        let evidence = machine().guest(PolicyHash::of(policy)).issue(&expected).unwrap();
        Presented {
            evidence: Some(evidence),
            expected,
            spki_der: spki(),
            nonce: NONCE.to_vec(),
            hpke_key: None,
        }
    }

    async fn admit(&self, policy: &[u8]) -> Result<Arc<Workload>, Turned> {
        let active = self.desk.in_force().unwrap();
        self.desk.admit(active, Self::presented(policy), source(), now()).await
    }

    /// What the log of this replica says, oldest first.
    fn events(&self) -> Vec<&'static str> {
        let key = self.desk.in_force().unwrap().engine.log_key().public();
        let (store, mut events) = (Arc::clone(&self.desk.store), Vec::new());
        let note = |_: u64, event: storage_schema::Event| events.push(event.fact.kind());
        Log::open(store, StreamId::Replica(REPLICA), Some(key), note).unwrap();
        events
    }
}

/// A key that a certificate can be made for.
fn spki() -> Vec<u8> {
    static SPKI: LazyLock<Vec<u8>> = LazyLock::new(|| atls::ConnectionKey::generate().unwrap().spki_der());
    SPKI.clone()
}

fn kind<T>(outcome: Result<T, Failure>) -> Kind {
    outcome.err().expect("a refusal").kind()
}

#[test]
fn nobody_gets_anything_before_there_is_a_manifest() {
    on_a_desk(Standing::alone(), async |office| {
        assert!(matches!(office.desk.in_force(), Err(NotInForce::NoManifest)));
        assert_eq!(kind(office.desk.current()), Kind::NoManifest);
        assert_eq!(kind(office.desk.proposals().await), Kind::NoManifest);
        assert_eq!(office.desk.readiness(), Readiness::NoManifest);
        assert!(office.desk.is_sealed());
    });
}

#[test]
fn a_listed_workload_gets_its_certificate_and_its_secret_after_they_are_on_record() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let workload = office.admit(WEB).await.unwrap();
        let issued = office.desk.issue(&workload, None).await.unwrap();
        let active = office.desk.in_force().unwrap();
        let secret = active.engine.workload_secret(&WorkloadSecretId::new("web").unwrap()).unwrap();
        assert_eq!(issued.secret.unwrap().expose(), secret.expose());
        assert_eq!(issued.mesh_pem, active.ca.public().mesh_pem);
        assert_eq!(office.events(), ["ReplicaStarted", "CertificateIssued", "SecretReleased"]);

        let peer = office.admit(COORDINATOR).await.unwrap();
        let issued = office.desk.issue(&peer, None).await.unwrap();
        assert!(issued.secret.is_none(), "its manifest entry names none");
    });
}

#[test]
fn evidence_counts_for_its_key_its_nonce_and_a_listed_policy_only() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let active = office.desk.in_force().unwrap();
        let admit = |presented| office.desk.admit(Arc::clone(&active), presented, source(), now());
        let elsewhere =
            Presented { expected: ReportData::bind(KEY, b"another nonce"), ..Office::presented(WEB) };
        let Err(Turned::Away { failed: Some(_), .. }) = admit(elsewhere).await else { panic!("admitted") };
        let nothing = Presented { evidence: None, ..Office::presented(WEB) };
        let Err(Turned::Away { failed: None, .. }) = admit(nothing).await else { panic!("admitted") };
        let Err(Turned::Away { reason, .. }) = office.admit(b"a policy that nobody listed").await else {
            panic!("admitted")
        };
        assert!(reason.contains("is not in the current manifest"), "{reason}");
        assert_eq!(
            office.events(),
            ["ReplicaStarted", "AttestationRefused", "AttestationRefused", "AttestationRefused"]
        );
    });
}

#[test]
fn a_workload_that_was_admitted_under_an_earlier_manifest_gets_nothing() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let (workload, peer) = (office.admit(WEB).await.unwrap(), office.admit(COORDINATOR).await.unwrap());
        office.set(1, json!({ "AuditorPubKeys": [] })).await.unwrap();
        assert!(matches!(office.desk.issue(&workload, None).await, Err(Failure::Replaced)));
        assert!(matches!(office.desk.hand_over(&peer).await, Err(Failure::Replaced)));
        assert!(matches!(office.desk.check_replica(&peer), Err(Failure::Replaced)));
    });
}

#[test]
fn a_replica_that_may_be_behind_gives_nothing_away() {
    on_a_desk(shared(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let (workload, peer) = (office.admit(WEB).await.unwrap(), office.admit(COORDINATOR).await.unwrap());
        let stale = |outcome: Option<Failure>| matches!(outcome, Some(Failure::Stale(_)));
        assert!(stale(office.desk.issue(&workload, None).await.err()));
        assert!(stale(office.desk.hand_over(&peer).await.err()));
        assert!(stale(office.desk.hand_over_unless_forked(&peer).await.err()));
        assert!(stale(office.desk.current_for_transit().err()));
        assert_eq!(office.desk.readiness(), Readiness::Stale);

        office.desk.standing.confirm(Instant::now(), 1);
        assert!(office.desk.issue(&workload, None).await.is_ok());
        assert!(office.desk.hand_over_unless_forked(&peer).await.is_ok());
    });
}

#[test]
fn during_a_fork_only_a_replica_that_joins_is_served() {
    on_a_desk(shared(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let (workload, peer) = (office.admit(WEB).await.unwrap(), office.admit(COORDINATOR).await.unwrap());
        office.desk.standing.confirm(Instant::now(), 1);
        office.desk.standing.forked();
        assert_eq!(kind(office.desk.issue(&workload, None).await), Kind::Unavailable);
        assert_eq!(kind(office.desk.hand_over_unless_forked(&peer).await), Kind::Unavailable);
        assert!(office.desk.is_sealed());
        let secrets = office.desk.hand_over(&peer).await.unwrap();
        assert_eq!(secrets.transition, office.desk.in_force().unwrap().transition);
    });
}

#[test]
fn only_a_coordinator_gets_the_secrets_and_what_replicas_read() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let (workload, peer) = (office.admit(WEB).await.unwrap(), office.admit(COORDINATOR).await.unwrap());
        assert_eq!(kind(office.desk.hand_over(&workload).await), Kind::Denied);
        assert_eq!(kind(office.desk.check_replica(&workload)), Kind::Denied);
        assert!(office.desk.check_replica(&peer).is_ok());
        let secrets = office.desk.hand_over(&peer).await.unwrap();
        assert_eq!(secrets.seed.expose(), office.desk.in_force().unwrap().engine.seed().expose());
        assert_eq!(office.events(), ["ReplicaStarted", "RecoveryGranted"]);
    });
}

#[test]
fn a_nonce_is_good_once_and_nothing_is_decoded_without_one() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let (desk, active) = (&office.desk, office.desk.in_force().unwrap());
        let undecoded = |_: &[u8; 32]| -> Result<Presented, Failure> { panic!("decoded") };
        let ask = async |nonce| {
            let answer = desk.issue_for_nonce(Arc::clone(&active), nonce, undecoded, source(), now()).await;
            match answer.unwrap() {
                Answer::Challenge(nonce) => nonce,
                Answer::Issued(_) => panic!("issued"),
            }
        };
        let nonce = ask(None).await;
        ask(Some([7; 32])).await;
        let presented = |_: &[u8; 32]| Ok(Office::presented(WEB));
        let answer =
            desk.issue_for_nonce(Arc::clone(&active), Some(nonce), presented, source(), now()).await.unwrap();
        assert!(matches!(answer, Answer::Issued(_)));
        ask(Some(nonce)).await;
    });
}

#[test]
fn no_more_signatures_are_verified_than_a_change_needs() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({ "WorkloadOwnerThreshold": 2 })).await.unwrap();
        let signed = async |number| {
            let new = NewManifest {
                manifest: office.manifest(2, json!({ "MinimumAPIVersion": "v1" })),
                policies: vec![COORDINATOR.to_vec(), WEB.to_vec()],
                previous: None,
                caller: None,
                signatures: vec![b"none".to_vec(); number],
            };
            office.desk.set_manifest(new).await.err().unwrap()
        };
        let refused = signed(3).await;
        let Failure::SetManifest(SetManifestError::TooManySignatures { most: 2, found: 3 }) = refused else {
            panic!("{refused:?}")
        };
        let refused = signed(2).await;
        assert!(matches!(refused, Failure::SetManifest(SetManifestError::UntrustedSignature)), "{refused:?}");
    });
}

#[test]
fn a_sealed_recovery_is_accepted_once() {
    on_a_desk(Standing::alone(), async |office| {
        let recovery = || Recovery {
            acceptance: None,
            seed: Zeroizing::new(vec![1; 64]),
            salt: Salt::from_bytes(&[1; 32]).unwrap(),
            caller: Some(office.digest(0)),
            checkpoint: String::new(),
            message: Some(b"its name".to_vec()),
        };
        assert_eq!(kind(office.desk.recover(recovery()).await), Kind::NoManifest);
        assert_eq!(
            kind(office.desk.recover(recovery()).await),
            Kind::NoManifest,
            "what failed may be sent again"
        );
        office.desk.recoveries.add(b"its name".to_vec());
        assert_eq!(kind(office.desk.recover(recovery()).await), Kind::Denied);
    });
}

#[test]
fn strangers_read_the_control_stream_and_owners_everything() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let workload = office.admit(WEB).await.unwrap();
        office.desk.issue(&workload, None).await.unwrap();
        let (desk, owner) = (&office.desk, Some(office.digest(0)));
        let (stranger, replica) = (Some(KeyDigest::of(b"a stranger")), StreamId::Replica(REPLICA));

        assert_eq!(desk.streams(stranger).await.unwrap(), (vec![StreamId::Control], 1));
        assert_eq!(desk.streams(owner).await.unwrap().0.len(), 2);
        for nobody in [None, stranger] {
            assert_eq!(kind(desk.readable(&replica.to_string(), nobody)), Kind::Denied);
            assert_eq!(kind(desk.segments(replica, 0, nobody).await), Kind::Denied);
            assert!(desk.segments(StreamId::Control, 0, nobody).await.is_ok());
            let serial = SerialNumber::try_from([1; 16].as_slice()).unwrap();
            assert_eq!(kind(desk.prove(serial, nobody).await), Kind::Denied);
        }
        assert!(desk.segments(replica, 0, owner).await.is_ok());

        let evidence = BlobHash::of(&workload.evidence);
        assert_eq!(kind(desk.check_blobs(&[evidence], stranger)), Kind::Denied);
        assert!(desk.check_blobs(&[evidence], owner).is_ok());
        assert!(desk.check_blobs(&[BlobHash::of(WEB)], stranger).is_ok(), "policies are for everybody");
        assert_eq!(desk.blob(evidence).await.unwrap(), workload.evidence);
        assert_eq!(kind(desk.blob(BlobHash::of(b"nothing")).await), Kind::NotFound);
        assert_eq!(kind(desk.head(StreamId::Control, 1000).await), Kind::Beyond);
    });
}

#[test]
fn transit_keys_are_for_the_holder_of_a_current_certificate_with_their_name() {
    on_a_desk(Standing::alone(), async |office| {
        office.set(1, json!({})).await.unwrap();
        let workload = office.admit(WEB).await.unwrap();
        let issued = office.desk.issue(&workload, None).await.unwrap();
        let leaf = leaf_of(&issued.chain_pem);
        let current = office.desk.current_for_transit().unwrap();
        let client = TransitClient::new(&leaf, &current).unwrap();
        let keys =
            |name: &str, at| office.desk.transit_keys(&client, WorkloadSecretId::new(name).unwrap(), at);
        let sealed = keys("web", now()).unwrap().seal(0, b"plain", b"").unwrap();
        let opened = keys("web", now()).unwrap().open(0, &sealed, b"").unwrap();
        assert_eq!(opened.unwrap().as_slice(), b"plain");
        // The first use is on record before its answer leaves, the others together.
        let before = office.events();
        for _ in 0..5 {
            let keys = keys("web", now()).unwrap();
            keys.seal(0, b"plain", b"").unwrap();
            assert!(keys.open(0, b"not a message of this key", b"").unwrap().is_none());
            office.desk.transit_used(keys, now()).await.unwrap();
        }
        let uses = |events: Vec<&str>| events.iter().filter(|event| **event == "TransitKeyUsed").count();
        assert_eq!((uses(before), uses(office.events())), (0, 1));
        office.desk.record_transit_uses(now(), true).await.unwrap();
        assert_eq!(uses(office.events()), 2);
        assert_eq!(kind(keys("database", now())), Kind::Denied);
        assert_eq!(kind(keys("web", now().plus(Duration::from_hours(2)))), Kind::Denied, "expired");
        office.set(1, json!({ "AuditorPubKeys": [] })).await.unwrap();
        assert_eq!(kind(keys("web", now())), Kind::Denied, "of an earlier manifest");
    });
}

fn leaf_of(chain_pem: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::from_pem_slice(chain_pem.as_bytes()).unwrap().to_vec()
}

#[test]
fn an_api_that_the_manifest_finds_too_old_serves_nothing() {
    on_a_desk(Standing::alone(), async |office| {
        assert_eq!(kind(office.desk.in_force_for_api(1)), Kind::NoManifest);
        office.set(1, json!({ "MinimumAPIVersion": "v1" })).await.unwrap();
        assert!(office.desk.in_force_for_api(1).is_ok());
        assert_eq!(kind(office.desk.in_force_for_api(0)), Kind::ApiTooOld);
    });
}

/// Takes questions and answers none, until it is dropped.
struct SilentVendor {
    url: String,
    held: Arc<std::sync::Mutex<Option<Vec<std::net::TcpStream>>>>,
}

impl SilentVendor {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let held = Arc::new(std::sync::Mutex::new(Some(Vec::new())));
        let hold = Arc::clone(&held);
        std::thread::spawn(move || {
            for question in listener.incoming().map_while(Result::ok) {
                if let Some(held) = hold.lock().unwrap().as_mut() {
                    held.push(question);
                }
            }
        });
        Self { url, held }
    }

    fn endorsements(&self) -> Endorsements {
        static TDX: LazyLock<TempDir> = LazyLock::new(|| {
            let directory = tempfile::tempdir().unwrap();
            SimulatedMachine::create(directory.path(), SimulatedKind::Tdx, now()).unwrap();
            directory
        });
        let anchors = Anchors::simulated(&machine(), &SimulatedMachine::open(TDX.path()).unwrap());
        let url = &self.url;
        let services = Services { amd: url.clone(), intel: url.clone(), intel_root: url.clone() };
        Endorsements::open(None, anchors, Some(Fetcher::new(None, services))).unwrap()
    }

    fn asked(&self) -> usize {
        self.held.lock().unwrap().as_ref().map_or(0, Vec::len)
    }
}

impl Drop for SilentVendor {
    fn drop(&mut self) {
        *self.held.lock().unwrap() = None;
    }
}

/// Evidence that is right in all that needs no vendor, of a chip that does not exist.
fn of_a_made_up_chip(number: u32) -> Presented {
    const CHIP_ID: std::ops::Range<usize> = 0x1a0..0x1e0;
    let mut presented = Office::presented(WEB);
    let mut evidence = SnpEvidence::from_protobuf(&presented.evidence.unwrap().document).unwrap();
    evidence.vcek.clear();
    evidence.report[CHIP_ID].fill(0x5a);
    evidence.report[CHIP_ID][..4].copy_from_slice(&number.to_le_bytes());
    let document = evidence.to_protobuf().unwrap();
    presented.evidence = Some(Evidence { oid: EvidenceOid::Snp, document });
    presented
}

/// Threads of this process that ask vendors.
fn threads_for_vendors() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name =
        |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.map_while(Result::ok).filter(|task| name(task).trim() == "vendors").count()
}

#[test]
fn reports_of_made_up_chips_keep_no_good_workload_waiting() {
    let vendor = SilentVendor::start();
    let endorsements = vendor.endorsements();
    on_a_desk_with(Standing::alone(), endorsements, async move |office| {
        office.set(1, json!({})).await.unwrap();
        let office = std::rc::Rc::new(office);
        let mut flood = Vec::new();
        for number in 0..60 {
            let office = std::rc::Rc::clone(&office);
            flood.push(tokio::task::spawn_local(async move {
                let stranger = SocketAddr::from(([198, 51, 100, u8::try_from(number % 20).unwrap()], 4711));
                let active = office.desk.in_force().unwrap();
                office.desk.admit(active, of_a_made_up_chip(number), stranger, now()).await.is_ok()
            }));
        }
        // Everybody has a place or was turned away; the vendor has not answered anybody.
        while vendor.asked() < 8 {
            tokio::time::sleep(Duration::from_millis(10)).await; // until other threads have asked
        }
        for _ in 0..20 {
            let admitted = loop {
                match office.admit(WEB).await {
                    Err(Turned::Busy(_)) => tokio::task::yield_now().await,
                    verdict => break verdict,
                }
            };
            assert!(admitted.is_ok());
        }
        assert!(threads_for_vendors() <= 8);
        assert_eq!(office.desk.endorsements.entries().len(), 1, "the revocation list that came along");
        drop(vendor); // hangs up, so that nobody waits for the end of its patience
        for stranger in flood {
            assert!(!stranger.await.unwrap(), "a chip that does not exist is nobody's");
        }
    });
}
