//! What this pod's log says when the Coordinator refuses it: every failed check on a line of its own,
//! and the evidence, so that `contrast explain` can be given the log.

use std::sync::{Arc, Mutex, PoisonError};

use attestation::{Evidence, IssueError, Issuer, Refusal, ReportData};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tonic::Status;

/// An issuer that keeps the last evidence it made.
pub(crate) struct Remembering {
    issuer: Arc<dyn Issuer>,
    last: Mutex<Option<Evidence>>,
}

impl Remembering {
    pub(crate) fn new(issuer: Arc<dyn Issuer>) -> Self {
        Self { issuer, last: Mutex::new(None) }
    }

    fn last(&self) -> Option<Evidence> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Issuer for Remembering {
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError> {
        let evidence = self.issuer.issue(data)?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(evidence.clone());
        Ok(evidence)
    }
}

/// Logs what the Coordinator said of the evidence that was sent.
pub(crate) fn explain(status: &Status, sent: &Remembering) {
    let Ok(Refusal { checks }) = serde_json::from_slice(status.details()) else { return };
    for failed in checks {
        tracing::warn!(check = %failed.check, expected = %failed.expected, found = %failed.found, "failed check");
    }
    if let Some(evidence) = sent.last() {
        let kind = format!("{:?}", evidence.oid);
        let evidence = STANDARD.encode(evidence.document);
        tracing::info!(kind, evidence, "evidence that was refused, for `contrast explain`");
    }
}
