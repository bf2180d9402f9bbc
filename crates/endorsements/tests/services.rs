//! Endorsements from a server on loopback that plays AMD's and Intel's services, well and badly.
//! Certificates and collateral are real ones; revocation lists are a simulated processor's.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use attestation::{
    Anchors, Evidence, EvidenceOid, Issuer as _, PlatformCa, PlatformId, ReportData, SnpEvidence,
    TdxEvidence,
    simulated::{SimulatedKind, SimulatedMachine},
    verify,
};
use endorsements::{EndorsementOptions, Endorsements, Fetcher, Name, PutError, Reach, Services};
use manifest::{PolicyHash, ReferenceValues, SnpProduct, Timestamp};

/// 2025-06-27: inside the dates of the real collateral.
const NOW: Timestamp = Timestamp::from_millis(1_751_000_000_000);

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../attestation/testdata/", $name)).as_slice()
    };
}

const QUOTE: &[u8] = file!("tdx/tdx10-v4-dcapqvl.quote.bin");
const COLLATERAL: &[u8] = file!("tdx/tdx10-v4-dcapqvl.collateral.json");

/// What the server does with a path.
#[derive(Clone)]
enum Answer {
    Body(Vec<u8>, Vec<(&'static str, String)>),
    Status(u16),
    Redirect(String),
    /// Says so many bytes, and sends them.
    Endless(usize),
    /// Takes the question and never answers.
    Silence,
}

/// A server; each connection is one question.
struct Server {
    url: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Arc::<Mutex<HashMap<String, Answer>>>::default();
        let asked = Arc::<AtomicUsize>::default();
        let (known, count) = (Arc::clone(&answers), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                let known = Arc::clone(&known);
                std::thread::spawn(move || serve(stream, &known));
            }
        });
        Self { url, answers, asked }
    }

    fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn services(&self) -> Services {
        Services { amd: self.url.clone(), intel: self.url.clone(), intel_root: self.url.clone() }
    }

    /// Endorsements that ask this server.
    fn endorsements(&self, directory: Option<&Path>, anchors: Anchors) -> Endorsements {
        let fetcher = Fetcher::new(None, self.services());
        Endorsements::open(directory.map(Path::to_owned), anchors, Some(fetcher)).unwrap()
    }

    /// Answers Intel's four questions from the real collateral.
    fn play_intel(&self) {
        let collateral: HashMap<String, String> = serde_json::from_slice(COLLATERAL).unwrap();
        let signed = |name: &str, document: &str, signature: &str| {
            format!(r#"{{"{name}":{},"signature":"{}"}}"#, collateral[document], collateral[signature])
                .into_bytes()
        };
        let chain = |name: &str| {
            let pem: Vec<String> = collateral[name].bytes().map(|byte| format!("%{byte:02X}")).collect();
            pem.concat()
        };
        self.answer("/tdx/certification/v4/tcb?fmspc=b0c06f000000", {
            let body = signed("tcbInfo", "tcb_info", "tcb_info_signature");
            Answer::Body(body, vec![("TCB-Info-Issuer-Chain", chain("tcb_info_issuer_chain"))])
        });
        self.answer("/tdx/certification/v4/qe/identity", {
            let body = signed("enclaveIdentity", "qe_identity", "qe_identity_signature");
            Answer::Body(body, vec![("SGX-Enclave-Identity-Issuer-Chain", chain("qe_identity_issuer_chain"))])
        });
        self.answer("/sgx/certification/v4/pckcrl?ca=platform&encoding=der", {
            let body = hex::decode(&collateral["pck_crl"]).unwrap();
            Answer::Body(body, vec![("SGX-PCK-CRL-Issuer-Chain", chain("pck_crl_issuer_chain"))])
        });
        let root_crl = hex::decode(&collateral["root_ca_crl"]).unwrap();
        self.answer("/IntelSGXRootCA.der", Answer::Body(root_crl, Vec::new()));
    }
}

fn serve(mut stream: TcpStream, answers: &Mutex<HashMap<String, Answer>>) {
    let mut question = Vec::new();
    let mut buffer = [0; 1024];
    while !question.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(size) => question.extend(&buffer[..size]),
        }
    }
    let question = String::from_utf8(question).unwrap();
    let path = question.split(' ').nth(1).unwrap();
    let answer = answers.lock().unwrap().get(path).cloned().unwrap_or(Answer::Status(404));
    // Whoever asked may be gone before everything was sent.
    let _ = match answer {
        Answer::Body(body, headers) => {
            let headers: Vec<String> =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{}\r\n", body.len(), headers.concat());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body))
        }
        Answer::Status(code) => {
            stream.write_all(format!("HTTP/1.1 {code} No\r\ncontent-length: 0\r\n\r\n").as_bytes())
        }
        Answer::Redirect(to) => stream.write_all(
            format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").as_bytes(),
        ),
        Answer::Endless(size) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![0; size]))
        }
        Answer::Silence => stream.read(&mut buffer).map(drop),
    };
}

/// A report without its certificate.
fn bare(report: &[u8]) -> Evidence {
    let evidence = SnpEvidence { report: report.to_vec(), ..SnpEvidence::default() };
    Evidence { oid: EvidenceOid::Snp, document: evidence.to_protobuf().unwrap() }
}

fn vcek_of(evidence: &Evidence) -> Vec<u8> {
    SnpEvidence::from_protobuf(&evidence.document).unwrap().vcek
}

fn path_of(vcek: &[u8]) -> String {
    match Endorsements::none().identify(vcek).unwrap() {
        Name::Vcek(id) => id.service_path(),
        other => panic!("{other}"),
    }
}

#[test]
fn certificates_are_fetched_once_and_kept_over_a_restart() {
    let server = Server::start();
    let reports = [
        (file!("milan-v2-sev.report.bin"), file!("milan-v2-sev.vcek.der")),
        (file!("milan-v3-oak-cb.report.bin"), file!("milan-v3-oak-cb.vcek.der")),
        (file!("genoa-v5-oak.report.bin"), file!("genoa-v5-oak.vcek.der")),
        (file!("turin-v5-oak.report.bin"), file!("turin-v5-oak.vcek.der")),
    ];
    for (_, vcek) in reports {
        server.answer(&path_of(vcek), Answer::Body(vcek.to_vec(), Vec::new()));
    }
    let directory = tempfile::tempdir().unwrap();
    let endorsements = server.endorsements(Some(directory.path()), Anchors::vendors());
    for (report, vcek) in reports {
        let lacking = endorsements.complete(bare(report), NOW, Reach::Memory);
        assert!(lacking.lacking[0].starts_with("the certificate of chip"), "{lacking:?}");
        let completed = endorsements.complete(bare(report), NOW, Reach::Network);
        assert_eq!(vcek_of(&completed.evidence), vcek);
    }
    let asked = server.asked();
    let offline = Endorsements::open(Some(directory.path().to_owned()), Anchors::vendors(), None).unwrap();
    for (report, vcek) in reports {
        let completed = offline.complete(bare(report), NOW, Reach::Network);
        assert_eq!(vcek_of(&completed.evidence), vcek);
        // AMD's revocation lists were not to be had here.
        assert_eq!(completed.lacking.len(), 1);
        assert!(completed.lacking[0].starts_with("crl-"), "{completed:?}");
    }
    assert_eq!(server.asked(), asked);
}

#[test]
fn a_thousand_pods_of_one_chip_ask_once() {
    let server = Server::start();
    let vcek = file!("milan-v3-oak-rk.vcek.der");
    server.answer(&path_of(vcek), Answer::Body(vcek.to_vec(), Vec::new()));
    server.answer("/vcek/v1/Milan/crl", Answer::Status(503));
    let endorsements = server.endorsements(None, Anchors::vendors());
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let completed =
                    endorsements.complete(bare(file!("milan-v3-oak-rk.report.bin")), NOW, Reach::Network);
                assert_eq!(vcek_of(&completed.evidence), vcek);
            });
        }
    });
    assert!(server.asked() <= 2, "asked {} times for a certificate and a list", server.asked());
}

#[test]
fn intels_answers_make_collateral_that_convinces_the_verifier() {
    let server = Server::start();
    server.play_intel();
    let endorsements = server.endorsements(None, Anchors::vendors());
    let bare = TdxEvidence { quote: QUOTE.to_vec(), collateral: None };
    let bare = Evidence { oid: EvidenceOid::Tdx, document: bare.to_protobuf().unwrap() };
    let completed = endorsements.complete(bare.clone(), NOW, Reach::Network);
    assert_eq!((completed.lacking.len(), server.asked()), (0, 4));
    let field = |at: usize, size: usize| hex::encode(&QUOTE[48 + at..48 + at + size]);
    let reference: ReferenceValues = serde_json::from_value(serde_json::json!({ "tdx": [{
        "MrTd": field(136, 48), "MrSeam": field(16, 48), "Xfam": field(128, 8),
        "Rtmrs": [field(328, 48), field(376, 48), field(424, 48), field(472, 48)],
    }] }))
    .unwrap();
    let data = ReportData::from_bytes(QUOTE[568..632].try_into().unwrap());
    assert!(verify(&completed.evidence, &data, &reference, NOW).is_ok());
    assert!(verify(&bare, &data, &reference, NOW).is_err());
    // Past half of its life it is asked for again; it has nothing newer.
    let names: Vec<_> = endorsements.entries().keys().cloned().collect();
    let platform = PlatformId { fmspc: "b0c06f000000".into(), ca: PlatformCa::Platform };
    assert_eq!(names, [Name::Collateral(platform)]);
    assert!(endorsements.refresh(NOW).renewed.is_empty());
    assert_eq!(endorsements.refresh(NOW.plus(Duration::from_hours(24 * 20))).renewed, names);
}

#[test]
fn bad_answers_are_errors_with_the_address_and_are_left_alone_for_a_while() {
    let vcek = file!("milan-v3-oak-cb.vcek.der");
    let path = path_of(vcek);
    let bad = [
        Answer::Status(500),
        Answer::Redirect("http://127.0.0.1:1/elsewhere".into()),
        Answer::Endless(600 << 10),
        Answer::Body(b"<html>not a certificate</html>".to_vec(), Vec::new()),
        // A certificate of another chip, genuine as it is.
        Answer::Body(file!("milan-v3-oak-rk.vcek.der").to_vec(), Vec::new()),
    ];
    for answer in bad {
        let server = Server::start();
        server.answer(&path, answer);
        let endorsements = server.endorsements(None, Anchors::vendors());
        for _ in 0..3 {
            let completed =
                endorsements.complete(bare(file!("milan-v3-oak-cb.report.bin")), NOW, Reach::Network);
            assert!(vcek_of(&completed.evidence).is_empty());
            assert!(completed.lacking[0].contains("certificate of chip Milan-"), "{completed:?}");
        }
        assert!(endorsements.entries().is_empty());
    }
    let server = Server::start();
    server.answer(&path, Answer::Status(500));
    let endorsements = server.endorsements(None, Anchors::vendors());
    for _ in 0..5 {
        endorsements.complete(bare(file!("milan-v3-oak-cb.report.bin")), NOW, Reach::Network);
    }
    assert_eq!(server.asked(), 2, "one question for the certificate, one for the list");
}

#[test]
fn a_silent_service_costs_ten_seconds_once() {
    let server = Server::start();
    server.answer(&path_of(file!("genoa-v5-oak.vcek.der")), Answer::Silence);
    let endorsements = server.endorsements(None, Anchors::vendors());
    let started = Instant::now();
    for _ in 0..3 {
        endorsements.complete(bare(file!("genoa-v5-oak.report.bin")), NOW, Reach::Network);
    }
    assert!(started.elapsed() < Duration::from_secs(19), "{:?}", started.elapsed());
}

#[test]
fn a_mirror_is_asked_first_and_the_service_when_it_fails() {
    let (mirror, service) = (Server::start(), Server::start());
    let vcek = file!("turin-v5-oak.vcek.der");
    service.answer(&path_of(vcek), Answer::Body(vcek.to_vec(), Vec::new()));
    let fetcher = Fetcher::new(Some(mirror.url.clone() + "/"), service.services());
    let endorsements = Endorsements::open(None, Anchors::vendors(), Some(fetcher)).unwrap();
    let completed = endorsements.complete(bare(file!("turin-v5-oak.report.bin")), NOW, Reach::Network);
    assert_eq!(vcek_of(&completed.evidence), vcek);
    assert!(mirror.asked() >= 1 && service.asked() >= 1);

    let mirror = Server::start();
    mirror.answer(&path_of(vcek), Answer::Body(vcek.to_vec(), Vec::new()));
    let nowhere = Services { amd: "http://127.0.0.1:1".into(), ..Services::default() };
    let fetcher = Fetcher::new(Some(mirror.url.clone()), nowhere);
    let endorsements = Endorsements::open(None, Anchors::vendors(), Some(fetcher)).unwrap();
    let completed = endorsements.complete(bare(file!("turin-v5-oak.report.bin")), NOW, Reach::Network);
    assert_eq!(vcek_of(&completed.evidence), vcek);
}

/// A simulated processor, and lists of revoked keys of its root: an old one and a newer one.
struct Lists {
    machine: tempfile::TempDir,
    tdx: tempfile::TempDir,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Lists {
    fn make() -> Self {
        let (machine, tdx) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        SimulatedMachine::create(machine.path(), SimulatedKind::Snp, NOW).unwrap();
        SimulatedMachine::create(tdx.path(), SimulatedKind::Tdx, NOW).unwrap();
        let read = || std::fs::read(machine.path().join("crl.der")).unwrap();
        let old = read();
        SimulatedMachine::revoke(machine.path(), NOW).unwrap();
        let new = read();
        Self { machine, tdx, old, new }
    }

    fn machine(&self) -> SimulatedMachine {
        SimulatedMachine::open(self.machine.path()).unwrap()
    }

    fn anchors(&self) -> Anchors {
        Anchors::simulated(&self.machine(), &SimulatedMachine::open(self.tdx.path()).unwrap())
    }
}

#[test]
fn a_revocation_list_never_gives_way_to_an_older_one() {
    let lists = Lists::make();
    let name = Name::Crl(SnpProduct::Milan);
    let directory = tempfile::tempdir().unwrap();
    let open = || Endorsements::open(Some(directory.path().to_owned()), lists.anchors(), None).unwrap();
    let endorsements = open();
    endorsements.put(&name, lists.new.clone()).unwrap();
    let refused = endorsements.put(&name, lists.old.clone()).unwrap_err();
    assert!(matches!(refused, PutError::Older { known: 2, got: 1, .. }), "{refused}");
    let refused = open().put(&name, lists.old.clone()).unwrap_err();
    assert!(matches!(refused, PutError::Older { .. }), "after a restart: {refused}");

    // Evidence that hides the revocation behind the old list is given the new one, and refused.
    std::fs::write(lists.machine.path().join("crl.der"), &lists.old).unwrap();
    let machine = lists.machine();
    let reference = machine.reference_values();
    let data = ReportData::from_bytes([7; 64]);
    let evidence = machine.guest(PolicyHash::of(b"policy")).issue(&data).unwrap();
    assert!(verify(&evidence, &data, &reference, NOW).is_ok());
    let completed = endorsements.complete(evidence, NOW, Reach::Memory).evidence;
    let refusal = verify(&completed, &data, &reference, NOW).err().unwrap();
    assert_eq!(
        (&*refusal.checks[0].check, refusal.checks[0].found.as_str()),
        ("signing key certificate", "revoked")
    );
}

#[test]
fn a_list_that_comes_with_evidence_is_kept_for_the_others() {
    let lists = Lists::make();
    let endorsements = Endorsements::open(None, lists.anchors(), None).unwrap();
    let data = ReportData::from_bytes([7; 64]);
    let evidence = lists.machine().guest(PolicyHash::of(b"policy")).issue(&data).unwrap();
    let completed = endorsements.complete(evidence.clone(), NOW, Reach::Memory);
    assert_eq!((completed.evidence, completed.lacking.len()), (evidence.clone(), 0));
    assert_eq!(endorsements.entries().len(), 1);
    let mut without = SnpEvidence::from_protobuf(&evidence.document).unwrap();
    without.crl = None;
    let without = Evidence { oid: EvidenceOid::Snp, document: without.to_protobuf().unwrap() };
    let completed = endorsements.complete(without, NOW, Reach::Memory).evidence;
    assert_eq!(SnpEvidence::from_protobuf(&completed.document).unwrap().crl, Some(lists.new.clone()));
    // A list that nobody trusted signed is neither kept nor replaced: the verifier refuses it.
    let vendors = Endorsements::none();
    assert_eq!(vendors.complete(evidence.clone(), NOW, Reach::Memory).evidence, evidence);
    assert!(vendors.entries().is_empty());
}

#[test]
fn a_bundle_carries_everything_and_nothing_false() {
    let vcek = file!("turin-v5-oak.vcek.der");
    let connected = Endorsements::none();
    let name = connected.identify(vcek).unwrap();
    connected.put(&name, vcek.to_vec()).unwrap();
    let platform = PlatformId { fmspc: "b0c06f000000".into(), ca: PlatformCa::Platform };
    connected.put(&Name::Collateral(platform.clone()), COLLATERAL.to_vec()).unwrap();
    let bundle = connected.export().unwrap();

    let apart = Endorsements::none();
    let report = apart.import(&bundle).unwrap();
    assert_eq!((report.imported.len(), report.refused.len()), (2, 0));
    assert_eq!(apart.entries(), connected.entries());

    let text = String::from_utf8(bundle).unwrap();
    let other = text.replace("vcek-Turin", "vcek-Milan").replace("b0c06f000000", "b0c06f000001");
    let report = Endorsements::none().import(other.as_bytes()).unwrap();
    assert_eq!((report.imported.len(), report.refused.len()), (0, 2), "{report:?}");
    assert!(report.refused.iter().any(|why| why.contains("it is for platforms b0c06f000000")), "{report:?}");
    let evil = text.replace("vcek-Turin", "../../etc/vcek-Turin");
    assert!(
        Endorsements::none().import(evil.as_bytes()).unwrap().refused[0].contains("names no endorsement")
    );
    assert!(
        Endorsements::none().import(b"{}").unwrap_err().to_string().contains("not an endorsement bundle")
    );
    let newer = text.replace("endorsements/1", "endorsements/2");
    assert!(Endorsements::none().import(newer.as_bytes()).unwrap_err().to_string().contains("expected"));
}

#[test]
fn a_program_without_a_network_takes_a_bundle_in_and_the_one_that_replaces_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.json");
    let options = EndorsementOptions {
        endorsement_bundle: Some(path.clone()),
        endorsements_offline: true,
        ..EndorsementOptions::default()
    };
    let missing = options.open(None).err().unwrap().to_string();
    assert!(missing.contains("endorsement bundle") && missing.contains("bundle.json"), "{missing}");

    let vcek = file!("turin-v5-oak.vcek.der");
    let connected = Endorsements::none();
    let name = connected.identify(vcek).unwrap();
    connected.put(&name, vcek.to_vec()).unwrap();
    std::fs::write(&path, connected.export().unwrap()).unwrap();
    let apart = options.open(None).unwrap();
    assert_eq!(apart.entries(), connected.entries());

    let platform = PlatformId { fmspc: "b0c06f000000".into(), ca: PlatformCa::Platform };
    connected.put(&Name::Collateral(platform), COLLATERAL.to_vec()).unwrap();
    std::fs::write(&path, connected.export().unwrap()).unwrap();
    apart.refresh(NOW);
    assert_eq!(apart.entries(), connected.entries());
    // One that cannot be read is said, and what is known stays.
    std::fs::write(&path, "{").unwrap();
    let failed = apart.refresh(NOW).failed;
    assert!(failed.iter().any(|why| why.contains("bundle.json")), "{failed:?}");
    assert_eq!(apart.entries(), connected.entries());
}

#[test]
fn a_damaged_cache_is_ignored_and_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let vcek = file!("milan-v2-sev.vcek.der");
    let name = Endorsements::none().identify(vcek).unwrap();
    let open = || Endorsements::open(Some(directory.path().to_owned()), Anchors::vendors(), None).unwrap();
    open().put(&name, vcek.to_vec()).unwrap();
    let path = directory.path().join(name.to_string());
    let mut damaged = vcek.to_vec();
    damaged[300] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    std::fs::write(directory.path().join("crl-Milan.der"), vec![0; 1 << 20]).unwrap();
    std::fs::write(directory.path().join("unrelated"), b"x").unwrap();
    let endorsements = open();
    assert!(endorsements.entries().is_empty());
    endorsements.put(&name, vcek.to_vec()).unwrap();
    assert_eq!(open().entries().len(), 1);
}
