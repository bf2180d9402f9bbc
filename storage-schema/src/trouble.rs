//! What an error of the log means for whoever waits for an answer.
//!
//! Every error above an engine wraps [`StoreError`] in one way or another. This is the one place that says
//! which of them pass by themselves, which accuse the store, and which are bugs; callers match on [`Trouble`]
//! and never on the nesting.

use crate::{AppendError, LogError, StoreError};

/// Kinds of errors, by what should follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The engine does not answer. The same question may succeed in a while.
    Unavailable,
    /// Another writer was faster. Decide again on the newer state, and try again.
    Outrun,
    /// The question was about events that do not exist.
    Beyond,
    /// The store shows something that a correct store cannot show: believe it in nothing.
    Dishonest,
    /// Something that was acknowledged is gone from the local disk.
    Lost,
    /// A bug, a full disk, or a wrong set-up: a person has to look.
    Fault,
}

impl StoreError {
    /// What follows from this error.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Unavailable(_) => Trouble::Unavailable,
            Self::IndexTaken { .. } => Trouble::Outrun,
            Self::Diverged { .. } | Self::BlobChanged(_) | Self::Gap { .. } | Self::Trimmed { .. } => {
                Trouble::Dishonest
            }
            Self::Lost { .. } | Self::Damaged { .. } => Trouble::Lost,
            Self::Format { .. } | Self::InUse(_) | Self::Fault(_) => Trouble::Fault,
        }
    }
}

impl LogError {
    /// What follows from this error. An event that cannot be read counts as dishonest, because this replica
    /// cannot tell a newer program's event from a forged one.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Store(error) => error.trouble(),
            Self::Beyond { .. } => Trouble::Beyond,
            Self::Segment { .. }
            | Self::Chain { .. }
            | Self::Event { .. }
            | Self::Lost { .. }
            | Self::Tiles(_) => Trouble::Dishonest,
        }
    }
}

impl AppendError {
    /// What follows from this error.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Store(error) => error.trouble(),
            Self::Poisoned(_) | Self::Codec(_) => Trouble::Fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nesting_of_an_error_does_not_change_what_follows_from_it() {
        let silent = StoreError::Unavailable("etcd".into());
        assert_eq!(LogError::Store(silent.clone()).trouble(), Trouble::Unavailable);
        assert_eq!(AppendError::Store(silent).trouble(), Trouble::Unavailable);
        assert_eq!(StoreError::Fault("disk".into()).trouble(), Trouble::Fault);
    }
}
