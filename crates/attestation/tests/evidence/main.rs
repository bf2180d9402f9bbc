//! Evidence with known verdicts: real reports and quotes (sources: testdata/README.md), and the
//! simulated platform for everything that no real machine was made to say.
#![cfg(feature = "simulated")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod second_opinion;
mod simulated;
mod snp;
mod tdx;

use attestation::{Claims, Refusal};

/// Names of the failed checks.
fn checks(outcome: Result<Claims, Refusal>) -> Vec<&'static str> {
    outcome.err().expect("evidence was accepted").checks.iter().map(|failed| failed.check).collect()
}
