//! Asks the initializer's sidecar for a new certificate.
//!
//! After a change of the manifest, pods get their new certificates one after the other. A pod that meets a
//! peer of another mesh CA is probably behind; it asks by touching a file that the sidecar watches. The
//! sidecar limits how often it listens, since anybody can provoke this.

use std::path::{Path, PathBuf};

/// The file that is touched, in the directory of the certificates.
pub(crate) const FILE: &str = "renew";

/// The way to ask.
#[derive(Clone, Debug)]
pub(crate) struct Renewal(PathBuf);

impl Renewal {
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.join(FILE))
    }

    /// Asks; does not wait. Without a sidecar nobody listens, which harms nothing.
    pub(crate) fn ask(&self) {
        let path = self.0.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = std::fs::write(&path, b"") {
                tracing::debug!("cannot ask for a renewal at {}: {error}", path.display());
            }
        });
    }
}
