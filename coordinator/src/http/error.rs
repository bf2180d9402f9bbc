//! Errors of the HTTP API: status and stable code, chosen in one place (spec control-plane.md 9.4).

use actors::{AskError, IssueError, JournalError, RecoverError, SetManifestError};
use axum::response::{IntoResponse, Response};
use hyper::{
    StatusCode,
    header::{HeaderValue, RETRY_AFTER},
};
use serde::Serialize;

/// What clients branch on. Codes are only ever added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Code {
    InvalidArgument,
    InvalidSignature,
    PermissionDenied,
    NoManifest,
    NeedsRecovery,
    AlreadyRecovered,
    ManifestConflict,
    ApiVersionTooOld,
    Internal,
    /// Ours: too much is under way; try again.
    TryAgain,
    /// Ours: evidence over the nonce of this answer is needed.
    NonceRequired,
}

/// Why a request got nothing.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: Code,
    message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, message)
    }

    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::TryAgain, message)
    }

    pub(super) fn no_manifest() -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, Code::NoManifest, "no manifest configured")
    }

    pub(super) fn needs_recovery() -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, Code::NeedsRecovery, "coordinator is in recovery mode")
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Code::PermissionDenied, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            version: &'static str,
            status_code: u16,
            code: Code,
            error: &'a str,
        }
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(message = %self.message, "request failed");
        }
        let body = Body {
            version: env!("CARGO_PKG_VERSION"),
            status_code: self.status.as_u16(),
            code: self.code,
            error: &self.message,
        };
        let text = serde_json::to_string(&body).unwrap_or_default() + "\n";
        let mut answer = super::json(self.status, text);
        if self.code == Code::TryAgain {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        Self::busy(error.to_string())
    }
}

impl From<SetManifestError> for ApiError {
    fn from(error: SetManifestError) -> Self {
        let (status, code) = match &error {
            SetManifestError::StaleTransition { .. } | SetManifestError::AlreadySet { .. } => {
                (StatusCode::PRECONDITION_FAILED, Code::ManifestConflict)
            }
            SetManifestError::NothingToChange => (StatusCode::PRECONDITION_FAILED, Code::NoManifest),
            SetManifestError::NeedsRecovery | SetManifestError::SetBeforeRestart { .. } => {
                (StatusCode::PRECONDITION_FAILED, Code::NeedsRecovery)
            }
            SetManifestError::InsecureNotAllowed
            | SetManifestError::TooManySignatures { .. }
            | SetManifestError::SeedshareOwnerKey { .. }
            | SetManifestError::OwnerKey { .. }
            | SetManifestError::PolicyMissing(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            SetManifestError::UntrustedSignature
            | SetManifestError::NoKey
            | SetManifestError::NeedsBootstrapKey(_)
            | SetManifestError::TooFewSignatures { .. } => (StatusCode::FORBIDDEN, Code::InvalidSignature),
            SetManifestError::SeedshareOwnersChanged
            | SetManifestError::UpdatesDisabled
            | SetManifestError::NotAnOwner(_) => (StatusCode::FORBIDDEN, Code::PermissionDenied),
            SetManifestError::UnknownProposal(_) => (StatusCode::NOT_FOUND, Code::InvalidArgument),
            SetManifestError::TooManyProposals(_) => (StatusCode::SERVICE_UNAVAILABLE, Code::TryAgain),
            SetManifestError::Fault(_) => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<RecoverError> for ApiError {
    fn from(error: RecoverError) -> Self {
        let (status, code) = match &error {
            RecoverError::NothingToRecover => (StatusCode::PRECONDITION_FAILED, Code::NoManifest),
            RecoverError::AlreadyRecovered => (StatusCode::PRECONDITION_FAILED, Code::AlreadyRecovered),
            RecoverError::RolledBack(_) => (StatusCode::PRECONDITION_FAILED, Code::ManifestConflict),
            RecoverError::NoKey | RecoverError::NotAnOwner(_) => {
                (StatusCode::FORBIDDEN, Code::PermissionDenied)
            }
            RecoverError::Malformed(_) | RecoverError::BadShare { .. } | RecoverError::WrongSeed(_) => {
                (StatusCode::BAD_REQUEST, Code::InvalidArgument)
            }
            RecoverError::Fault(_) => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        match &error {
            IssueError::UnknownPolicy { .. } => Self::denied(error.to_string()),
            IssueError::Ask(_) => Self::busy(error.to_string()),
            IssueError::Key(_) => Self::malformed(error.to_string()),
            IssueError::Journal(journal) if is_unavailable(journal) => Self::busy(error.to_string()),
            IssueError::Journal(_) => Self::internal(error.to_string()),
        }
    }
}

/// Whether the shared event store did not answer, so that another try may do.
fn is_unavailable(error: &JournalError) -> bool {
    use storage_schema::{AppendError, LogError, StoreError::Unavailable};
    matches!(
        error,
        JournalError::Append(AppendError::Store(Unavailable(_)))
            | JournalError::Log(LogError::Store(Unavailable(_)))
            | JournalError::Store(Unavailable(_))
    )
}
