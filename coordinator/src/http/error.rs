//! Errors of the HTTP API: status and stable code, chosen in one place (docs/spec/control-plane.md,
//! section 9.4).

use axum::response::{IntoResponse, Response};
use hyper::{
    StatusCode,
    header::{HeaderValue, RETRY_AFTER},
};
use serde::Serialize;

use super::server::json;
use crate::desk::{Failure, Kind};

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
        let mut answer = json(self.status, text);
        if self.code == Code::TryAgain {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let kind = failure.kind();
        let (status, code) = match kind {
            Kind::Malformed | Kind::Incomplete | Kind::UnusableKey | Kind::WrongSeed => {
                (StatusCode::BAD_REQUEST, Code::InvalidArgument)
            }
            Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::InvalidArgument),
            Kind::Denied => (StatusCode::FORBIDDEN, Code::PermissionDenied),
            Kind::BadSignature => (StatusCode::FORBIDDEN, Code::InvalidSignature),
            Kind::ApiTooOld => (StatusCode::FORBIDDEN, Code::ApiVersionTooOld),
            Kind::NotFound => (StatusCode::NOT_FOUND, Code::InvalidArgument),
            Kind::NoManifest => (StatusCode::PRECONDITION_FAILED, Code::NoManifest),
            Kind::NeedsRecovery => (StatusCode::PRECONDITION_FAILED, Code::NeedsRecovery),
            Kind::AlreadyRecovered => (StatusCode::PRECONDITION_FAILED, Code::AlreadyRecovered),
            Kind::Conflict => (StatusCode::PRECONDITION_FAILED, Code::ManifestConflict),
            Kind::Beyond => (StatusCode::RANGE_NOT_SATISFIABLE, Code::ManifestConflict),
            Kind::Busy | Kind::Unavailable | Kind::Outrun => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::TryAgain)
            }
            Kind::DataLoss | Kind::NotRecorded | Kind::Fault => {
                (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal)
            }
        };
        Self::new(status, code, failure.to_string())
    }
}

#[cfg(test)]
mod tests {
    use actors::{AskError, LedgerError, RecoverError, SetManifestError};
    use storage_schema::{AppendError, StoreError};

    use super::*;

    fn status(failure: impl Into<Failure>) -> (StatusCode, bool) {
        let answer = ApiError::from(failure.into()).into_response();
        (answer.status(), answer.headers().contains_key(RETRY_AFTER))
    }

    #[test]
    fn what_passes_by_itself_is_no_fault_and_has_a_hint_when_to_try_again() {
        let silent = || LedgerError::Append(AppendError::Store(StoreError::Unavailable("etcd".into())));
        let again = (StatusCode::SERVICE_UNAVAILABLE, true);
        assert_eq!(status(SetManifestError::Fault(silent())), again);
        assert_eq!(status(RecoverError::Fault(silent())), again);
        assert_eq!(status(SetManifestError::Fault(LedgerError::Restarting)), again);
        assert_eq!(status(AskError::Restarting), again);
        assert_eq!(status(StoreError::Fault("disk".into())), (StatusCode::INTERNAL_SERVER_ERROR, false));
    }
}
