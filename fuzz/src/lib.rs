//! Fuzz targets: whatever reads foreign bytes. None may panic, whatever it is given.
//!
//! `cargo test -p fuzz` runs each on its seeds and on some thousand mutations of them. To search for
//! longer, with libFuzzer: see `fuzz/README.md`.

use std::path::Path;

use attestation::{
    Anchors, CertificateTable, Endorsed, Evidence, EvidenceOid, IntelAnswers, ReportData, SnpEvidence,
    TdxCollateral, TdxEvidence,
};
use encrypted_volume::{HEADER_BYTES, SEAL_BYTES, SealKey, check_header, judge};
use endorsements::Endorsements;
use keys::LogKey;
use manifest::{Manifest, ReplicaId, RequestId, SnpProduct, Timestamp};
use prost::Message as _;
use runtime_installer::containerd::patch;
use runtime_policy::{Deployment, Images, Injection, PolicyDocument, Settings};
use sha2::{Digest as _, Sha256};
use storage_schema::{
    Checkpoint, Event, EventStore as _, Fact, Log, LogId, MemoryStore, Position, Signer, StreamId, export,
    open_signed_head, signed_head,
};
use wire::replica::{BlobRequest, Head, HeldRequest, JoinResponse, SegmentsResponse};

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
pub const TARGETS: &[Target] = &[
    Target { name: "segment", run: segment, seeds: segments },
    Target { name: "event", run: event, seeds: events },
    Target { name: "checkpoint", run: checkpoint, seeds: checkpoints },
    Target { name: "export", run: export_line, seeds: export_lines },
    Target { name: "manifest", run: manifest, seeds: manifests },
    Target { name: "evidence", run: evidence, seeds: evidences },
    Target { name: "report", run: report, seeds: reports },
    Target { name: "quote", run: quote, seeds: quotes },
    Target { name: "collateral", run: collateral, seeds: collaterals },
    Target { name: "endorsement", run: endorsement, seeds: certificates },
    Target { name: "certificate_table", run: certificate_table, seeds: tables },
    Target { name: "certificate", run: certificate, seeds: certificates },
    Target { name: "certification-request", run: certification_request, seeds: certification_requests },
    Target { name: "seed-share", run: seed_share, seeds: seed_shares },
    Target { name: "kubernetes", run: kubernetes, seeds: pods },
    Target { name: "yaml", run: yaml, seeds: yamls },
    Target { name: "policy-document", run: policy_document, seeds: policy_documents },
    Target { name: "initdata", run: initdata, seeds: initdatas },
    Target { name: "image-layer", run: image_layer, seeds: image_layers },
    Target { name: "firmware", run: firmware, seeds: firmwares },
    Target { name: "containerd", run: containerd, seeds: containerd_configs },
    Target { name: "runtime", run: runtime, seeds: runtimes },
    Target { name: "identifiers", run: identifiers, seeds: identifier_texts },
    Target { name: "volume", run: volume, seeds: volumes },
    Target { name: "etcd", run: etcd, seeds: etcd_answers },
    Target { name: "replica", run: replica, seeds: replica_messages },
];

/// Runs the target of that name.
pub fn run(name: &str, bytes: &[u8]) {
    for target in TARGETS {
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
        let _ = log.append(&events, Signer { log: &key, replica: Some(&key) });
    }
    let page = store.read(&StreamId::Control, 0, usize::MAX).unwrap_or_default();
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

/// A raw report with the certificate of its chip, judged and described.
fn report(bytes: &[u8]) {
    let evidence = SnpEvidence { report: bytes.to_vec(), ..SnpEvidence::default() };
    if let Ok(document) = evidence.to_protobuf() {
        evidence_document(EvidenceOid::Snp, document);
    }
}

fn reports() -> Vec<Vec<u8>> {
    files("crates/attestation/testdata").into_iter().filter(|bytes| bytes.len() == 1184).collect()
}

/// A raw quote with real collateral, judged and described.
fn quote(bytes: &[u8]) {
    let evidence = TdxEvidence { quote: bytes.to_vec(), collateral: collaterals().pop() };
    if let Ok(document) = evidence.to_protobuf() {
        evidence_document(EvidenceOid::Tdx, document);
    }
}

fn quotes() -> Vec<Vec<u8>> {
    let tdx = files("crates/attestation/testdata/tdx");
    tdx.into_iter().filter(|bytes| matches!(bytes.first(), Some(4 | 5))).collect()
}

fn evidence_document(oid: EvidenceOid, document: Vec<u8>) {
    let evidence = Evidence { oid, document };
    let _ = attestation::describe(&evidence);
    let _ = Endorsed::of(&evidence);
    let reference = manifests().iter().find_map(|bytes| Manifest::parse(bytes).ok());
    if let Some(reference) = reference {
        let _ = attestation::appraise(&evidence, None, &reference.reference_values, NOW);
    }
}

fn collateral(bytes: &[u8]) {
    if let Ok(collateral) = TdxCollateral::from_json(bytes) {
        let _ = collateral.dates();
        let _ = Anchors::vendors().verify_collateral(&collateral);
    }
    let answers = IntelAnswers {
        tcb_info: bytes.to_vec(),
        tcb_info_issuer_chain: String::new(),
        qe_identity: bytes.to_vec(),
        qe_identity_issuer_chain: String::new(),
        pck_crl: bytes.to_vec(),
        pck_crl_issuer_chain: String::from_utf8_lossy(bytes).into_owned(),
        root_crl: bytes.to_vec(),
    };
    let _ = TdxCollateral::from_answers(answers);
}

fn collaterals() -> Vec<Vec<u8>> {
    let tdx = files("crates/attestation/testdata/tdx");
    tdx.into_iter().filter(|bytes| bytes.starts_with(b"{")).collect()
}

/// A chip's certificate, a revocation list, a bundle of both.
fn endorsement(bytes: &[u8]) {
    let anchors = Anchors::vendors();
    for product in [SnpProduct::Milan, SnpProduct::Genoa, SnpProduct::Turin] {
        let _ = anchors.identify_vcek(product, bytes);
        let _ = anchors.verify_crl(product, bytes);
    }
    let _ = Endorsements::none().import(bytes);
}

fn certificate_table(bytes: &[u8]) {
    let _ = CertificateTable::parse(bytes);
}

fn tables() -> Vec<Vec<u8>> {
    let vcek =
        [0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd];
    vec![[&vcek[..], &[48, 0, 0, 0, 4, 0, 0, 0], &[0; 24], b"vcek"].concat()]
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
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(mut deployment) = Deployment::read([("fuzz.yml", text)]) else { return };
    let injection = Injection {
        initializer: Some("initializer".into()),
        service_mesh: Some("mesh".into()),
        lift_default_deny: false,
        renewal: true,
        trusted_store: Some("10Gi".into()),
        runtime_class: Some("contrast-cc-x".into()),
        image_replacements: Vec::new(),
        workload_owners: Vec::new(),
        workload_owners_needed: 1,
        coordinator_host: None,
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

fn initdata(bytes: &[u8]) {
    let device = [&initdata::envelope::MAGIC[..], &(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    for device in [bytes, &device[..]] {
        if let Ok(Some(document)) = initdata::envelope::read(device) {
            let _ = initdata::Document::parse(&document);
        }
    }
    let _ = initdata::Document::parse(bytes);
}

fn initdatas() -> Vec<Vec<u8>> {
    let document = PolicyDocument::new("package agent_policy\n".into());
    let packed = export::base64(&document.to_annotation()).unwrap_or_default();
    let device =
        [&initdata::envelope::MAGIC[..], &(packed.len() as u64).to_le_bytes()[..], &packed, &[0; 99]]
            .concat();
    vec![document.bytes().to_vec(), packed, device]
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
    if let Ok(log) = launch_digest::EventLog::parse(bytes) {
        let _ = log.events(0).map(launch_digest::Event::describe).count();
    }
    // Partition table and dm-verity superblock of a root file system image.
    let root = format!("roothash={}", "0".repeat(64));
    let _ = launch_digest::verify_root_file_system(std::io::Cursor::new(bytes), &root);
}

fn firmwares() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> =
        files("crates/launch-digest/testdata").into_iter().filter(|bytes| bytes.len() == 4096).collect();
    let mut image = vec![0; 3 * 4096];
    image[510..520].copy_from_slice(b"\x55\xaaEFI PART");
    image[512 + 72] = 2;
    image[512 + 80] = 1;
    image[512 + 84] = 128;
    image[1024] = 1;
    image[1024 + 32] = 8;
    image[1024 + 40] = 23;
    image[4096..4096 + 16].copy_from_slice(b"verity\0\0\x01\0\0\0\x01\0\0\0");
    image[4096 + 32..4096 + 38].copy_from_slice(b"sha256");
    image[4096 + 65] = 16;
    image[4096 + 69] = 16;
    image[4096 + 72] = 1;
    seeds.push(image);
    let mut log = vec![0, 0, 0, 0, 3];
    log.resize(28, 0);
    log.extend(b"\x21\0\0\0Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0c\0\x30\0\0");
    log.extend([1, 0, 0, 0, 1, 0, 0, 0x80, 1, 0, 0, 0, 0x0c, 0]);
    log.extend([7; 48]);
    log.extend([4, 0, 0, 0, b'A', b'C', b'P', b'I']);
    seeds.push(log);
    seeds
}

fn yamls() -> Vec<Vec<u8>> {
    files("deploy/example")
}

/// A node's containerd configuration: what is accepted can be taken back without a trace.
fn containerd(bytes: &[u8]) {
    let (Ok(text), Ok(handler)) = (std::str::from_utf8(bytes), "contrast-cc-x-1".parse()) else { return };
    let _ = patch::drop_in_folder(text);
    let kata_config = "/opt/edgeless/contrast-cc-x-1/etc/x.toml".to_owned();
    let entry = patch::Entry { handler, shim: "/opt/x".into(), kata_config, type_is_path: false, gpu: false };
    for format in [patch::Format::Toml, patch::Format::Template(patch::Version::V3)] {
        if !text.contains(entry.handler.as_str())
            && let Ok(after) = patch::with_entry(Some(text), format, &entry)
        {
            let back = patch::without_entry(&after, format, &entry.handler);
            assert_eq!(back, Ok(Some(text.to_owned())), "taken out without a trace");
        }
        let _ = patch::without_entry(text, format, &entry.handler);
    }
}

fn containerd_configs() -> Vec<Vec<u8>> {
    let mut seeds = files("runtime-installer/testdata/containerd");
    seeds.retain(|bytes| bytes.len() < 5000);
    seeds
}

/// What to install, and what registries and archives answer.
fn runtime(bytes: &[u8]) {
    let _ = runtime_bundle::Bundle::parse(bytes);
    let _ = oci_image::ManifestFile::parse("manifest", bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = oci_image::Challenge::parse(&text);
    let _ = text.parse::<runtime_bundle::Source>();
    let _ = runtime_installer::fetch::archive::list(bytes);
}

fn runtimes() -> Vec<Vec<u8>> {
    let bundle = concat!(
        r#"{"files":[{"url":"oci://r.example/a@sha256:"#,
        "abababababababababababababababababababababababababababababababab",
        r##"#x","path":"/opt/edgeless/@@runtimeName@@/bin/x","mode":"0755","size":5}],"debugRuntime":true}"##
    );
    let manifest = r#"{"layers":[{"digest":"sha256:00","size":1,"annotations":{"a":"b"}}],"manifests":[]}"#;
    let challenge = r#"Bearer realm="https://r.example/token",service="r",scope="repository:a:pull""#;
    let mut archive = vec![0; 2048];
    archive[..3].copy_from_slice(b"a/b");
    archive[100..107].copy_from_slice(b"0000644");
    archive[124..135].copy_from_slice(b"00000000005");
    archive[156] = b'0';
    archive[257..262].copy_from_slice(b"ustar");
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive[512..517].copy_from_slice(b"hello");
    [bundle, manifest, challenge].map(|text| text.as_bytes().to_vec()).into_iter().chain([archive]).collect()
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

/// What a member of etcd answers.
fn etcd(bytes: &[u8]) {
    let _ = etcd_store::segments_in(bytes);
}

/// One key and its value, as etcd's field numbers have it.
fn etcd_answers() -> Vec<Vec<u8>> {
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap_or_default();
        [&[number << 3 | 2, length], content].concat()
    };
    let pair = |key: &[u8], value: &[u8]| field(2, &[field(1, key), field(5, value)].concat());
    let segment = pair(b"s\0\0\0\0\0\0\0\0\x07", b"\0content");
    vec![segment.clone(), [segment, pair(b"n\0", &[1; 33])].concat()]
}

/// What a peer asks, and what it hands over.
fn replica(bytes: &[u8]) {
    if let Ok(handed) = JoinResponse::decode(bytes) {
        let _ = (keys::Seed::from_bytes(&handed.seed), keys::Salt::from_bytes(&handed.salt));
        let _ = std::str::from_utf8(&handed.mesh_ca_key).map(keys::CaKey::from_sec1_pem);
        let _ = manifest::TransitionHash::try_from(handed.transition.as_slice());
        let _ = open_signed_head(&handed.signed_head, None);
    }
    if let Ok(head) = Head::decode(bytes) {
        let _ = (open_signed_head(&head.signed_head, None), ReplicaId::try_from(head.replica.as_slice()));
    }
    if let Ok(asked) = HeldRequest::decode(bytes) {
        let _ = asked.streams.iter().map(|stream| stream.parse::<StreamId>()).filter(Result::is_ok).count();
    }
    let _ = (SegmentsResponse::decode(bytes), BlobRequest::decode(bytes));
}

fn replica_messages() -> Vec<Vec<u8>> {
    let head = segments().first().and_then(|segment| signed_head(segment).map(<[u8]>::to_vec));
    let signed_head = head.unwrap_or_default();
    let handed = JoinResponse {
        seed: vec![1; 64],
        salt: vec![2; 32],
        mesh_ca_key: b"-----BEGIN EC PRIVATE KEY-----\nMA==\n-----END EC PRIVATE KEY-----\n".to_vec(),
        replica_secret: vec![3; 32],
        transition: vec![4; 32],
        signed_head: signed_head.clone(),
    };
    let streams = vec!["control".to_owned(), format!("replica-{}", "ab".repeat(16))];
    vec![
        handed.encode_to_vec(),
        Head { signed_head, replica: vec![5; 16] }.encode_to_vec(),
        HeldRequest { streams }.encode_to_vec(),
    ]
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
    let _ = judge(&key.of_pod(1), &header, &block);
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
