//! Evidence with known verdicts: real reports and quotes (sources: testdata/README.md), and the
//! simulated platform for everything that no real machine was made to say.
#![cfg(feature = "simulated")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod configfs;
mod second_opinion;
mod simulated;
mod snp;
mod tdx;

use std::{path::Path, sync::OnceLock};

use attestation::{
    Claims, Refusal,
    simulated::{SimulatedKind, SimulatedMachine},
};
use tempfile::TempDir;

/// Names of the failed checks.
fn checks(outcome: Result<Claims, Refusal>) -> Vec<String> {
    outcome
        .err()
        .expect("evidence was accepted")
        .checks
        .into_iter()
        .map(|failed| failed.check.into())
        .collect()
}

/// A machine that all tests share: its keys take seconds to make. Whoever changes it makes an own one.
fn shared_machine(kind: SimulatedKind) -> &'static Path {
    static MACHINES: [OnceLock<TempDir>; 2] = [const { OnceLock::new() }; 2];
    let place = usize::from(kind == SimulatedKind::Tdx);
    let machine = MACHINES[place].get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        SimulatedMachine::create(directory.path(), kind, snp::NOW).unwrap();
        directory
    });
    machine.path()
}
