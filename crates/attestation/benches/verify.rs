//! One real Milan report and one real TDX quote, with every comparison.
#![expect(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use attestation::{Evidence, EvidenceOid, ReportData, SnpEvidence, TdxEvidence, verify};
use criterion::{Criterion, criterion_group, criterion_main};
use manifest::{ReferenceValues, Timestamp};
use serde_json::json;

fn milan(c: &mut Criterion) {
    let report = include_bytes!("../testdata/milan-v3-oak-cb.report.bin").as_slice();
    let vcek = include_bytes!("../testdata/milan-v3-oak-cb.vcek.der").to_vec();
    let reference: ReferenceValues = serde_json::from_value(json!({ "revocation": "when-present", "snp": [{
        "ProductName": "Milan",
        "TrustedMeasurement": hex::encode(&report[0x90..0xc0]),
        "MinimumTCB": { "BootloaderVersion": 0, "TEEVersion": 0, "SNPVersion": 0, "MicrocodeVersion": 0 },
        "GuestPolicy": { "SMT": true, "MigrateMA": true, "Debug": true },
    }] }))
    .unwrap();
    let expected = ReportData::from_bytes(report[0x50..0x90].try_into().unwrap());
    let evidence = SnpEvidence { report: report.to_vec(), vcek, ..SnpEvidence::default() };
    let evidence = Evidence { oid: EvidenceOid::Snp, document: evidence.to_protobuf().unwrap() };
    let now = Timestamp::from_millis(1_780_272_000_000);
    c.bench_function("verify SNP evidence", |b| {
        b.iter(|| verify(&evidence, &expected, &reference, now).unwrap());
    });
}

fn tdx(c: &mut Criterion) {
    let quote = include_bytes!("../testdata/tdx/tdx10-v4-dcapqvl.quote.bin").as_slice();
    let collateral = include_bytes!("../testdata/tdx/tdx10-v4-dcapqvl.collateral.json").to_vec();
    let field = |at: usize, size: usize| hex::encode(&quote[48 + at..48 + at + size]);
    let reference: ReferenceValues = serde_json::from_value(json!({ "tdx": [{
        "MrTd": field(136, 48), "MrSeam": field(16, 48), "Xfam": field(128, 8),
        "Rtmrs": [field(328, 48), field(376, 48), field(424, 48), field(472, 48)],
    }] }))
    .unwrap();
    let expected = ReportData::from_bytes(quote[568..632].try_into().unwrap());
    let evidence = TdxEvidence { quote: quote.to_vec(), collateral: Some(collateral) };
    let evidence = Evidence { oid: EvidenceOid::Tdx, document: evidence.to_protobuf().unwrap() };
    let now = Timestamp::from_millis(1_751_000_000_000);
    c.bench_function("verify TDX evidence", |b| {
        b.iter(|| verify(&evidence, &expected, &reference, now).unwrap());
    });
}

criterion_group!(benches, milan, tdx);
criterion_main!(benches);
