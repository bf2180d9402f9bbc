//! What a confidential runtime consists of, and what it is called (docs/spec/data-plane.md,
//! sections 3 and 4).
//!
//! A [`Bundle`] lists files with their digests; [`Bundle::handler`] derives from them the name that containerd, the
//! RuntimeClass and the directory on the node share. Other contents, another name: versions live side by side.

mod bundle;
mod file;
mod handler;
mod platform;
mod shim;

pub use bundle::{Bundle, BundleError, GUEST_MEMORY_MIB, GUEST_VCPUS, MAX_BUNDLE_BYTES, SnpId};
pub use file::{
    BundleFile, Digest, InvalidDigest, InvalidPath, InvalidSource, Mode, Role, RuntimePath, Source,
};
pub use handler::{HandlerName, INSTALL_DIRECTORY, InvalidHandler, node_label};
pub use platform::{Platform, Tee, UnknownPlatform};
pub use shim::{Shim, UnknownShim};
