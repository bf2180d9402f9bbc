//! A file that carries endorsements to where no network is. Each is signed by its vendor, so the
//! file needs no signature of its own.

use std::{
    io::{self, Read as _},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

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

/// Largest file that is watched, in bytes: more than the cache keeps (12 MiB), as base64 in JSON.
const MAX_WATCHED: u64 = 32 << 20;
/// Most warnings about one file.
const MAX_WARNINGS: usize = 20;

/// A bundle that somebody may replace while the program runs.
pub(crate) struct WatchedBundle {
    path: PathBuf,
    /// SHA-256 of what was taken in last.
    known: Mutex<Option<[u8; 32]>>,
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
        // Its size is not asked for: whoever writes the file may do so meanwhile.
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&self.path).map_err(|error| at(&error))?;
        file.take(MAX_WATCHED + 1).read_to_end(&mut bytes).map_err(|error| at(&error))?;
        if bytes.len() as u64 > MAX_WATCHED {
            return Err(at(&format!("it has more than {MAX_WATCHED} bytes")));
        }
        let digest = Some(Sha256::digest(&bytes).into());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == digest {
            return Ok(());
        }
        let report = endorsements.import(&bytes).map_err(|error| at(&error))?;
        tracing::info!(
            path = %self.path.display(), imported = report.imported.len(), older = report.older.len(), "endorsement bundle taken in"
        );
        for refused in report.refused.iter().take(MAX_WARNINGS) {
            tracing::warn!(path = %self.path.display(), "endorsement refused: {refused}");
        }
        if let Some(more) = report.refused.len().checked_sub(MAX_WARNINGS).filter(|more| *more > 0) {
            tracing::warn!(path = %self.path.display(), more, "more endorsements refused");
        }
        *known = digest;
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
