//! The name of a runtime on a node.

use std::{fmt, str::FromStr};

/// Where runtimes are installed on a node, each in a directory named after its handler.
pub const INSTALL_DIRECTORY: &str = "/opt/edgeless";

/// Key of the label that a node gets when the runtime is ready on it; its value is `ready`.
pub fn node_label(handler: &HandlerName) -> String {
    format!("contrast.edgeless.systems/{handler}")
}

const PREFIX: &str = "contrast-cc-";
/// Longest name that fits a Kubernetes label value.
const MAX_LENGTH: usize = 63;

/// Name of a containerd runtime handler and of its RuntimeClass: `contrast-cc-PLATFORM-HASH8`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlerName(String);

/// A name that cannot be a handler's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "runtime handler {0:?}: at most {MAX_LENGTH} of a-z, 0-9 and -, beginning with {PREFIX:?}, not ending in -"
)]
pub struct InvalidHandler(String);

impl HandlerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that follows the rules by construction.
    pub(crate) fn known(text: String) -> Self {
        debug_assert!(text.parse::<Self>().is_ok(), "{text}");
        Self(text)
    }

    /// The runtime's directory on the node.
    pub fn directory(&self) -> String {
        format!("{INSTALL_DIRECTORY}/{}", self.0)
    }
}

impl FromStr for HandlerName {
    type Err = InvalidHandler;

    fn from_str(text: &str) -> Result<Self, InvalidHandler> {
        let legal = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let rest = text.strip_prefix(PREFIX).unwrap_or_default();
        if legal && !rest.is_empty() && text.len() <= MAX_LENGTH && !text.ends_with('-') {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidHandler(text.chars().take(80).collect()))
    }
}

impl fmt::Display for HandlerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for HandlerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
