//! Images, wherever they are: what they run, and as whom.
//!
//! [`ImageStore::resolve`] finds an image in an OCI layout folder, a tar archive of one, an archive of
//! `docker save`, or a registry, and reads its configuration and user database. Whatever is read has
//! been compared with its digest first, down to the uncompressed layers; where it came from is
//! therefore not trusted. Layers are streamed, never held. What was learned of a layer is kept in a
//! cache by its digest, so that an unchanged image is read once.
//!
//! Source: OCI image and distribution specifications 1.1.

mod archive;
mod cache;
mod digest;
mod layer;
mod layout;
mod pull;
mod registry;
mod schema;
mod store;

pub use self::{
    digest::Digest,
    layer::LayerFacts,
    pull::{Challenge, Login, PullClient, PullError, Repository, is_loopback},
    registry::RegistryOptions,
    schema::{Descriptor, ImageConfig, ManifestFile},
    store::{ImageStore, Resolved},
};

/// Why an image was not read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not an image reference.
    #[error("{reference:?} is not an image reference: {message}")]
    Reference {
        /// The text.
        reference: String,
        /// What is wrong with it.
        message: String,
    },
    /// None of the places has it.
    #[error("image {reference} was not found: {message}")]
    NotFound {
        /// The image.
        reference: String,
        /// Where it was looked for, and what to do.
        message: String,
    },
    /// A registry said no, or nothing.
    #[error("registry {registry}: {message}")]
    Registry {
        /// Its host.
        registry: String,
        /// What it answered, and what to do.
        message: String,
    },
    /// Content that is not what its digest says.
    #[error("{what}: expected {expected}, got {found}: the content was changed on its way or in its store")]
    Digest {
        /// What was read.
        what: String,
        /// Digest wanted.
        expected: String,
        /// Digest found.
        found: String,
    },
    /// Content with the right digest that is not an image.
    #[error("{what}: {message}")]
    Malformed {
        /// What was read.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's words.
        source: std::io::Error,
    },
}

impl ImageError {
    pub(crate) fn malformed(what: impl Into<String>, message: impl ToString) -> Self {
        Self::Malformed { what: what.into(), message: message.to_string() }
    }

    pub(crate) fn io(path: &std::path::Path) -> impl Fn(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.display().to_string(), source }
    }
}
