//! What the event log means: events and their encoding, segments, hash chain, Merkle tree, and the
//! store that keeps them.
//!
//! State is a fold over events; nothing else is state. An engine ([`EventStore`]) is a dumb,
//! untrusted, conditional append of opaque bytes. [`Log`] is what makes a stream of it
//! trustworthy: it refuses a gap, a changed byte, a foreign signature, and says where. [`Position`]
//! is the verifier inside, for whoever gets segments from elsewhere; [`Archive`] answers questions
//! with proofs; [`Checkpoint`] is a signed head for the world.
//!
//! This crate is what an auditor's own tool links: no actix, no network, no TLS.
//! Format: docs/event-log.md; RFC 6962 for the tree; C2SP for checkpoints and tiles.

mod archive;
mod checkpoint;
mod codec;
#[cfg(feature = "sled")]
mod content;
mod event;
pub mod export;
mod index;
mod log;
mod memory;
pub mod merkle;
mod migrate;
mod position;
mod replicated;
mod segment;
mod signers;
#[cfg(feature = "sled")]
mod sled_store;
mod snapshot;
mod store;
mod tiles;
mod trim;
mod trouble;

use snapshot::Snapshot;

pub use archive::{Archive, Inclusion};
pub use checkpoint::{Checkpoint, CheckpointError, InvalidLogId, LogId};
pub use codec::CodecError;
pub use event::{Approval, Authorisation, Event, Fact, ShareCommitment, StreamHead};
pub use log::{AppendError, Folded, Log, LogError};
pub use memory::MemoryStore;
pub use migrate::{MigrateError, Migrated, migrate, named_blobs};
pub use position::{Head, Position, Verified};
pub use replicated::{Copies, Damage, Replicated};
pub use segment::{SegmentError, Signer, open_signed_head, signed_head};
#[cfg(feature = "sled")]
pub use sled_store::SledStore;
pub use snapshot::{Projection, SnapshotError};
pub use store::{BlobHash, EventStore, StoreError, StreamId};
pub use tiles::Tiles;
pub use trim::{Removable, removable};
pub use trouble::Trouble;
