//! One workload certificate: a P-384 signature and its encoding.
#![expect(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use criterion::{Criterion, criterion_group, criterion_main};
use keys::{CaKey, DEFAULT_LEAF_LIFETIME, LeafRequest, MeshCa, Salt, Seed, SeedEngine};
use manifest::Timestamp;

fn issue(c: &mut Criterion) {
    let now = Timestamp::from_millis(1_800_000_000_000);
    let engine = SeedEngine::new(Seed::generate().unwrap(), Salt::generate().unwrap()).unwrap();
    let ca = MeshCa::new(&engine, CaKey::generate().unwrap(), now).unwrap();
    let spki_der = CaKey::generate().unwrap().public_der();
    let sans = ["web".to_owned(), "*".to_owned()];
    let request = LeafRequest {
        spki_der: &spki_der,
        sans: &sans,
        workload_secret_id: None,
        claims: &[],
        lifetime: DEFAULT_LEAF_LIFETIME,
    };
    c.bench_function("issue a certificate", |b| b.iter(|| ca.issue(&request, now).unwrap()));
}

criterion_group!(benches, issue);
criterion_main!(benches);
