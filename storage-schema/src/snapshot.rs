//! Snapshots: a fold that need not begin at the beginning.
//!
//! A snapshot is a cache. It is signed with the log key, names the segment it ends with, and any
//! replay from the start verifies it. One that does not fit is dropped, except where it proves that
//! the store lost segments.

use keys::{LogKey, LogPublicKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{AppendError, CodecError, Event, EventStore, Position, StoreError, StreamId, Tiles, codec};

const CONTEXT: &[u8] = b"contrast event log snapshot\0";

/// A read model: a fold over the events of a stream.
pub trait Projection: Default + Serialize + DeserializeOwned {
    /// Name and version; a snapshot of another one is dropped. Change it with the meaning of
    /// `apply` or the shape of the type.
    const NAME: &'static str;

    /// Folds one event in. Total: every event that was stored can be applied.
    fn apply(&mut self, sequence: u64, event: &Event);
}

/// Nothing is remembered; for readers that only need a place to start from.
impl Projection for () {
    const NAME: &'static str = "nothing 1";

    fn apply(&mut self, _: u64, _: &Event) {}
}

/// Why a snapshot was dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Too short, or of another projection.
    #[error("snapshot of stream {0} is not one of this program")]
    Foreign(StreamId),
    /// Signed by another key, or changed.
    #[error("snapshot of stream {0} is not signed by the log's key")]
    Signature(StreamId),
    /// Signed, but not of the expected shape.
    #[error("snapshot of stream {0}: {1}")]
    Body(StreamId, CodecError),
    /// The engine.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A stream's position, its tiles' edge, and what was folded so far.
#[derive(Serialize, Deserialize)]
pub(crate) struct Snapshot<P> {
    pub(crate) position: Position,
    pub(crate) tiles: Tiles,
    pub(crate) projection: P,
}

impl<P: Projection> Snapshot<P> {
    pub(crate) fn save<S: EventStore>(
        store: &S,
        position: &Position,
        tiles: &Tiles,
        projection: &P,
        key: &LogKey,
    ) -> Result<(), AppendError> {
        #[derive(Serialize)]
        struct Borrowed<'a, P> {
            position: &'a Position,
            tiles: &'a Tiles,
            projection: &'a P,
        }
        let body = codec::encode(&Borrowed { position, tiles, projection })?;
        let public = key.public();
        let signature = key.sign(&signed_part::<P>(&public, &body));
        let bytes = [public.as_bytes().as_slice(), &signature, &body].concat();
        store.put_derived(&name::<P>(&position.stream), &bytes)?;
        Ok(store.sync()?)
    }

    pub(crate) fn load<S: EventStore>(
        store: &S,
        stream: StreamId,
        expected: Option<LogPublicKey>,
    ) -> Result<Option<Self>, SnapshotError> {
        let Some(bytes) = store.get_derived(&name::<P>(&stream))? else { return Ok(None) };
        let (key, rest) = bytes.split_first_chunk::<32>().ok_or(SnapshotError::Foreign(stream))?;
        let (signature, body) = rest.split_first_chunk::<64>().ok_or(SnapshotError::Foreign(stream))?;
        let key = LogPublicKey::from_bytes(*key);
        let authentic = key.verify(&signed_part::<P>(&key, body), signature).is_ok();
        if !authentic || expected.is_some_and(|expected| expected != key) {
            return Err(SnapshotError::Signature(stream));
        }
        let snapshot: Self = codec::decode(body).map_err(|error| SnapshotError::Body(stream, error))?;
        if snapshot.position.stream != stream || snapshot.position.key != Some(key) {
            return Err(SnapshotError::Foreign(stream));
        }
        Ok(Some(snapshot))
    }
}

fn name<P: Projection>(stream: &StreamId) -> Vec<u8> {
    format!("snapshot/{stream}/{}", P::NAME).into_bytes()
}

fn signed_part<P: Projection>(key: &LogPublicKey, body: &[u8]) -> Vec<u8> {
    [CONTEXT, P::NAME.as_bytes(), &[0], key.as_bytes(), body].concat()
}
