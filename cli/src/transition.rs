//! Transitions: which change of the history a signature permits, and where the history stands.

use std::path::Path;

use anyhow::{Context as _, ensure};
use manifest::{Manifest, ManifestHash, TransitionHash};

use crate::client::read;

/// The transition that `manifest` makes after `latest`; zeros stand for no history.
pub(crate) fn transition_after(latest: TransitionHash, manifest: &Manifest) -> TransitionHash {
    TransitionHash::chain(Some(latest).filter(|latest| *latest != TransitionHash::ZERO), manifest.hash())
}

/// What the file that `verify` wrote says; zeros if there is none.
pub(crate) fn latest_transition(path: &Path) -> anyhow::Result<TransitionHash> {
    if !path.exists() {
        return Ok(TransitionHash::ZERO);
    }
    let text = String::from_utf8(read(path)?).with_context(|| path.display().to_string())?;
    text.trim().parse().with_context(|| path.display().to_string())
}

/// The latest transition of a history, recomputed from its manifests.
pub(crate) fn latest_of(manifests: &[Vec<u8>]) -> anyhow::Result<TransitionHash> {
    ensure!(!manifests.is_empty(), "no manifest configured");
    let chain = |latest, manifest: &Vec<u8>| Some(TransitionHash::chain(latest, ManifestHash::of(manifest)));
    Ok(manifests.iter().fold(None, chain).unwrap_or(TransitionHash::ZERO))
}
