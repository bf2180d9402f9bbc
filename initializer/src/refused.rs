//! The kind of error that ends the program with exit code 1.

/// The Coordinator, or this pod, was refused: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);
