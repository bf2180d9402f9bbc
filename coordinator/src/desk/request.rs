//! What every request gets and gives: a name of its own, and a manifest that is read in one way.

use manifest::{Manifest, RequestId};

use super::failure::Failure;

/// A new request's name, in the events it causes and in the span of its log lines.
pub(crate) fn request_id() -> Result<RequestId, Failure> {
    let id = keys::random().map(RequestId::from_bytes).map_err(|error| Failure::Fault(error.to_string()))?;
    tracing::Span::current().record("request", tracing::field::display(id));
    Ok(id)
}

/// Reads a manifest; names that mean nothing here are worth a line in the log.
pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, Failure> {
    let manifest = Manifest::parse(bytes).map_err(Failure::malformed)?;
    if !manifest.unknown().is_empty() {
        tracing::warn!(unknown = %manifest.unknown().join(", "), "the manifest has fields that mean nothing here");
    }
    Ok(manifest)
}
