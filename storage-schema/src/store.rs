//! The contract with an engine.

use std::fmt;

use manifest::ReplicaId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Names a stream: one writer each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StreamId {
    /// Manifest changes and recoveries: append is a compare-and-swap.
    Control,
    /// What one incarnation of one replica did.
    Replica(ReplicaId),
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.pad("control"),
            Self::Replica(id) => f.pad(&format!("replica-{id}")),
        }
    }
}

impl std::str::FromStr for StreamId {
    type Err = manifest::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("replica-") {
            Some(id) => id.parse().map(Self::Replica),
            None if text == "control" => Ok(Self::Control),
            None => text.parse().map(Self::Replica),
        }
    }
}

/// SHA-256 of a blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobHash([u8; 32]);

impl BlobHash {
    /// Hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The hash under another name, such as a `ManifestHash`.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobHash({self})")
    }
}

/// Why an engine did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another writer was faster.
    #[error("segment {index} of stream {stream} is taken")]
    IndexTaken {
        /// The stream.
        stream: StreamId,
        /// The index that was to be written.
        index: u64,
    },
    /// An append that would leave a gap.
    #[error("segment {index} of stream {stream} cannot be written before segment {next}")]
    Gap {
        /// The stream.
        stream: StreamId,
        /// The index that was to be written.
        index: u64,
        /// The next free one.
        next: u64,
    },
    /// Segments that were acknowledged are not there any more.
    #[error("{path}: stream {stream} had {expected} segments, {found} are there: the store lost data")]
    Lost {
        /// The directory.
        path: String,
        /// The stream.
        stream: StreamId,
        /// How many were acknowledged.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// Bytes of a file that are not as they were written.
    #[error(
        "{file}, byte {at}: {what}; check the disk, and put back this file from a copy of it, or let this replica \
         start with an empty state directory if others run"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where.
        at: u64,
        /// What is there, and how it is known.
        what: String,
    },
    /// Content that does not have the hash it is stored under.
    #[error("blob {0} does not have the content its name promises")]
    BlobChanged(BlobHash),
    /// The directory belongs to another version of this program.
    #[error("{path} has the event log format {found:?}, this program reads {expected:?}")]
    Format {
        /// The directory.
        path: String,
        /// What it says.
        found: String,
        /// What is understood.
        expected: &'static str,
    },
    /// Another process has the directory open.
    #[error("{0} is in use by another process; stop it, or choose another state directory")]
    InUse(String),
    /// Segments that a shared store has given up because every replica holds them.
    #[error(
        "stream {stream}: the shared store begins at segment {first}, asked was for {index}; what comes before \
         is in the replicas' own copies"
    )]
    Trimmed {
        /// The stream.
        stream: StreamId,
        /// The segment that was asked for.
        index: u64,
        /// The first one that is there.
        first: u64,
    },
    /// A store over the network does not answer. Whether a write took effect is not known.
    #[error("the shared event store does not answer: {0}")]
    Unavailable(String),
    /// A store that shows another past than the one that was verified before.
    #[error(
        "stream {stream}: the shared store {what} at segment {index}, which this replica verified before; \
         it was rolled back, restored from elsewhere, or lies"
    )]
    Diverged {
        /// The stream.
        stream: StreamId,
        /// The segment.
        index: u64,
        /// What it does.
        what: &'static str,
    },
    /// The disk or the engine.
    #[error("event store: {0}")]
    Fault(String),
}

/// A dumb, untrusted, conditional append of opaque bytes. Calls block.
pub trait EventStore: Send + Sync + 'static {
    /// Writes a segment at `index`, which must be the next free one. Durable when it returns.
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError>;

    /// Segments from `index` on, in order, at least one if there is any and then until `max_bytes` are reached.
    fn read(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;

    /// Takes note that the log's key was found to come from the seed, so that what [`EventStore::keep`]
    /// gets is the deployment's own log and not one that the store invented.
    fn trust(&self) {}

    /// Takes note that the log verified this segment, which [`EventStore::read`] returned. An engine
    /// with a copy of its own keeps it there.
    fn keep(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        let _ = (stream, index, segment);
        Ok(())
    }

    /// Stores a blob under its SHA-256; durable at the latest with the next append.
    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError>;

    /// A blob, checked against its name.
    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps something that can be computed from the segments again: a tile, a snapshot, an index
    /// entry. Replaces what had that name; durable with the next [`EventStore::sync`], so a crash may undo it.
    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError>;

    /// What [`EventStore::put_derived`] kept, unauthenticated.
    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Makes durable what was put so far.
    fn sync(&self) -> Result<(), StoreError>;

    /// Why the engine takes no writes; `None` if it does, or if none failed yet. Where the last one failed, it is
    /// found out whether the next one would.
    fn failing(&self) -> Option<StoreError> {
        None
    }

    /// Every stream that has a segment.
    fn streams(&self) -> Result<Vec<StreamId>, StoreError>;
}
