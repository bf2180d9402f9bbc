//! What the log costs: appends, replay, proofs, bytes. Takes a minute and 2 GB of disk in the
//! temporary directory.
#![expect(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::{hint::black_box, path::Path, sync::Arc, time::Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use keys::LogKey;
use manifest::{EvidenceHash, PolicyHash, ReplicaId, RequestId, SerialNumber, Timestamp, TransitionHash};
use storage_schema::{Archive, Event, Fact, Log, SledStore, StreamId, merkle::leaf_hash};

const MILLION: u64 = 1_000_000;
const GROUP: u64 = 200;
const STREAM: StreamId = StreamId::Replica(ReplicaId::from_bytes([7; 16]));

fn key() -> LogKey {
    LogKey::from_secret(&[1; 32]).unwrap()
}

/// As large as the event of a real certificate.
fn issued(n: u64) -> Event {
    let mut serial = [0; 16];
    serial[8..].copy_from_slice(&n.to_be_bytes());
    let fact = Fact::CertificateIssued {
        serial: SerialNumber::from_bytes(serial),
        certificate: vec![7; 900],
        policy: PolicyHash::from_bytes([1; 32]),
        sans: vec!["frontend".into(), "*".into()],
        platform: "sev-snp".into(),
        evidence: EvidenceHash::from_bytes([2; 32]),
        tcb: "bootloader 4, TEE 0, SNP 24, microcode 219".into(),
        transition: TransitionHash::ZERO,
        nonce: vec![3; 32],
        verdict: "ReferenceValues.snp[0]".into(),
        attested_key: vec![],
        hpke_key: vec![],
    };
    Event {
        at: Timestamp::from_millis(1_800_000_000_000 + n),
        replica: ReplicaId::from_bytes([7; 16]),
        request: RequestId::from_bytes([9; 16]),
        fact,
    }
}

fn log(directory: &Path) -> Log<SledStore> {
    let store = Arc::new(SledStore::open(directory).unwrap());
    Log::open(store, STREAM, Some(key().public()), |_, _| {}).unwrap()
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(
            |entry| {
                if entry.path().is_dir() {
                    bytes_below(&entry.path())
                } else {
                    entry.metadata().unwrap().len()
                }
            },
        )
        .sum()
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn appends(criterion: &mut Criterion) {
    for (name, size) in [("append 1 event, flushed", 1), ("append 200 events, flushed", GROUP)] {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path());
        let events: Vec<Event> = (0..size).map(issued).collect();
        criterion.bench_function(name, |bencher| bencher.iter(|| log.append(&events, &key()).unwrap()));
    }
}

fn a_million(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut writer = log(directory.path());
    for group in 0..MILLION / GROUP {
        let events: Vec<Event> = (group * GROUP..(group + 1) * GROUP).map(issued).collect();
        writer.append(&events, &key()).unwrap();
    }
    println!("write 1 M events in groups of 200: {:.1} s", started.elapsed().as_secs_f64());
    writer.save_snapshot(&(), &key()).unwrap();
    drop(writer);
    println!("on disk: {} bytes an event", bytes_below(directory.path()) / MILLION);

    let before = resident_mib();
    let started = Instant::now();
    let store = Arc::new(SledStore::open(directory.path()).unwrap());
    println!("open the files: {:.2} s", started.elapsed().as_secs_f64());
    drop(store);
    let started = Instant::now();
    let store = Arc::new(SledStore::open(directory.path()).unwrap());
    println!("open them once more: {:.2} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let mut sum = 0;
    Log::open(Arc::clone(&store), STREAM, Some(key().public()), |_, event| sum += event.at.as_millis())
        .unwrap();
    black_box(sum);
    println!(
        "verify and fold 1 M events: {:.2} s, resident {} MiB (before: {before} MiB)",
        started.elapsed().as_secs_f64(),
        resident_mib()
    );
    let started = Instant::now();
    Log::open_folded::<()>(Arc::clone(&store), STREAM, Some(key().public())).unwrap();
    println!("open from a snapshot: {:.1} ms", started.elapsed().as_secs_f64() * 1000.0);

    let archive = Archive::new(Arc::clone(&store));
    let mut n = 0;
    archive.inclusion(STREAM, None, 0).unwrap();
    criterion.bench_function("event and inclusion proof, 1 M events", |bencher| {
        bencher.iter(|| {
            n = (n + 7919) % MILLION;
            archive.inclusion(STREAM, None, n).unwrap()
        });
    });
    let log = Log::open_folded::<()>(Arc::clone(&store), STREAM, None).unwrap().log;
    let leaf = leaf_hash(&archive.inclusion(STREAM, None, 77).unwrap().event);
    criterion.bench_function("inclusion proof alone, 1 M events", |bencher| {
        bencher.iter(|| log.inclusion(&leaf, 77).unwrap());
    });
    criterion.bench_function("consistency proof, 1 M events", |bencher| {
        bencher.iter(|| {
            n = (n + 7919) % MILLION;
            archive.consistency(STREAM, None, n).unwrap()
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = appends, a_million
}
criterion_main!(benches);
