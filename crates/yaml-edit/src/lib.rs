//! Edits to YAML that leave comments, order of keys and layout as they were.
//!
//! A [`Document`] is text together with what it means. An edit changes the bytes of one place; then
//! the text is read again, and if it does not mean exactly what was intended, the edit is refused
//! and the text stays as it was. So a layout that this crate does not handle is an error that names
//! the line, never a file that silently says something else.
//!
//! Scalars are read as Kubernetes reads them (YAML 1.1 in the places that matter: `0644` is octal,
//! `yes` is true). Left out: tags, complex keys, directives.

mod document;
mod emit;
mod node;
mod path;
mod scalar;

pub use document::{Document, MAX_BYTES, Position, read};
pub use path::{Path, Step};

/// Why YAML was not understood, or not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// Over the limit.
    #[error("{found} bytes, at most {MAX_BYTES} are read")]
    TooLarge {
        /// Size found, in bytes.
        found: usize,
    },
    /// Not YAML, or a part of it that is not used for Kubernetes resources.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The place cannot be changed without touching something else.
    #[error("line {line}: {path} cannot be changed here: {message}")]
    Edit {
        /// Line, from 1.
        line: usize,
        /// The place.
        path: Path,
        /// Why not.
        message: &'static str,
    },
}
