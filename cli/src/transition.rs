//! Transitions: which change of the history a signature permits, and where the history stands.

use std::path::Path;

use anyhow::Context as _;
use manifest::{Manifest, TransitionHash};

use crate::files::read;

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
