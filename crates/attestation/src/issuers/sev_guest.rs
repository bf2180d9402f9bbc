//! Reports through `/dev/sev-guest`, for kernels before 6.7.
//!
//! Only the report is asked for. `sev` 8.0.0 reads the certificate table of an extended report, which
//! the host wrote, without looking whether its offsets lie inside it: a hostile host would read this
//! process's memory, or end it. Certificates come from the verifier's cache instead.

use std::path::Path;

use sev::firmware::guest::Firmware;

use super::{ANSWER_TIME, within};
use crate::{Evidence, EvidenceOid, IssueError, Issuer, ReportData, SnpEvidence, snp::REPORT_BYTES};

pub(super) const DEVICE: &str = "/dev/sev-guest";

/// Asks the device for evidence of this guest.
#[derive(Clone, Copy, Debug)]
pub struct SevGuest;

impl SevGuest {
    /// Whether there is such a device.
    pub fn is_present() -> bool {
        Path::new(DEVICE).exists()
    }
}

impl Issuer for SevGuest {
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError> {
        let data = *data.as_bytes();
        let mut report = within(ANSWER_TIME, move || {
            let mut device =
                Firmware::open().map_err(|source| IssueError::Io { path: DEVICE.to_owned(), source })?;
            device
                .get_report(None, Some(data), Some(0))
                .map_err(|error| IssueError::Platform(format!("{DEVICE}: {error}")))
        })?;
        if report.len() < REPORT_BYTES {
            let text = format!("{DEVICE} gave a report of {} bytes, expected {REPORT_BYTES}", report.len());
            return Err(IssueError::Platform(text));
        }
        report.truncate(REPORT_BYTES); // the device pads its answer
        let evidence = SnpEvidence { report, ..SnpEvidence::default() };
        let document = evidence.to_protobuf().map_err(|error| IssueError::Platform(error.to_string()))?;
        Ok(Evidence { oid: EvidenceOid::Snp, document })
    }
}
