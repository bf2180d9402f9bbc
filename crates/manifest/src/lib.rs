//! The domain words of the project.
//!
//! `manifest.json` is the allow-list that a Coordinator enforces: which policies may run, what
//! their certificates say, and which hardware and firmware may carry them. This crate holds its
//! types and validation, the content hashes that name things, and the time type. It does no I/O,
//! and depends on no other crate of the workspace.
//!
//! Source: spec `manifest-and-cli.md` section 1, `control-plane.md` sections 3.1 to 3.3 and 6.

mod digest;
mod time;

pub use digest::{
    EvidenceHash, InvalidId, KeyDigest, ManifestHash, PolicyHash, ReplicaId, RequestId, SerialNumber,
    TransitionHash,
};
pub use time::{InvalidTimestamp, Timestamp};
