//! What the control stream's checkpoints say about the other streams.

use keys::LogPublicKey;
use storage_schema::{Archive, EventStore, Head, LogError, StoreError, StreamHead, StreamId};

use super::{messages::LedgerError, state::State};

/// Where every replica stream stands, the control stream's own aside. Streams whose beginning the shared
/// store gave up, and which are not copied here yet, are left out.
pub fn replica_heads<S: EventStore>(
    archive: &Archive<S>,
    key: Option<LogPublicKey>,
) -> Result<Vec<(StreamHead, Option<LogPublicKey>)>, LogError> {
    let streams = archive.streams()?.into_iter().filter(|stream| *stream != StreamId::Control);
    let head = |stream| match archive.head_and_replica_key(stream, key) {
        Ok((Head { size, root, .. }, by)) => Some(Ok((StreamHead { stream, size, root }, by))),
        Err(error) if is_trimmed(&error) => None,
        Err(error) => Some(Err(error)),
    };
    streams.filter_map(head).collect()
}

/// Verifies every stream, and that each extends what its last checkpoint covers. Gives the streams of which
/// this cannot be said yet: the shared store gave up their beginning, and other replicas have it.
pub fn verify_streams<S: EventStore>(
    archive: &Archive<S>,
    key: Option<LogPublicKey>,
    state: &State,
) -> Result<Vec<StreamId>, LedgerError> {
    replica_heads(archive, key)?;
    let mut unknown = Vec::new();
    for head in state.heads() {
        match verify_stream(archive, key, head) {
            Ok(()) => {}
            Err(LedgerError::Log(error)) if is_trimmed(&error) => unknown.push(head.stream),
            Err(error) => return Err(error),
        }
    }
    Ok(unknown)
}

/// Verifies that a stream extends what a checkpoint covers.
pub fn verify_stream<S: EventStore>(
    archive: &Archive<S>,
    key: Option<LogPublicKey>,
    StreamHead { stream, size, root }: &StreamHead,
) -> Result<(), LedgerError> {
    let found = match archive.root_at(*stream, key, *size) {
        Ok(found) if found == *root => return Ok(()),
        Ok(found) => hex::encode(found),
        // The store answered: one that is silent is another error.
        Err(LogError::Beyond { size, .. }) => format!("{size} events"),
        Err(error) => return Err(error.into()),
    };
    let (stream, expected) = (stream.to_string(), hex::encode(root));
    Err(LedgerError::Rewritten { stream, size: *size, expected, found })
}

fn is_trimmed(error: &LogError) -> bool {
    matches!(error, LogError::Store(StoreError::Trimmed { .. }))
}
