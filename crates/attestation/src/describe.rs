//! Evidence in words, for people who look for the difference.

use manifest::PolicyHash;
use serde::Serialize;

use crate::{Evidence, EvidenceOid, SnpEvidence, TdxEvidence, insecure, snp, tdx};

/// A field of a report or quote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its value, and what that means.
    pub value: String,
}

/// The policy that evidence names. Nothing is verified: for a program's own evidence.
pub fn named_policy(evidence: &Evidence) -> Option<PolicyHash> {
    let host_data = match evidence.oid {
        EvidenceOid::Snp => {
            let snp = SnpEvidence::from_protobuf(&evidence.document).ok()?;
            snp::Report::new(&snp.report).ok()?.get(snp::place::HOST_DATA)
        }
        EvidenceOid::Tdx => tdx::named_policy(&TdxEvidence::from_protobuf(&evidence.document).ok()?.quote)?,
        EvidenceOid::Insecure => insecure::decode(&evidence.document).ok()?.1,
    };
    Some(PolicyHash::from_bytes(host_data))
}

/// Every field of evidence in the order of its layout. Nothing is verified; the error says why
/// it cannot be read.
pub fn describe(evidence: &Evidence) -> Result<Vec<Field>, String> {
    match evidence.oid {
        EvidenceOid::Snp => {
            let snp = SnpEvidence::from_protobuf(&evidence.document).map_err(|error| error.to_string())?;
            let report = snp::Report::new(&snp.report).map_err(|error| error.to_string())?;
            Ok(snp::describe(&report))
        }
        EvidenceOid::Tdx => {
            let tdx = TdxEvidence::from_protobuf(&evidence.document).map_err(|error| error.to_string())?;
            tdx::describe(&tdx.quote)
        }
        EvidenceOid::Insecure => {
            let (report_data, host_data) = insecure::decode(&evidence.document)?;
            let field = |name, bytes: &[u8]| Field { name, value: hex::encode(bytes) };
            Ok(vec![field("report data", &report_data), field("host data (policy hash)", &host_data)])
        }
    }
}
