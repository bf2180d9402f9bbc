//! Fuzz targets: whatever reads foreign bytes. None may panic, whatever it is given.
//!
//! `cargo test -p fuzz` runs each on its seeds and on some thousand mutations of them. To search for
//! longer, with libFuzzer: see `fuzz/README.md`.

use std::path::Path;

use attestation::{Evidence, EvidenceOid, ReportData, TdxEvidence};
use keys::LogKey;
use manifest::{Manifest, ReplicaId, RequestId, Timestamp};
use runtime_policy::{Deployment, Images, Injection, PolicyDocument, Settings};
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
pub const TARGETS: [Target; 13] = [
    Target { name: "segment", run: segment, seeds: segments },
    Target { name: "event", run: event, seeds: events },
    Target { name: "checkpoint", run: checkpoint, seeds: checkpoints },
    Target { name: "export", run: export_line, seeds: export_lines },
    Target { name: "manifest", run: manifest, seeds: manifests },
    Target { name: "evidence", run: evidence, seeds: evidences },
    Target { name: "certificate", run: certificate, seeds: certificates },
    Target { name: "kubernetes", run: kubernetes, seeds: pods },
    Target { name: "yaml", run: yaml, seeds: yamls },
    Target { name: "policy-document", run: policy_document, seeds: policy_documents },
    Target { name: "image-layer", run: image_layer, seeds: image_layers },
    Target { name: "firmware", run: firmware, seeds: firmwares },
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

fn certificates() -> Vec<Vec<u8>> {
    files("crates/attestation/testdata").into_iter().filter(|bytes| bytes.starts_with(&[0x30])).collect()
}

fn kubernetes(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(mut deployment) = Deployment::read([("fuzz.yml", text)]) else { return };
    let injection = Injection {
        initializer: Some("initializer".into()),
        service_mesh: Some("mesh".into()),
        runtime_class: Some("contrast-cc-x".into()),
        image_replacements: Vec::new(),
    };
    if deployment.inject(&injection).is_ok() {
        let _ = deployment.policies(&Images::new(), &Settings::default(), "package agent_policy");
        let once: Vec<String> = deployment.texts().map(|(_, text)| text).collect();
        if deployment.inject(&injection).is_ok() {
            let twice: Vec<String> = deployment.texts().map(|(_, text)| text).collect();
            assert_eq!(once, twice, "a second run changes nothing");
        }
    }
}

fn pods() -> Vec<Vec<u8>> {
    let pod = "kind: Pod\nmetadata:\n  name: a\n  annotations: {contrast.edgeless.systems/servicemesh-ingress: x}\nspec:\n  \
               runtimeClassName: contrast-cc\n  containers:\n  - name: a\n    image: i\n    env: [{name: A, value: $(B)}]\n    \
               volumeMounts:\n    - {name: v, mountPath: /v}\n  volumes:\n  - {name: v, emptyDir: {}}\n";
    vec![pod.as_bytes().to_vec()]
}

fn yaml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(documents) = yaml_edit::read(text) else { return };
    let joined: String = documents.iter().map(yaml_edit::Document::text).collect();
    assert_eq!(joined, text, "documents joined are the file");
    let path: yaml_edit::Path = ["metadata", "annotations", "x"].into_iter().collect();
    for mut document in documents {
        let value = "y".into();
        if document.set(&path, &value).is_ok() {
            assert_eq!(path.find(document.value()), Some(&value), "what was set is there");
        }
    }
}

fn policy_document(bytes: &[u8]) {
    let document = PolicyDocument::parse(bytes).ok();
    let annotated =
        std::str::from_utf8(bytes).ok().and_then(|text| PolicyDocument::from_annotation(text).ok());
    for document in document.into_iter().chain(annotated) {
        let _ = document.data().map(|data| runtime_policy::explain(&data));
        let again = PolicyDocument::from_annotation(&document.to_annotation());
        assert_eq!(again.as_ref(), Ok(&document), "what was packed is unpacked");
    }
    let _ = Settings::overlay(bytes);
}

fn policy_documents() -> Vec<Vec<u8>> {
    let data = r#"{"containers": [{"name": "web", "OCI": {"Process": {"Args": ["x"]}}}]}"#;
    let document = PolicyDocument::new(format!("package agent_policy\npolicy_data := {data}\n"));
    vec![document.bytes().to_vec(), document.to_annotation().into_bytes(), br#"{"requests":{}}"#.to_vec()]
}

fn image_layer(bytes: &[u8]) {
    let _ = oci_image::LayerFacts::read("layer", bytes, None, oci_image::Digest::of(bytes));
}

fn image_layers() -> Vec<Vec<u8>> {
    let mut header = vec![0; 512];
    header[..10].copy_from_slice(b"etc/passwd");
    header[124..136].copy_from_slice(b"00000000005 ");
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend(b"a:x:1");
    header.resize(2048, 0);
    vec![header, vec![0x1f, 0x8b, 8, 0], vec![0x28, 0xb5, 0x2f, 0xfd, 0]]
}

fn firmware(bytes: &[u8]) {
    let _ = launch_digest::mr_td(bytes, launch_digest::PageOrder::PageByPage);
    let _ = launch_digest::kernel_registers(bytes, Some(bytes), "quiet");
}

fn firmwares() -> Vec<Vec<u8>> {
    files("crates/launch-digest/testdata").into_iter().filter(|bytes| bytes.len() == 4096).collect()
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
