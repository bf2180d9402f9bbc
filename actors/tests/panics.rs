//! A bug in an actor costs the request that met it. Here the bug is in the clock.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use actix::{Supervisor, SyncArbiter};
use actors::{
    Active, AskError, Authority, Clock, IssueError, IssueMeshCert, Journal, JournalError, Ledger,
    LedgerError, Mailbox, Phase, RecordRefusal, SetManifest, SetManifestError, Snapshot,
};
use attestation::{
    Claims, Issuer as _, ReportData,
    simulated::{SimulatedKind, SimulatedMachine},
};
use manifest::{Manifest, PolicyHash, ReplicaId, RequestId, Timestamp};
use serde_json::json;
use storage_schema::{Archive, EventStore as _, Log, MemoryStore};
use tokio::sync::watch;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const REPLICA: ReplicaId = ReplicaId::from_bytes([1; 16]);
const REQUEST: RequestId = RequestId::from_bytes([2; 16]);
const POLICY: &[u8] = b"policy of the Coordinator";

/// Panics once when it was told to.
#[derive(Clone, Default)]
struct Fuse(Arc<AtomicBool>);

impl Fuse {
    fn blow_at_next_use(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Clock for Fuse {
    fn now(&self) -> Timestamp {
        assert!(!self.0.swap(false, Ordering::SeqCst), "a bug");
        NOW
    }
}

struct Deployment {
    store: Arc<MemoryStore>,
    snapshot: watch::Receiver<Snapshot>,
    ledger: Mailbox<Ledger<MemoryStore, Fuse>>,
    ledger_fuse: Fuse,
    manifest: Manifest,
    claims: Claims,
    evidence: Vec<u8>,
}

fn manifest(machine: &SimulatedMachine) -> Manifest {
    let (_, seedshare_owner) = keys::generate_seedshare_owner_key().unwrap();
    let text = json!({
        "Policies": { PolicyHash::of(POLICY).to_string(): { "SANs": ["coordinator"], "Role": "coordinator" } },
        "ReferenceValues": machine.reference_values(),
        "SeedshareOwnerPubKeys": [hex::encode(seedshare_owner)],
    });
    Manifest::parse(text.to_string().as_bytes()).unwrap()
}

fn deployment() -> Deployment {
    let directory = tempfile::tempdir().unwrap();
    let machine =
        SimulatedMachine::create(&directory.path().join("machine"), SimulatedKind::Snp, NOW).unwrap();
    let manifest = manifest(&machine);
    let bound_to = ReportData::bind(b"key", b"nonce");
    let evidence = machine.guest(PolicyHash::of(POLICY)).issue(&bound_to).unwrap();
    let claims = attestation::verify(&evidence, &bound_to, &manifest.reference_values, NOW).unwrap();

    let store = Arc::new(MemoryStore::default());
    let (publish, snapshot) = watch::channel(Ledger::<MemoryStore, Fuse>::nothing());
    let (publish, ledger_fuse) = (Arc::new(publish), Fuse::default());
    let (for_ledger, fuse) = (Arc::clone(&store), ledger_fuse.clone());
    let ledger = SyncArbiter::start(1, move || {
        Ledger::open(Arc::clone(&for_ledger), fuse.clone(), REPLICA, Arc::clone(&publish)).unwrap()
    });
    let ledger = Mailbox::new(ledger, 4);
    Deployment { store, snapshot, ledger, ledger_fuse, manifest, claims, evidence: evidence.document }
}

impl Deployment {
    fn set(&self) -> SetManifest {
        SetManifest {
            manifest: self.manifest.clone(),
            policies: vec![POLICY.to_vec()],
            previous: None,
            caller: None,
            signatures: vec![],
            request: REQUEST,
        }
    }

    fn active(&self) -> Arc<Active> {
        match &self.snapshot.borrow().phase {
            Phase::Active(active) => Arc::clone(active),
            _ => panic!("no manifest in force"),
        }
    }

    /// Events of all streams, in a log that verifies.
    fn events(&self) -> Vec<&'static str> {
        let mut events = Vec::new();
        let key = self.active().engine.log_key().public();
        for stream in self.store.streams().unwrap() {
            let store = Arc::clone(&self.store);
            Log::open(store, stream, Some(key), |_, event| events.push(event.fact.kind())).unwrap();
        }
        events
    }
}

#[test]
fn the_ledger_is_rebuilt_from_the_log() {
    actix::System::new().block_on(async {
        let deployment = deployment();
        deployment.ledger_fuse.blow_at_next_use();
        let outcome = deployment.ledger.ask(deployment.set()).await.unwrap();
        assert!(matches!(outcome, Err(SetManifestError::Fault(LedgerError::Restarting))), "{outcome:?}");
        deployment.ledger.ask(deployment.set()).await.unwrap().unwrap();
        assert_eq!(deployment.active().generation, 1);
        assert_eq!(deployment.events(), ["ManifestSet", "SeedSharesCreated"]);
    });
}

#[test]
fn authority_and_journal_serve_on() {
    actix::System::new().block_on(async {
        let deployment = deployment();
        deployment.ledger.ask(deployment.set()).await.unwrap().unwrap();
        let (authority_fuse, journal_fuse) = (Fuse::default(), Fuse::default());
        let (archive, fuse) = (Arc::new(Archive::new(Arc::clone(&deployment.store))), journal_fuse.clone());
        let journal = Mailbox::new(
            Supervisor::start(move |_| Journal::new(&archive, fuse, REPLICA, None, Arc::new(|_| {}))),
            4,
        );
        let (for_authority, fuse) = (journal.clone(), authority_fuse.clone());
        let authority = Supervisor::start(move |_| Authority::new(for_authority, fuse, 1));
        let authority = Mailbox::new(authority, 4);
        let issue = async || {
            let request = IssueMeshCert {
                active: deployment.active(),
                claims: deployment.claims.clone(),
                evidence: deployment.evidence.clone(),
                certified_key: None,
                lifetime: keys::DEFAULT_LEAF_LIFETIME,
                nonce: b"nonce".to_vec(),
                hpke_key: None,
                spki_der: keys::generate_workload_owner_key().unwrap().1,
                request: REQUEST,
            };
            authority.ask(request).await.unwrap()
        };

        authority_fuse.blow_at_next_use();
        assert!(matches!(issue().await, Err(IssueError::Ask(AskError::Restarting))));
        issue().await.unwrap();

        journal_fuse.blow_at_next_use();
        assert!(matches!(issue().await, Err(IssueError::Journal(JournalError::Restarting))));
        issue().await.unwrap();

        let engine = Arc::clone(&deployment.active().engine);
        let (source, reason) = ("192.0.2.1".to_owned(), "evidence refused".into());
        let refusal = RecordRefusal { source, reason, evidence: None, request: REQUEST, engine };
        journal.ask(refusal).await.unwrap().unwrap();

        let answered = [
            "ManifestSet",
            "SeedSharesCreated",
            "ReplicaStarted",
            "CertificateIssued",
            "CertificateIssued",
            "AttestationRefused",
        ];
        assert_eq!(deployment.events(), answered);
    });
}
