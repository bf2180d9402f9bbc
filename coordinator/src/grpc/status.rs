//! Every gRPC status code, chosen in one place (spec control-plane.md 1.5).

use actors::{HandOverError, IssueError, JournalError, LedgerError, RecoverError, SetManifestError};
use tonic::{Code, Status};

/// Anything that a request can end with.
pub(crate) enum Failure {
    Malformed(String),
    Refused(String),
    NoManifest,
    NeedsRecovery,
    Restarting,
    SetManifest(SetManifestError),
    Recover(RecoverError),
    Issue(IssueError),
    HandOver(HandOverError),
    Fault(String),
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (code, message) = match failure {
            Failure::Malformed(message) => (Code::InvalidArgument, message),
            Failure::Refused(message) => (Code::PermissionDenied, message),
            Failure::NoManifest => (Code::FailedPrecondition, "no manifest configured".into()),
            Failure::NeedsRecovery => (Code::FailedPrecondition, "coordinator is in recovery mode".into()),
            Failure::Restarting => (Code::Unavailable, "an actor is restarting; try again".into()),
            Failure::SetManifest(error) => (set_manifest(&error), error.to_string()),
            Failure::Recover(error) => (recover(&error), error.to_string()),
            Failure::Issue(error) => (issue(&error), error.to_string()),
            Failure::HandOver(error) => (hand_over(&error), error.to_string()),
            Failure::Fault(message) => (Code::Internal, message),
        };
        if matches!(code, Code::Internal) {
            tracing::error!(%message, "request failed");
        }
        Self::new(code, message)
    }
}

fn set_manifest(error: &SetManifestError) -> Code {
    match error {
        SetManifestError::StaleTransition { .. } | SetManifestError::NeedsRecovery => {
            Code::FailedPrecondition
        }
        SetManifestError::SeedshareOwnerKey { .. } => Code::InvalidArgument,
        SetManifestError::SeedshareOwnersChanged
        | SetManifestError::UpdatesDisabled
        | SetManifestError::NoKey
        | SetManifestError::NotAnOwner(_)
        | SetManifestError::UntrustedSignature => Code::PermissionDenied,
        SetManifestError::PolicyMissing(_) => Code::Internal,
        SetManifestError::Fault(fault) => ledger(fault),
    }
}

fn recover(error: &RecoverError) -> Code {
    match error {
        RecoverError::NothingToRecover | RecoverError::AlreadyRecovered => Code::FailedPrecondition,
        RecoverError::NoKey | RecoverError::NotAnOwner(_) => Code::PermissionDenied,
        RecoverError::WrongSeed(_) => Code::Unknown,
        RecoverError::Fault(fault) => ledger(fault),
    }
}

fn ledger(error: &LedgerError) -> Code {
    match error {
        LedgerError::Restarting => Code::Unavailable,
        LedgerError::Append(_)
        | LedgerError::Log(_)
        | LedgerError::Store(_)
        | LedgerError::Key(_)
        | LedgerError::BlobMissing { .. }
        | LedgerError::Manifest(_) => Code::Internal,
    }
}

fn issue(error: &IssueError) -> Code {
    match error {
        IssueError::UnknownPolicy { .. } => Code::PermissionDenied,
        IssueError::Key(_) => Code::Unknown,
        IssueError::Journal(error) => journal(error),
        IssueError::Restarting => Code::Unavailable,
    }
}

fn hand_over(error: &HandOverError) -> Code {
    match error {
        HandOverError::NotACoordinator(_) => Code::PermissionDenied,
        HandOverError::Key(_) => Code::Unknown,
        HandOverError::Journal(error) => journal(error),
    }
}

fn journal(error: &JournalError) -> Code {
    match error {
        JournalError::Full => Code::ResourceExhausted,
        JournalError::Restarting => Code::Unavailable,
        JournalError::Append(_) | JournalError::Log(_) | JournalError::Store(_) => Code::Unknown,
    }
}
