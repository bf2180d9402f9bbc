//! Fuzz targets: whatever reads foreign bytes. None may panic, whatever it is given.
//!
//! `cargo test -p fuzz` runs each on its seeds and on some thousand mutations of them. To search for
//! longer, with libFuzzer: see `fuzz/README.md`.

use std::path::Path;

use attestation::{Evidence, EvidenceOid, ReportData, TdxEvidence};
use encrypted_volume::{HEADER_BYTES, SEAL_BYTES, SealKey, check_header, judge};
use keys::LogKey;
use manifest::{Manifest, ReplicaId, RequestId, Timestamp};
use sha2::{Digest as _, Sha256};
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
pub const TARGETS: [Target; 10] = [
    Target { name: "segment", run: segment, seeds: segments },
    Target { name: "event", run: event, seeds: events },
    Target { name: "checkpoint", run: checkpoint, seeds: checkpoints },
    Target { name: "export", run: export_line, seeds: export_lines },
    Target { name: "manifest", run: manifest, seeds: manifests },
    Target { name: "evidence", run: evidence, seeds: evidences },
    Target { name: "certificate", run: certificate, seeds: certificates },
    Target { name: "kubernetes", run: kubernetes, seeds: yamls },
    Target { name: "identifiers", run: identifiers, seeds: identifier_texts },
    Target { name: "volume", run: volume, seeds: volumes },
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

/// A LUKS2 header. The bytes are its metadata too, so that mutations of JSON reach the JSON.
fn volume(bytes: &[u8]) {
    let _ = check_header(bytes);
    let mut header = bytes.to_vec();
    header.resize(HEADER_BYTES, 0);
    let _ = check_header(&header);
    let _ = check_header(&header_around(bytes));
    let Some(key) = SealKey::derive(&[1; 64], "/state") else { return };
    let mut block = [0; SEAL_BYTES];
    for (to, from) in block.iter_mut().zip(bytes) {
        *to = *from;
    }
    let _ = judge(&key, &header, &block);
}

/// A header whose checksums hold, around this metadata.
fn header_around(metadata: &[u8]) -> Vec<u8> {
    const COPY: usize = 16 << 10;
    let copy = |place: usize, magic: &[u8]| {
        let metadata = metadata.get(..12_288).unwrap_or(metadata);
        let place = (place as u64).to_be_bytes();
        let parts: [(usize, &[u8]); 7] = [
            (0, magic),
            (6, &[0, 2]),
            (8, &[0, 0, 0, 0, 0, 0, 0x40, 0]),
            (72, b"sha256"),
            (168, b"1b53b187-7693-4e52-9d90-b7259abaf74a"),
            (256, &place),
            (4096, metadata),
        ];
        let mut bytes = vec![0; COPY];
        let mut put = |at: usize, part: &[u8]| {
            bytes.iter_mut().skip(at).zip(part).for_each(|(to, from)| *to = *from);
        };
        parts.iter().for_each(|(at, part)| put(*at, part));
        let checksum = Sha256::digest(&bytes);
        bytes.iter_mut().skip(448).zip(checksum).for_each(|(to, from)| *to = from);
        bytes
    };
    let mut header = [copy(0, b"LUKS\xba\xbe"), copy(COPY, b"SKUL\xba\xbe")].concat();
    header.resize(HEADER_BYTES, 0);
    header
}

fn volumes() -> Vec<Vec<u8>> {
    files("crates/encrypted-volume/testdata")
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
