//! A file that carries endorsements to where no network is. Each is signed by its vendor, so the
//! file needs no signature of its own.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{Endorsements, Name, PutError};

const FORMAT: &str = "contrast-endorsements/1";
/// Largest bundle, in bytes.
const MAX_BYTES: usize = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Bundle {
    format: String,
    endorsements: Vec<Item>,
}

#[derive(Serialize, Deserialize)]
struct Item {
    name: String,
    content: String,
}

/// A bundle that somebody may replace while the program runs.
pub(crate) struct WatchedBundle {
    path: PathBuf,
    /// What was taken in last.
    known: Mutex<Vec<u8>>,
}

impl WatchedBundle {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::default() }
    }

    /// Takes in what the file holds, if it changed. What a vendor did not sign is left out, with a warning.
    pub(crate) fn take_in(&self, endorsements: &Endorsements) -> io::Result<()> {
        let at = |error: &dyn std::fmt::Display| {
            io::Error::other(format!("endorsement bundle {}: {error}", self.path.display()))
        };
        let size = std::fs::metadata(&self.path).map_err(|error| at(&error))?.len();
        if size > MAX_BYTES as u64 {
            return Err(at(&format!("it has {size} bytes, at most {MAX_BYTES} are accepted")));
        }
        let bytes = std::fs::read(&self.path).map_err(|error| at(&error))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == bytes {
            return Ok(());
        }
        let report = endorsements.import(&bytes).map_err(|error| at(&error))?;
        tracing::info!(
            path = %self.path.display(), imported = report.imported.len(), older = report.older.len(), "endorsement bundle taken in"
        );
        for refused in report.refused {
            tracing::warn!(path = %self.path.display(), "endorsement refused: {refused}");
        }
        *known = bytes;
        Ok(())
    }
}

/// Why a bundle is not read at all.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Over the limit.
    #[error("the bundle has {0} bytes, at most {MAX_BYTES} are accepted")]
    TooLarge(usize),
    /// Not JSON, or not of this form.
    #[error("not an endorsement bundle")]
    Malformed(#[from] serde_json::Error),
    /// Of another version.
    #[error("the bundle has format {0:?}, expected {FORMAT:?}")]
    Format(String),
}

/// What became of a bundle's endorsements.
#[derive(Debug, Default)]
pub struct ImportReport {
    /// Now kept.
    pub imported: Vec<Name>,
    /// Left out, because newer ones are known.
    pub older: Vec<String>,
    /// Refused, and why.
    pub refused: Vec<String>,
}

impl Endorsements {
    /// Everything that is kept, as a bundle.
    pub fn export(&self) -> Result<Vec<u8>, BundleError> {
        let item = |(name, entry): (&Name, &crate::Entry)| Item {
            name: name.to_string(),
            content: STANDARD.encode(&entry.bytes),
        };
        let endorsements = self.entries().iter().map(item).collect();
        let mut bytes = serde_json::to_vec_pretty(&Bundle { format: FORMAT.into(), endorsements })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Takes in a bundle. Each endorsement is verified; one that fails does not keep the others out.
    pub fn import(&self, bytes: &[u8]) -> Result<ImportReport, BundleError> {
        if bytes.len() > MAX_BYTES {
            return Err(BundleError::TooLarge(bytes.len()));
        }
        let bundle: Bundle = serde_json::from_slice(bytes)?;
        if bundle.format != FORMAT {
            return Err(BundleError::Format(bundle.format.chars().take(80).collect()));
        }
        let mut report = ImportReport::default();
        for Item { name, content } in bundle.endorsements {
            let (name, content) = match (name.parse::<Name>(), STANDARD.decode(content)) {
                (Ok(name), Ok(content)) => (name, content),
                (Err(error), _) => {
                    report.refused.push(error.to_string());
                    continue;
                }
                (_, Err(error)) => {
                    report.refused.push(format!("{name}: {error}"));
                    continue;
                }
            };
            match self.put(&name, content) {
                Ok(_) => report.imported.push(name),
                Err(error @ PutError::Older { .. }) => report.older.push(error.to_string()),
                Err(error) => report.refused.push(error.to_string()),
            }
        }
        Ok(report)
    }
}
