//! Upstream's "insecure" platform: unsigned JSON that says what it likes (docs/spec/control-plane.md,
//! section 3.5).
//!
//! For trying Contrast's other parts without hardware. Anybody can make it, so it is believed only
//! by a manifest whose reference values are of this kind alone, which a Coordinator accepts only
//! after an opt-in of its own.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use manifest::{KeyDigest, ReferenceValues, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    Claims, Evidence, EvidenceOid, IssueError, Issuer, Platform, ReportData,
    checklist::{Checklist, Stop},
    claims::Body,
};

/// Largest document: two short base64 strings.
const MAX_BYTES: usize = 4096;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    report_data: String,
    host_data: String,
}

/// Makes documents that prove nothing.
pub struct InsecureGuest {
    host_data: [u8; 32],
}

impl InsecureGuest {
    /// A guest that claims to run under this policy.
    pub fn new(policy: manifest::PolicyHash) -> Self {
        Self { host_data: *policy.as_bytes() }
    }
}

impl Issuer for InsecureGuest {
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError> {
        let document = Document {
            report_data: STANDARD.encode(data.as_bytes()),
            host_data: STANDARD.encode(self.host_data),
        };
        let document =
            serde_json::to_vec(&document).map_err(|error| IssueError::Platform(error.to_string()))?;
        Ok(Evidence { oid: EvidenceOid::Insecure, document })
    }
}

/// The two values of a document.
pub(crate) fn decode(document: &[u8]) -> Result<([u8; 64], [u8; 32]), String> {
    if document.len() > MAX_BYTES {
        return Err(format!("{} bytes, at most {MAX_BYTES} are accepted", document.len()));
    }
    let document: Document = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    let bytes = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
    let report_data = bytes(&document.report_data)?.try_into();
    let host_data = bytes(&document.host_data)?.try_into();
    match (report_data, host_data) {
        (Ok(report_data), Ok(host_data)) => Ok((report_data, host_data)),
        _ => Err("reportData of 64 and hostData of 32 bytes expected".to_owned()),
    }
}

/// Judges a document: it has to be wanted, and bound to this connection.
pub(crate) fn appraise(
    document: &[u8],
    expected: Option<&ReportData>,
    reference: &ReferenceValues,
    _now: Timestamp,
    list: &mut Checklist,
) -> Result<Claims, Stop> {
    let wanted = reference.insecure && reference.snp.is_empty() && reference.tdx.is_empty();
    let expectation = "signed evidence, SEV-SNP or TDX";
    list.demand("evidence kind", wanted, if wanted { "unsigned" } else { expectation }, "unsigned")?;
    let (report_data, host_data) = match decode(document) {
        Ok(values) => values,
        Err(error) => return list.fail("evidence document", "reportData and hostData as JSON", error),
    };
    match expected {
        Some(expected) => list.equal("report data", expected.as_bytes(), &report_data),
        None => list.skip("report data", hex::encode(report_data)),
    }
    let nobody = KeyDigest::from_bytes([0; 32]);
    let reference = "ReferenceValues.insecure".to_owned();
    Ok(Claims::new(Platform::Insecure, nobody, reference, Body::Insecure(host_data)))
}
