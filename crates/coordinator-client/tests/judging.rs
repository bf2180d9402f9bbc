//! Who is taken for a Coordinator, and what is asked of vendors before that is known.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use atls::{ClientAuth, ConnectionKey, ServerConfig};
use attestation::{
    Anchors, Evidence, EvidenceOid, Issuer, ReportData, TdxEvidence,
    simulated::{SimulatedKind, SimulatedMachine},
};
use coordinator_client::{Attested, CallError, Caller, Deadlines, Stranger, Trust};
use endorsements::{Endorsements, Fetcher, Services};
use manifest::{Manifest, PolicyHash, ReferenceValues, Timestamp};
use serde_json::json;

/// 2025-06-27: inside the dates of the real collateral.
const NOW: Timestamp = Timestamp::from_millis(1_751_000_000_000);
const QUOTE: &[u8] = include_bytes!("../../attestation/testdata/tdx/tdx10-v4-dcapqvl.quote.bin");
const LIMIT: Duration = Duration::from_secs(60);

fn manifest(reference: &ReferenceValues, policy: PolicyHash, role: &str) -> Arc<Manifest> {
    let text = json!({
        "Policies": { policy.to_string(): { "SANs": ["coordinator"], "Role": role } },
        "ReferenceValues": reference,
    });
    Arc::new(Manifest::read(text.to_string().as_bytes()).unwrap())
}

/// A vendor that never answers usefully, and how often it was asked.
fn vendor() -> (Services, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (Services { amd: url.clone(), intel: url.clone(), intel_root: url }, asked)
}

/// Judges a real quote that came without collateral. Gives the verdict, and how often Intel was asked.
fn judge_quote(role: &str, expected: &ReportData) -> (Result<(), Stranger>, usize) {
    let (services, asked) = vendor();
    let endorsements =
        Endorsements::open(None, Anchors::vendors(), Some(Fetcher::new(None, services))).unwrap();
    let field = |at: usize, size: usize| hex::encode(&QUOTE[48 + at..48 + at + size]);
    let reference: ReferenceValues = serde_json::from_value(json!({ "tdx": [{
        "MrTd": field(136, 48), "MrSeam": field(16, 48), "Xfam": field(128, 8),
        "Rtmrs": [field(328, 48), field(376, 48), field(424, 48), field(472, 48)],
    }] }))
    .unwrap();
    let policy = PolicyHash::from_bytes(QUOTE[48 + 184..48 + 184 + 32].try_into().unwrap());
    let trust = Trust { manifest: manifest(&reference, policy, role), endorsements: Arc::new(endorsements) };
    let document = TdxEvidence { quote: QUOTE.to_vec(), collateral: None }.to_protobuf().unwrap();
    let verdict = trust.judge(Some(Evidence { oid: EvidenceOid::Tdx, document }), expected, NOW);
    (verdict.map(drop), asked.load(Ordering::SeqCst))
}

#[test]
fn a_vendor_is_asked_only_about_what_may_be_a_coordinator_of_the_manifest_on_this_connection() {
    let bound_to = ReportData::from_bytes(QUOTE[568..632].try_into().unwrap());
    let (verdict, asked) = judge_quote("coordinator", &bound_to);
    assert!(matches!(verdict, Err(Stranger::Evidence(_))), "without collateral: {verdict:?}");
    assert!(asked > 0, "what would make it complete was asked for");

    let (verdict, asked) = judge_quote("", &bound_to);
    assert!(matches!(verdict, Err(Stranger::NotACoordinator(_))), "{verdict:?}");
    assert_eq!(asked, 0, "a workload");
    let (verdict, asked) = judge_quote("coordinator", &ReportData::bind(b"key", b"another connection"));
    assert!(matches!(verdict, Err(Stranger::Evidence(_))), "{verdict:?}");
    assert_eq!(asked, 0, "evidence of another connection");
}

/// Calls somebody who runs on a simulated machine with `policy`. Gives the verdict by a manifest that trusts
/// `trusted` in `role`.
async fn call(policy: PolicyHash, trusted: PolicyHash, role: &str) -> Result<(), CallError> {
    let directory = tempfile::tempdir().unwrap();
    let machine = SimulatedMachine::create(directory.path(), SimulatedKind::Snp, program_time()).unwrap();
    let manifest = manifest(&machine.reference_values(), trusted, role);
    let issuer: Arc<dyn Issuer> = Arc::new(machine.guest(policy));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = ServerConfig { issuer, client_auth: ClientAuth::Optional, handshake_timeout: LIMIT };
    let serving = async {
        let stream = listener.accept().await.unwrap().0;
        let mut accepted = atls::accept(stream, &server, program_time()).await.unwrap();
        // A client's HTTP/2 begins on the way to a verdict in its favour only.
        let _ = tokio::io::copy(&mut accepted.stream, &mut tokio::io::sink()).await;
    };
    let caller = Caller {
        key: Arc::new(ConnectionKey::generate().unwrap()),
        issuer: None,
        deadlines: Deadlines { dial: LIMIT, handshake: LIMIT, request: LIMIT },
    };
    let trust = Trust { manifest, endorsements: Arc::new(Endorsements::none()) };
    tokio::select! {
        () = serving => unreachable!("the client is done before the server"),
        called = Attested::connect(&address, &caller, &trust, program_time) => called.map(drop),
    }
}

fn program_time() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_coordinator_of_the_manifest_gives_a_connection() {
    let (own, other) = (PolicyHash::of(b"coordinator"), PolicyHash::of(b"another"));
    call(own, own, "coordinator").await.unwrap();
    for (trusted, role) in [(own, ""), (other, "coordinator")] {
        let error = call(own, trusted, role).await.unwrap_err();
        assert!(error.is_refusal());
        let CallError::Stranger { reason, .. } = error else { panic!("{error:?}") };
        assert_eq!(reason, Stranger::NotACoordinator(own));
    }
}
