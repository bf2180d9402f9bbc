//! An issuer whose evidence comes complete, so that whoever verifies it needs no network.

use std::sync::Arc;

use attestation::{Evidence, IssueError, Issuer, ReportData};
use manifest::Timestamp;

use crate::{Endorsements, Reach};

/// Adds endorsements to the evidence of another issuer. That they are missing is no error: the
/// verifier may have them.
pub struct EndorsedIssuer {
    issuer: Arc<dyn Issuer>,
    endorsements: Arc<Endorsements>,
    now: fn() -> Timestamp,
}

impl EndorsedIssuer {
    /// `now` dates what is fetched.
    pub fn new(issuer: Arc<dyn Issuer>, endorsements: Arc<Endorsements>, now: fn() -> Timestamp) -> Self {
        Self { issuer, endorsements, now }
    }
}

impl Issuer for EndorsedIssuer {
    fn issue(&self, data: &ReportData) -> Result<Evidence, IssueError> {
        let evidence = self.issuer.issue(data)?;
        Ok(self.endorsements.complete(evidence, (self.now)(), Reach::Network).evidence)
    }
}
