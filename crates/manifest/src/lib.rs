//! The domain words of the project.
//!
//! `manifest.json` is the allow-list that a Coordinator enforces: which policies may run, what
//! their certificates say, and which hardware and firmware may carry them. This crate holds its
//! types and validation, the content hashes that name things, and the time type. It does no I/O,
//! and depends on no other crate of the workspace.
//!
//! Source: docs/spec/manifest-and-cli.md, section 1, docs/spec/control-plane.md, sections 3.1 to 3.3 and 6.

mod diff;
mod digest;
mod json;
mod keys;
mod manifest;
mod names;
mod reference_values;
mod time;

pub use self::{
    diff::{ManifestDiff, ValueChange, WorkloadChange},
    digest::{
        ChipId, EntryPoint, EvidenceHash, InvalidId, KeyDigest, ManifestHash, Measurement,
        PlatformInstanceId, PolicyHash, ReplicaId, RequestId, SerialNumber, TdAttributes, TransitionHash,
        Xfam,
    },
    keys::OwnerKey,
    manifest::{MAX_MANIFEST_BYTES, MAX_POLICIES, Manifest, ManifestBody, ManifestError, PolicyEntry, Role},
    reference_values::{
        GuestPolicy, PlatformInfo, ReferenceValues, Revocation, SnpProduct, SnpReferenceValues,
        SnpSigningKey, SnpTcb, TcbStatus, TdxReferenceValues,
    },
    time::{InvalidTimestamp, Timestamp},
};
