//! What a pod says while it gets no certificate.
//!
//! Kubernetes shows a text of a container's own in one place, `kubectl describe pod`, and only when the container has
//! ended. So this program ends when it has something to say that was not said yet, and is started again. While the
//! reason stays the same it waits, and is not held up by the pauses that Kubernetes makes before it starts a container
//! once more.
//!
//! In a guest whose host gets no files from it (Kata's `shared_fs = "none"`), what is left of this is the exit code.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// Kubernetes shows at most 4096 bytes.
const LONGEST: usize = 2048;
/// In the directory of the certificates, which lives as long as the pod.
const SHOWN: &str = "waiting";

/// How long to ask for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until the first failure, which the program ends with: somebody called it by hand.
    Once,
    /// Until the first failure after this time.
    For(Duration),
    /// Until something can be shown that was not shown yet, and no sooner than after this time.
    UntilToReport(Duration),
    /// For ever.
    Endless,
}

/// No certificate in time: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("this pod has no certificate yet")]
pub(crate) struct GaveUp;

/// Where the reason is written.
pub(crate) struct Report {
    termination_log: PathBuf,
    shown: PathBuf,
}

impl Report {
    pub(crate) fn new(termination_log: PathBuf, directory: &Path) -> Self {
        Self { termination_log, shown: directory.join(SHOWN) }
    }

    /// Writes down why the last attempt failed; whether it was the last one.
    pub(crate) fn enough(&self, patience: Patience, error: &anyhow::Error, waited: Duration) -> bool {
        self.write(&format!("no certificate from the Coordinator yet: {error:#}\n"));
        match patience {
            Patience::Once => true,
            Patience::For(limit) => waited >= limit,
            Patience::Endless => false,
            Patience::UntilToReport(after) => waited >= after && self.is_new(&error.to_string()),
        }
    }

    /// The next failure, if there is one, is told again, and none is shown if the container ends now.
    pub(crate) fn done(&self) {
        self.write("");
        let _ = fs::remove_file(&self.shown);
    }

    fn write(&self, text: &str) {
        let text = text.get(..text.floor_char_boundary(LONGEST)).unwrap_or_default();
        // Kubernetes makes the file; elsewhere there is none.
        let file = OpenOptions::new().write(true).truncate(true).open(&self.termination_log);
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }

    /// What stands first in an error is which step failed: what is behind it may differ from one attempt to the next.
    fn is_new(&self, step: &str) -> bool {
        if fs::read_to_string(&self.shown).is_ok_and(|shown| shown == step) {
            return false;
        }
        match fs::write(&self.shown, step) {
            Ok(()) => true,
            // Otherwise it would be new each time.
            Err(error) => {
                tracing::warn!("cannot write {}: {error}", self.shown.display());
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_shown_once_and_another_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("termination-log");
        fs::write(&log, "").unwrap();
        let after = Duration::from_secs(15);
        let try_once = |step: &'static str, detail: &'static str, waited| {
            // Each attempt might be another process.
            let report = Report::new(log.clone(), directory.path());
            let error = anyhow::anyhow!(detail).context(step);
            report.enough(Patience::UntilToReport(after), &error, Duration::from_secs(waited))
        };
        assert!(!try_once("cannot reach it", "no such name", 1), "too early");
        assert!(try_once("cannot reach it", "no such name", 15));
        let shown = fs::read_to_string(&log).unwrap();
        assert_eq!(shown, "no certificate from the Coordinator yet: cannot reach it: no such name\n");
        assert!(!try_once("cannot reach it", "connection refused", 600), "shown already");
        assert!(fs::read_to_string(&log).unwrap().contains("connection refused"), "but kept up to date");
        assert!(try_once("it refused", "x", 600));
        Report::new(log.clone(), directory.path()).done();
        assert_eq!(fs::read_to_string(&log).unwrap(), "");
        assert!(try_once("it refused", "x", 15), "after a success it is news");
    }

    #[test]
    fn where_nothing_can_be_shown_nothing_ends() {
        let nowhere = Path::new("/proc/no-such-directory");
        let report = Report::new(nowhere.join("log"), nowhere);
        let error = anyhow::anyhow!("x");
        let patience = Patience::UntilToReport(Duration::ZERO);
        assert!(!report.enough(patience, &error, Duration::from_secs(60)));
        assert!(report.enough(Patience::For(Duration::ZERO), &error, Duration::ZERO));
        assert!(!report.enough(Patience::For(Duration::from_secs(20)), &error, Duration::from_secs(19)));
        assert!(!report.enough(Patience::Endless, &error, Duration::from_secs(60)));
    }
}
