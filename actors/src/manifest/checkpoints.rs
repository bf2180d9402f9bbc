//! Checkpoints: the control stream covers the replica streams.

use keys::LogPublicKey;
use storage_schema::{Archive, EventStore, Head, LogError, StreamHead, StreamId};

use super::{messages::LedgerError, state::State};

/// Where every replica stream stands, read back from the store and verified.
pub fn replica_heads<S: EventStore>(
    archive: &Archive<S>,
    key: Option<LogPublicKey>,
) -> Result<Vec<StreamHead>, LogError> {
    let streams = archive.streams()?.into_iter().filter(|stream| *stream != StreamId::Control);
    let head = |stream| {
        let Head { size, root, .. } = archive.head(stream, key)?;
        Ok(StreamHead { stream, size, root })
    };
    streams.map(head).collect()
}

/// Verifies every stream, and that each extends what its last checkpoint covers.
pub fn verify_streams<S: EventStore>(
    archive: &Archive<S>,
    key: Option<LogPublicKey>,
    state: &State,
) -> Result<(), LedgerError> {
    replica_heads(archive, key)?;
    for StreamHead { stream, size, root } in state.heads() {
        let found = match archive.root_at(*stream, key, *size) {
            Ok(found) if found == *root => continue,
            Ok(found) => hex::encode(found),
            Err(LogError::Beyond { size, .. }) => format!("{size} events"),
            Err(error) => return Err(error.into()),
        };
        let (stream, expected) = (stream.to_string(), hex::encode(root));
        return Err(LedgerError::Rewritten { stream, size: *size, expected, found });
    }
    Ok(())
}
