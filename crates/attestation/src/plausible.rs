//! What can be said about evidence before its vendor is asked for anything.
//!
//! Nothing is verified here, so nothing may be believed because of it. But evidence that names another connection,
//! another launch or another configuration than the manifest demands is refused whatever its vendor says; then the
//! vendor need not be asked, which takes seconds, and which anybody could otherwise have us do with made-up reports.

use manifest::{PolicyHash, ReferenceValues};

use crate::{
    Evidence, EvidenceOid, ReportData,
    checklist::{Checklist, Refusal, Stop},
    insecure,
    snp::{self, SnpEvidence},
    tdx::{self, TdxEvidence},
    verify::first_fit,
};

/// Refuses evidence that no endorsement could make acceptable. Otherwise gives the policy that it names.
pub fn plausible(
    evidence: &Evidence,
    expected: &ReportData,
    reference: &ReferenceValues,
) -> Result<PolicyHash, Refusal> {
    let mut list = Checklist::default();
    let named = match evidence.oid {
        EvidenceOid::Snp => of_report(&evidence.document, expected, reference, &mut list),
        EvidenceOid::Tdx => of_quote(&evidence.document, expected, reference, &mut list),
        EvidenceOid::Insecure => match insecure::decode(&evidence.document) {
            Ok((_, host_data)) => Ok(host_data),
            Err(error) => list.fail("evidence document", "upstream's unsigned JSON", error),
        },
    };
    let failed = list.failed();
    match named {
        Ok(policy) if failed == 0 => Ok(PolicyHash::from_bytes(policy)),
        _ => Err(Refusal::of(&list.into_checks())),
    }
}

fn of_report(
    document: &[u8],
    expected: &ReportData,
    reference: &ReferenceValues,
    list: &mut Checklist,
) -> Result<[u8; 32], Stop> {
    let evidence = match SnpEvidence::from_protobuf(document) {
        Ok(evidence) => evidence,
        Err(error) => return list.fail("evidence document", "sevsnp.Attestation", error),
    };
    let report = match snp::Report::new(&evidence.report) {
        Ok(report) => report,
        Err(error) => return list.fail("report", "1184 bytes", error),
    };
    list.equal("report data", expected.as_bytes(), &report.get(snp::place::REPORT_DATA));
    first_fit(&reference.snp, list, |entry, list| {
        snp::compare(&report, entry, list);
        Ok(())
    })?;
    Ok(report.get(snp::place::HOST_DATA))
}

fn of_quote(
    document: &[u8],
    expected: &ReportData,
    reference: &ReferenceValues,
    list: &mut Checklist,
) -> Result<[u8; 32], Stop> {
    let evidence = match TdxEvidence::from_protobuf(document) {
        Ok(evidence) => evidence,
        Err(error) => return list.fail("evidence document", "tdx.QuoteV4", error),
    };
    let quote = match tdx::Quote::parse(&evidence.quote) {
        Ok(quote) => quote,
        Err(wrong) => return list.fail(wrong.check, wrong.expected, wrong.found),
    };
    list.equal("report data", expected.as_bytes(), &quote.report_data());
    first_fit(&reference.tdx, list, |entry, list| {
        list.equal("MRTD", entry.mr_td.as_bytes(), &quote.mr_td());
        Ok(())
    })?;
    match quote.mr_config_id().first_chunk() {
        Some(policy) => Ok(*policy),
        None => list.fail("MRCONFIGID", "48 bytes", "fewer"),
    }
}

#[cfg(all(test, feature = "simulated"))]
mod tests {
    use manifest::{Measurement, Timestamp};

    use super::*;
    use crate::{
        Issuer as _,
        simulated::{SimulatedKind, SimulatedMachine},
    };

    #[test]
    fn another_connection_another_launch_and_nonsense_are_refused_without_any_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::from_millis(1_800_000_000_000);
        for (name, kind) in [("snp", SimulatedKind::Snp), ("tdx", SimulatedKind::Tdx)] {
            let machine = SimulatedMachine::create(&directory.path().join(name), kind, now).unwrap();
            let mut reference = machine.reference_values();
            let policy = PolicyHash::of(b"policy");
            let data = ReportData::own();
            let evidence = machine.guest(policy).issue(&data).unwrap();
            assert_eq!(plausible(&evidence, &data, &reference), Ok(policy), "{name}");

            let elsewhere = ReportData::bind(b"key", b"nonce");
            let refusal = plausible(&evidence, &elsewhere, &reference).unwrap_err().to_string();
            assert!(refusal.contains("report data"), "{refusal}");
            reference
                .snp
                .iter_mut()
                .for_each(|entry| entry.trusted_measurement = Measurement::from_bytes([7; 48]));
            reference.tdx.iter_mut().for_each(|entry| entry.mr_td = Measurement::from_bytes([7; 48]));
            assert!(plausible(&evidence, &data, &reference).is_err(), "{name}");
            let nonsense = Evidence { document: vec![7; 100], ..evidence };
            assert!(plausible(&nonsense, &data, &reference).is_err(), "{name}");
        }
    }
}
