//! Fuzz targets: whatever reads foreign bytes. None may panic, whatever it is given.
//!
//! `cargo test -p fuzz` runs each on its seeds and on some thousand mutations of them. To search for
//! longer, with libFuzzer: see `fuzz/README.md`.

use std::path::Path;

use attestation::{Evidence, EvidenceOid, ReportData, TdxEvidence};
use keys::LogKey;
use manifest::{Manifest, ReplicaId, RequestId, Timestamp};
use storage_schema::{
    Checkpoint, Event, EventStore as _, Fact, Log, LogId, MemoryStore, Position, StreamId, export,
    open_signed_head, signed_head,
};

const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

/// Something that reads foreign bytes.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
    /// Well-formed inputs, from which mutations start.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "segment", run: segment, seeds: segments },
    Target { name: "event", run: event, seeds: events },
    Target { name: "checkpoint", run: checkpoint, seeds: checkpoints },
    Target { name: "export", run: export_line, seeds: export_lines },
    Target { name: "manifest", run: manifest, seeds: manifests },
    Target { name: "evidence", run: evidence, seeds: evidences },
    Target { name: "certificate", run: certificate, seeds: certificates },
    Target { name: "certification-request", run: certification_request, seeds: certification_requests },
    Target { name: "seed-share", run: seed_share, seeds: seed_shares },
    Target { name: "kubernetes", run: kubernetes, seeds: yamls },
    Target { name: "identifiers", run: identifiers, seeds: identifier_texts },
];

/// Runs the target of that name.
pub fn run(name: &str, bytes: &[u8]) {
    for target in &TARGETS {
        if target.name == name {
            (target.run)(bytes);
        }
    }
}

fn segment(bytes: &[u8]) {
    let mut position = Position::start(StreamId::Control, None);
    if let Ok(verified) = position.advance(0, bytes) {
        for event in verified.events {
            let _ = Event::from_cbor(event);
        }
    }
    let _ = open_signed_head(bytes, None);
    let _ = signed_head(bytes).map(|head| open_signed_head(head, None));
}

fn segments() -> Vec<Vec<u8>> {
    let store = std::sync::Arc::new(MemoryStore::default());
    let Ok(mut log) = Log::open(std::sync::Arc::clone(&store), StreamId::Control, None, |_, _| {}) else {
        return Vec::new();
    };
    let events: Vec<Event> = events().iter().filter_map(|event| Event::from_cbor(event).ok()).collect();
    if let Ok(key) = key() {
        let _ = log.append(&events, &key);
    }
    let page = store.read(&StreamId::Control, 0, 1).unwrap_or_default();
    page.into_iter().map(|(_, bytes)| bytes).collect()
}

fn key() -> Result<LogKey, keys::KeyError> {
    LogKey::from_secret(&[1; 32])
}

fn event(bytes: &[u8]) {
    if let Ok(event) = Event::from_cbor(bytes)
        && let Ok(again) = event.to_cbor()
    {
        assert_eq!(Event::from_cbor(&again).as_ref(), Ok(&event), "what was read can be written and read");
    }
}

fn events() -> Vec<Vec<u8>> {
    let stopped = Event {
        at: NOW,
        replica: ReplicaId::from_bytes([1; 16]),
        request: RequestId::from_bytes([2; 16]),
        fact: Fact::ReplicaStopped,
    };
    let mut seeds = files("storage-schema/testdata/events");
    seeds.extend(stopped.to_cbor());
    seeds
}

fn checkpoint(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(key) = key() {
        let _ = Checkpoint::open(&text, LogId::new(key.public()));
    }
    if let Ok(id) = text.parse::<LogId>() {
        let _ = Checkpoint::open(&text, id);
    }
}

fn checkpoints() -> Vec<Vec<u8>> {
    let Ok(key) = key() else { return Vec::new() };
    let head = Position::start(StreamId::Control, None).head();
    vec![Checkpoint::sign(&head, &key).into_bytes(), LogId::new(key.public()).to_string().into_bytes()]
}

fn export_line(bytes: &[u8]) {
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        match export::Line::parse(line, number) {
            Ok(export::Line::Segment { signed_head, .. }) => {
                if let Ok(head) = export::base64(&signed_head) {
                    segment(&export::segment(&head, &[]));
                }
            }
            Ok(export::Line::Event { raw, .. }) => {
                let _ = export::base64(&raw).map(|raw| event(&raw));
            }
            Ok(export::Line::Export { .. } | export::Line::Blob { .. }) | Err(_) => {}
        }
    }
}

fn export_lines() -> Vec<Vec<u8>> {
    let text = concat!(
        r#"{"type":"export","version":1,"log":"x","made":"2026-11-24T12:00:00Z","filtered":true}"#,
        "\n",
        r#"{"type":"blob","hash":"00","content":"AAAA"}"#,
        "\n",
        r#"{"type":"event","stream":"control","raw":"oWF4AQ==","sequence":1,"fact":{}}"#,
        "\n",
        r#"{"type":"segment","stream":"control","index":0,"signed_head":"AgAA","before":{"size":0,"subtrees":[]},"leaves":[null,"AAAA"]}"#,
    );
    vec![text.as_bytes().to_vec()]
}

fn manifest(bytes: &[u8]) {
    let _ = Manifest::parse(bytes);
}

fn manifests() -> Vec<Vec<u8>> {
    let policy = "11".repeat(32);
    let text = format!(
        r#"{{"Policies":{{"{policy}":{{"SANs":["web","10.0.0.1"],"WorkloadSecretID":"a/b","Role":"coordinator"}}}},
        "ReferenceValues":{{"snp":[{{"ProductName":"Milan","TrustedMeasurement":"{0}","MinimumTCB":{{
        "BootloaderVersion":3,"TEEVersion":0,"SNPVersion":8,"MicrocodeVersion":115}}}}],
        "tdx":[{{"MrTd":"{0}","MrSeam":"{0}","Rtmrs":["{0}","{0}","{0}","{0}"],"Xfam":"e702060000000000"}}]}},
        "WorkloadOwnerPubKeys":["00"],"SeedshareOwnerPubKeys":["01"],"AuditorPubKeys":["02"]}}"#,
        "22".repeat(48)
    );
    vec![text.into_bytes()]
}

fn evidence(bytes: &[u8]) {
    if let Ok(tdx) = TdxEvidence::from_protobuf(bytes) {
        let again = tdx.to_protobuf().ok().map(|bytes| TdxEvidence::from_protobuf(&bytes));
        assert!(again.is_none_or(|again| again.as_ref() == Ok(&tdx)), "what was read is written the same");
    }
    let reference = manifests().iter().find_map(|bytes| Manifest::parse(bytes).ok());
    let Some(reference) = reference else { return };
    for oid in EvidenceOid::ALL {
        let evidence = Evidence { oid, document: bytes.to_vec() };
        let data = ReportData::bind(b"key", b"nonce");
        let _ = attestation::verify(&evidence, &data, &reference.reference_values, NOW);
    }
}

fn evidences() -> Vec<Vec<u8>> {
    let report = files("crates/attestation/testdata").into_iter().find(|bytes| bytes.len() == 1184);
    // sevsnp.Attestation with a report (field 1) and empty chain (field 2).
    let field = |report: Vec<u8>| [&[0x0a, 0xa0, 0x09], report.as_slice(), &[0x12, 0x00]].concat();
    let mut seeds: Vec<Vec<u8>> = report.map(field).into_iter().collect();
    let tdx = files("crates/attestation/testdata/tdx");
    let collateral = tdx.iter().find(|bytes| bytes.starts_with(b"{"));
    for quote in tdx.iter().filter(|bytes| !bytes.starts_with(b"{")) {
        let evidence = TdxEvidence { quote: quote.clone(), collateral: collateral.cloned() };
        seeds.extend(evidence.to_protobuf());
    }
    seeds
}

fn certificate(bytes: &[u8]) {
    if let Ok(nonce) = atls::Nonce::random() {
        let _ = atls::PeerCertificate::parse(bytes, nonce, NOW);
    }
}

fn certification_request(bytes: &[u8]) {
    let _ = keys::key_of_csr(bytes);
    let _ = keys::workload_secret_id_of(bytes);
    let _ = keys::check_workload_owner_key(bytes);
    let _ = keys::encrypt_seed_share(&[1; 64], bytes);
}

fn certification_requests() -> Vec<Vec<u8>> {
    let request = rcgen::KeyPair::generate().and_then(|key| {
        let request = rcgen::CertificateParams::default().serialize_request(&key)?;
        Ok(vec![request.der().to_vec(), rcgen::PublicKeyData::subject_public_key_info(&key)])
    });
    request.into_iter().flatten().chain(certificates()).collect()
}

fn seed_share(bytes: &[u8]) {
    let Ok(share) = keys::PartialSeed::from_bytes(bytes) else { return };
    let mut other = bytes.to_vec();
    other[0] = other[0].wrapping_add(1);
    if let Ok(other) = keys::PartialSeed::from_bytes(&other) {
        let _ = keys::combine_seed(&[share.clone(), other]);
    }
    let _ = keys::combine_seed(&[share.clone(), share]);
}

fn seed_shares() -> Vec<Vec<u8>> {
    let shares = keys::Seed::generate().and_then(|seed| keys::split_seed(&seed, 2, 3));
    shares.iter().flatten().map(|share| share.expose().to_vec()).collect()
}

fn certificates() -> Vec<Vec<u8>> {
    files("crates/attestation/testdata").into_iter().filter(|bytes| bytes.starts_with(&[0x30])).collect()
}

fn kubernetes(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(pods) = runtime_policy::read_pods("fuzz.yml", text)
    {
        for pod in &pods {
            let _ = runtime_policy::policy_document(pod);
        }
    }
}

fn yamls() -> Vec<Vec<u8>> {
    files("deploy/example")
}

fn identifiers(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = text.parse::<manifest::SerialNumber>();
    let _ = text.parse::<StreamId>();
    let _ = text.parse::<Timestamp>().map(|at| at.to_string());
}

fn identifier_texts() -> Vec<Vec<u8>> {
    ["2026-11-24T12:00:00Z", "control", "replica-00112233445566778899aabbccddeeff"].map(Into::into).to_vec()
}

/// Contents of the files in a folder of the repository.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}
