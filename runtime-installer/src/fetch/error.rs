//! Why a file was not had.

use std::io;

use runtime_bundle::Digest;

use super::archive::ArchiveError;

/// Why a file was not had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not the file that the configuration describes.
    #[error(
        "{what}: digest is {found}, {expected} was expected: the source is not what the configuration was made for"
    )]
    WrongDigest {
        /// The source.
        what: String,
        /// Wanted.
        expected: Digest,
        /// Computed.
        found: Digest,
    },
    /// Over the limit.
    #[error("{what}: over {max} bytes, the size that the configuration allows")]
    TooLarge {
        /// The source.
        what: String,
        /// The limit, in bytes.
        max: u64,
    },
    /// It would not fit.
    #[error(
        "{what}: {needed} bytes are needed and {free} are free at {folder} on the node: make room, then run again"
    )]
    NoSpace {
        /// The source.
        what: String,
        /// Bytes needed, a reserve included.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Where.
        folder: String,
    },
    /// The other side does not give it.
    #[error("{what}: {reason}")]
    Remote {
        /// The source.
        what: String,
        /// Status or failure.
        reason: String,
        /// Whether another try may help.
        passing: bool,
    },
    /// The archive.
    #[error("{what}: {source}")]
    Archive {
        /// The source.
        what: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// Reading or writing here.
    #[error("{what}: {source}")]
    Io {
        /// The source, or the file written.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl FetchError {
    /// Whether what came was wrong, rather than that nothing came.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::WrongDigest { .. } | Self::TooLarge { .. } | Self::Archive { .. })
    }
}
