//! Every gRPC status code, chosen in one place (docs/spec/control-plane.md, section 1.5).

use tonic::{Code, Status, metadata::MetadataValue};

use crate::desk::{Failure, Kind};

/// Milliseconds after which to try again (gRFC A6, server pushback).
const RETRY_HINT: &str = "grpc-retry-pushback-ms";

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (kind, message) = (failure.kind(), failure.to_string());
        if kind.is_ours() {
            tracing::error!(%message, "request failed");
        }
        // What failed travels along as JSON, for a client that explains it.
        let details = match failure {
            Failure::Evidence { failed: Some(failed), .. } => serde_json::to_vec(&failed).unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut status = Self::with_details(code(kind), message, details.into());
        if kind.may_try_again() {
            status.metadata_mut().insert(RETRY_HINT, MetadataValue::from_static("1000"));
        }
        status
    }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::Malformed => Code::InvalidArgument,
        Kind::Denied | Kind::BadSignature | Kind::ApiTooOld => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::NoManifest | Kind::NeedsRecovery | Kind::AlreadyRecovered | Kind::Conflict => {
            Code::FailedPrecondition
        }
        Kind::Beyond | Kind::TooLarge => Code::OutOfRange,
        Kind::Busy => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Outrun => Code::Aborted,
        // Upstream's clients know these three without a code of their own.
        Kind::WrongSeed | Kind::UnusableKey | Kind::NotRecorded => Code::Unknown,
        Kind::DataLoss => Code::DataLoss,
        // Upstream answers a missing policy document like this.
        Kind::Incomplete | Kind::Fault => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use actors::{LedgerError, SetManifestError};
    use storage_schema::{AppendError, StoreError};

    use super::*;

    #[test]
    fn a_store_that_is_silent_is_no_fault_and_has_a_hint_when_to_try_again() {
        let silent = StoreError::Unavailable("etcd".into());
        let error = SetManifestError::Fault(LedgerError::Append(AppendError::Store(silent)));
        let status = Status::from(Failure::SetManifest(error));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.metadata().contains_key(RETRY_HINT));
        let broken = Failure::from(StoreError::Fault("disk".into()));
        let status = Status::from(broken);
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.metadata().contains_key(RETRY_HINT));
    }
}
