//! Every gRPC status code, chosen in one place (spec control-plane.md 1.5).

use actors::{
    AskError, HandOverError, IssueError, JournalError, LedgerError, RecoverError, SetManifestError,
};
use storage_schema::{AppendError, LogError, StoreError};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::listener::Refused;

/// Milliseconds after which to try again (gRFC A6, server pushback).
const RETRY_HINT: &str = "grpc-retry-pushback-ms";

/// Anything that a request can end with.
pub(crate) enum Failure {
    Malformed(String),
    Refused(String),
    /// The peer's evidence; what failed travels along as JSON.
    Evidence(Refused),
    NoManifest,
    NeedsRecovery,
    Ask(AskError),
    SetManifest(SetManifestError),
    Recover(RecoverError),
    Issue(IssueError),
    HandOver(HandOverError),
    Log(LogError),
    Unavailable(String),
    Fault(String),
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let details = match &failure {
            Failure::Evidence(Refused { refusal: Some(refusal), .. }) => serde_json::to_vec(refusal).ok(),
            _ => None,
        };
        let (code, message) = match failure {
            Failure::Malformed(message) => (Code::InvalidArgument, message),
            Failure::Refused(message) | Failure::Evidence(Refused { reason: message, .. }) => {
                (Code::PermissionDenied, message)
            }
            Failure::NoManifest => (Code::FailedPrecondition, "no manifest configured".into()),
            Failure::NeedsRecovery => (Code::FailedPrecondition, "coordinator is in recovery mode".into()),
            Failure::Ask(error) => (ask(&error), error.to_string()),
            Failure::SetManifest(error) => (set_manifest(&error), error.to_string()),
            Failure::Recover(error) => (recover(&error), error.to_string()),
            Failure::Issue(error) => (issue(&error), error.to_string()),
            Failure::HandOver(error) => (hand_over(&error), error.to_string()),
            Failure::Log(error) => (log(&error), error.to_string()),
            Failure::Unavailable(message) => (Code::Unavailable, message),
            Failure::Fault(message) => (Code::Internal, message),
        };
        if matches!(code, Code::Internal | Code::DataLoss) {
            tracing::error!(%message, "request failed");
        }
        let mut status = Self::with_details(code, message, details.unwrap_or_default().into());
        if matches!(code, Code::ResourceExhausted | Code::Unavailable) {
            status.metadata_mut().insert(RETRY_HINT, MetadataValue::from_static("1000"));
        }
        status
    }
}

fn ask(error: &AskError) -> Code {
    match error {
        AskError::Full(_) => Code::ResourceExhausted,
        AskError::Restarting => Code::Unavailable,
    }
}

fn set_manifest(error: &SetManifestError) -> Code {
    match error {
        SetManifestError::StaleTransition { .. }
        | SetManifestError::AlreadySet { .. }
        | SetManifestError::NothingToChange
        | SetManifestError::NeedsRecovery
        | SetManifestError::SetBeforeRestart { .. } => Code::FailedPrecondition,
        SetManifestError::InsecureNotAllowed
        | SetManifestError::TooManySignatures { .. }
        | SetManifestError::SeedshareOwnerKey { .. }
        | SetManifestError::OwnerKey { .. } => Code::InvalidArgument,
        SetManifestError::UnknownProposal(_) => Code::NotFound,
        SetManifestError::TooManyProposals(_) => Code::ResourceExhausted,
        SetManifestError::SeedshareOwnersChanged
        | SetManifestError::UpdatesDisabled
        | SetManifestError::NoKey
        | SetManifestError::NotAnOwner(_)
        | SetManifestError::NeedsBootstrapKey(_)
        | SetManifestError::TooFewSignatures { .. }
        | SetManifestError::UntrustedSignature => Code::PermissionDenied,
        SetManifestError::PolicyMissing(_) => Code::Internal,
        SetManifestError::Fault(fault) => ledger(fault),
    }
}

fn recover(error: &RecoverError) -> Code {
    match error {
        RecoverError::NothingToRecover | RecoverError::AlreadyRecovered | RecoverError::RolledBack(_) => {
            Code::FailedPrecondition
        }
        RecoverError::NoKey | RecoverError::NotAnOwner(_) => Code::PermissionDenied,
        RecoverError::Malformed(_) | RecoverError::BadShare { .. } => Code::InvalidArgument,
        RecoverError::WrongSeed(_) => Code::Unknown,
        RecoverError::Fault(fault) => ledger(fault),
    }
}

fn ledger(error: &LedgerError) -> Code {
    match error {
        LedgerError::Restarting => Code::Unavailable,
        LedgerError::Append(AppendError::Store(error))
        | LedgerError::Log(LogError::Store(error))
        | LedgerError::Store(error) => store(error),
        LedgerError::Append(_)
        | LedgerError::Log(_)
        | LedgerError::Key(_)
        | LedgerError::Rewritten { .. }
        | LedgerError::BlobMissing { .. }
        | LedgerError::Manifest(_) => Code::Internal,
    }
}

fn issue(error: &IssueError) -> Code {
    match error {
        IssueError::UnknownPolicy { .. } => Code::PermissionDenied,
        IssueError::Key(_) => Code::Unknown,
        IssueError::Journal(error) => journal(error),
        IssueError::Ask(error) => ask(error),
    }
}

fn hand_over(error: &HandOverError) -> Code {
    match error {
        HandOverError::NotACoordinator(_) => Code::PermissionDenied,
        HandOverError::Key(_) => Code::Unknown,
        HandOverError::Journal(error) => journal(error),
        HandOverError::Ask(error) => ask(error),
    }
}

fn store(error: &StoreError) -> Code {
    match error {
        StoreError::Unavailable(_) => Code::Unavailable,
        // More than a few others were faster in turn.
        StoreError::IndexTaken { .. } => Code::Aborted,
        StoreError::Diverged { .. } | StoreError::Lost { .. } => Code::DataLoss,
        _ => Code::Internal,
    }
}

fn log(error: &LogError) -> Code {
    match error {
        LogError::Beyond { .. } => Code::OutOfRange,
        LogError::Store(error) => store(error),
        LogError::Event { .. } | LogError::Tiles(_) => Code::Internal,
        LogError::Segment { .. } | LogError::Chain { .. } | LogError::Lost { .. } => Code::DataLoss,
    }
}

fn journal(error: &JournalError) -> Code {
    match error {
        JournalError::Restarting => Code::Unavailable,
        JournalError::Append(AppendError::Store(StoreError::Unavailable(_)))
        | JournalError::Log(LogError::Store(StoreError::Unavailable(_)))
        | JournalError::Store(StoreError::Unavailable(_)) => Code::Unavailable,
        JournalError::Append(_) | JournalError::Log(_) | JournalError::Store(_) => Code::Unknown,
    }
}
