//! What the event log means: events and their encoding, segments, hash chain, Merkle tree, and the
//! store that keeps them.
//!
//! State is a fold over events; nothing else is state. An engine ([`EventStore`]) is a dumb,
//! untrusted, conditional append of opaque bytes. [`Log`] is what makes a stream of it
//! trustworthy: it refuses a gap, a changed byte, a foreign signature, and says where.
//!
//! This crate is what an auditor's own tool links: no actix, no network, no TLS.
//! Source: design sections 3 and 4; RFC 6962 for the tree.

mod codec;
mod event;
mod log;
mod memory;
pub mod merkle;
mod segment;
mod sled_store;
mod store;

pub use codec::CodecError;
pub use event::{Authorisation, Event, Fact};
pub use log::{AppendError, Head, Log, LogError};
pub use memory::MemoryStore;
pub use segment::SegmentError;
pub use sled_store::SledStore;
pub use store::{BlobHash, EventStore, StoreError, StreamId};
