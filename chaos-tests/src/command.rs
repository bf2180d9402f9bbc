//! What the tests of the command line share.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// The results.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Progress, notes and errors.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The results of `--output json`; null if they are something else.
pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// A path as an argument. Those of tests are UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Ends the Coordinator that `dev --keep` leaves running, whatever the test does.
pub struct Running(pub u64);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.to_string()).status();
    }
}
