//! What a host hands to a guest before it starts: a document with the guest's policy, on a block device.
//!
//! [`envelope`] is what the device holds, [`Document`] what is in it, [`device`] finds it. All of it is the host's:
//! it is bounded, then compared with what the hardware measured, and only then decoded. Source: docs/spec/policy.md;
//! how a guest uses it is in docs/guest.md.

pub mod device;
mod document;
pub mod envelope;

pub use document::{Document, DocumentError, POLICY};
