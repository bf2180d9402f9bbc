//! A deployment to try pods against.

use std::{fs, path::PathBuf, process::Command};

use chaos_tests::{process::free_port, program};
use manifest::PolicyHash;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The Coordinator that `contrast dev` leaves running; stopped when dropped.
pub(crate) struct Deployment {
    directory: TempDir,
    pid: u64,
    /// Of the mesh API, on 127.0.0.1.
    pub(crate) port: u16,
}

impl Deployment {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port().unwrap();
        let (state, port_text) = (directory.path().join("state"), port.to_string());
        let output = Command::new(program("contrast"))
            .args(["dev", "--keep", "--output", "json", "--mesh-port", &port_text, "--state-dir"])
            .arg(state)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        Self { directory, pid: report["running_pid"].as_u64().unwrap(), port }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("state").join(name)
    }

    /// A place for a test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The policy of the first pod that has a workload secret.
    pub(crate) fn policy(&self) -> PolicyHash {
        let manifest: Value = serde_json::from_slice(&fs::read(self.file("manifest.json")).unwrap()).unwrap();
        let policies = manifest["Policies"].as_object().unwrap();
        let with_secret = policies.iter().find(|(_, entry)| entry["WorkloadSecretID"].is_string());
        with_secret.unwrap().0.parse().unwrap()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.pid.to_string()).status();
    }
}
