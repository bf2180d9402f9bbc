//! The programs that start a runtime's VMs.

use std::{fmt, str::FromStr};

/// A shim of Kata's. Each has a configuration of its own: what one needs the other refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// The one in Go, of Kata 3, which Kata 4 still has.
    Go,
    /// The one in Rust (runtime-rs), Kata 4's.
    Rust,
}

/// A name that is no shim's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown shim {0:?}: kata-go or kata-rs")]
pub struct UnknownShim(String);

impl Shim {
    /// Its name, which policies' settings have as well.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Go => "kata-go",
            Self::Rust => "kata-rs",
        }
    }
}

impl fmt::Display for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Shim {
    type Err = UnknownShim;

    fn from_str(text: &str) -> Result<Self, UnknownShim> {
        let found = [Self::Go, Self::Rust].into_iter().find(|shim| shim.name() == text);
        found.ok_or_else(|| UnknownShim(text.chars().take(80).collect()))
    }
}
