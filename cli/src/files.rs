//! Files that a command is given. Errors name them.

use std::path::Path;

use anyhow::Context as _;
use manifest::Manifest;

/// Reads a file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Reads and checks a manifest file.
pub(crate) fn read_manifest(path: &Path) -> anyhow::Result<Manifest> {
    let manifest = Manifest::parse(&read(path)?).with_context(|| path.display().to_string())?;
    if !manifest.unknown().is_empty() {
        let (path, names) = (path.display(), manifest.unknown().join(", "));
        tracing::warn!("{path}: fields that mean nothing here, maybe misspelt: {names}");
    }
    Ok(manifest)
}
