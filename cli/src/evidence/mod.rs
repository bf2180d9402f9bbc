//! Looking at evidence: what it says, and what a manifest says of it.

pub(crate) mod document;
pub(crate) mod explain;
pub(crate) mod inspect;
mod unlisted;
