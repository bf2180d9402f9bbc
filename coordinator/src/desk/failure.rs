//! Why a request got nothing, and the one classification of it.
//!
//! [`Failure`] says what happened; [`Failure::kind`] says what that means for the caller. Each door turns a
//! [`Kind`] into the status of its protocol by one `match`, so no door can judge an error by itself.

use actors::{AskError, HandOverError, IssueError, JournalError, NotInForce, RecoverError, SetManifestError};
use storage_schema::{LogError, Trouble};

use super::peer::Turned;

/// Anything that a request can end with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Something in the request cannot be read.
    #[error("{0}")]
    Malformed(String),
    #[error("the request is larger than {most} bytes")]
    TooLarge { most: usize },
    /// The caller has no right to this.
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    NotFound(String),
    /// The caller's evidence was refused, with the checks that failed.
    #[error("{reason}")]
    Evidence { reason: String, failed: Option<attestation::Refusal> },
    #[error(transparent)]
    NotInForce(#[from] NotInForce),
    /// The caller was judged by a manifest that is not in force any more.
    #[error("the manifest has changed since this connection was made; connect again")]
    Replaced,
    /// This replica may be behind, so it gives nothing away.
    #[error("{0}")]
    Stale(String),
    #[error("the manifest demands version v{minimum} of this API or a newer one, this is v{version}")]
    ApiTooOld { minimum: u16, version: u16 },
    #[error(transparent)]
    Ask(#[from] AskError),
    /// As much of this is under way as may be.
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    SetManifest(#[from] SetManifestError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Log(#[from] LogError),
    /// A bug or a broken machine.
    #[error("{0}")]
    Fault(String),
}

/// What a failure means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Malformed,
    TooLarge,
    /// The request names something that it should have brought along.
    Incomplete,
    Denied,
    BadSignature,
    NotFound,
    NoManifest,
    NeedsRecovery,
    AlreadyRecovered,
    /// History is not where the caller believes.
    Conflict,
    ApiTooOld,
    /// A question about events that are not there.
    Beyond,
    /// Too much is under way; try again in a second.
    Busy,
    /// Something that this depends on does not answer; try again in a second, maybe at another replica.
    Unavailable,
    /// Others were faster, several times.
    Outrun,
    /// A well-formed seed, but not this deployment's.
    WrongSeed,
    /// A key that nothing can be done with.
    UnusableKey,
    /// The event store shows what it must not, or lost something.
    DataLoss,
    /// What happened could not be recorded, so it must not happen.
    NotRecorded,
    Fault,
}

impl Kind {
    /// Whether somebody who runs this Coordinator has to look.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::DataLoss | Self::NotRecorded | Self::Fault)
    }

    /// Whether the same request may succeed in a second.
    pub(crate) fn may_try_again(self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable)
    }
}

impl Failure {
    pub(crate) fn malformed(error: impl ToString) -> Self {
        Self::Malformed(error.to_string())
    }

    /// What this means for the caller.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Malformed(_) => Kind::Malformed,
            Self::TooLarge { .. } => Kind::TooLarge,
            Self::Denied(_) | Self::Evidence { .. } => Kind::Denied,
            Self::NotFound(_) => Kind::NotFound,
            Self::NotInForce(NotInForce::NoManifest) => Kind::NoManifest,
            Self::NotInForce(NotInForce::NeedsRecovery) => Kind::NeedsRecovery,
            Self::Replaced | Self::Stale(_) => Kind::Unavailable,
            Self::ApiTooOld { .. } => Kind::ApiTooOld,
            Self::Ask(error) => ask(*error),
            Self::Busy(_) => Kind::Busy,
            Self::SetManifest(error) => set_manifest(error),
            Self::Recover(error) => recover(error),
            Self::Issue(error) => issue(error),
            Self::HandOver(error) => hand_over(error),
            Self::Journal(error) => journal(error),
            Self::Log(error) => trouble(error.trouble()),
            Self::Fault(_) => Kind::Fault,
        }
    }
}

impl From<Turned> for Failure {
    fn from(turned: Turned) -> Self {
        match turned {
            Turned::Away { reason, failed } => Self::Evidence { reason, failed },
            Turned::Busy(error) => Self::Ask(error),
        }
    }
}

impl From<storage_schema::StoreError> for Failure {
    fn from(error: storage_schema::StoreError) -> Self {
        Self::Log(error.into())
    }
}

fn ask(error: AskError) -> Kind {
    match error {
        AskError::Full(_) => Kind::Busy,
        AskError::Restarting => Kind::Unavailable,
    }
}

fn set_manifest(error: &SetManifestError) -> Kind {
    match error {
        SetManifestError::StaleTransition { .. }
        | SetManifestError::AlreadySet { .. }
        | SetManifestError::Withdrawn(_) => Kind::Conflict,
        SetManifestError::NothingToChange => Kind::NoManifest,
        SetManifestError::NobodyToEvict | SetManifestError::EvictsCoordinator(_) => Kind::Malformed,
        SetManifestError::NeedsRecovery | SetManifestError::SetBeforeRestart { .. } => Kind::NeedsRecovery,
        SetManifestError::InsecureNotAllowed
        | SetManifestError::TooManySignatures { .. }
        | SetManifestError::Names(_)
        | SetManifestError::SeedshareOwnerKey { .. }
        | SetManifestError::OwnerKey { .. } => Kind::Malformed,
        SetManifestError::PolicyMissing(_) => Kind::Incomplete,
        SetManifestError::UnknownProposal(_) => Kind::NotFound,
        SetManifestError::TooManyProposals(_)
        | SetManifestError::TooManyVouchers(_)
        | SetManifestError::TooManyEvicted(_) => Kind::Busy,
        SetManifestError::SeedshareOwnersChanged
        | SetManifestError::UpdatesDisabled
        | SetManifestError::NotAnOwner(_) => Kind::Denied,
        SetManifestError::NoKey
        | SetManifestError::NeedsBootstrapKey(_)
        | SetManifestError::TooFewSignatures { .. }
        | SetManifestError::UntrustedEviction(_)
        | SetManifestError::UntrustedSignature => Kind::BadSignature,
        SetManifestError::Fault(fault) => trouble(fault.trouble()),
    }
}

fn recover(error: &RecoverError) -> Kind {
    match error {
        RecoverError::NothingToRecover => Kind::NoManifest,
        RecoverError::AlreadyRecovered => Kind::AlreadyRecovered,
        RecoverError::RolledBack(_) => Kind::Conflict,
        RecoverError::NoKey | RecoverError::NotAnOwner(_) => Kind::Denied,
        RecoverError::Malformed(_) | RecoverError::BadShare { .. } => Kind::Malformed,
        RecoverError::WrongSeed(_) => Kind::WrongSeed,
        RecoverError::Fault(fault) => trouble(fault.trouble()),
    }
}

fn issue(error: &IssueError) -> Kind {
    match error {
        IssueError::UnknownPolicy { .. } => Kind::Denied,
        IssueError::Key(_) => Kind::UnusableKey,
        IssueError::Journal(error) => journal(error),
        IssueError::Ask(error) => ask(*error),
    }
}

fn hand_over(error: &HandOverError) -> Kind {
    match error {
        HandOverError::NotACoordinator(_) => Kind::Denied,
        HandOverError::Key(_) => Kind::UnusableKey,
        HandOverError::Journal(error) => journal(error),
        HandOverError::Ask(error) => ask(*error),
    }
}

fn journal(error: &JournalError) -> Kind {
    match error.trouble() {
        Trouble::Unavailable => Kind::Unavailable,
        Trouble::Outrun | Trouble::Beyond | Trouble::Dishonest | Trouble::Lost | Trouble::Fault => {
            Kind::NotRecorded
        }
    }
}

fn trouble(trouble: Trouble) -> Kind {
    match trouble {
        Trouble::Unavailable => Kind::Unavailable,
        Trouble::Outrun => Kind::Outrun,
        Trouble::Beyond => Kind::Beyond,
        Trouble::Dishonest | Trouble::Lost => Kind::DataLoss,
        Trouble::Fault => Kind::Fault,
    }
}
