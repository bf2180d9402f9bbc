//! Why a request got nothing, in Vault's form.

use hyper::StatusCode;

use crate::desk::{Failure, Kind};

/// A status and a text for a person.
#[derive(Debug, PartialEq)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

impl Refused {
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        match failure.kind() {
            Kind::Denied => Self(StatusCode::FORBIDDEN, failure.to_string()),
            Kind::TooLarge => Self(StatusCode::PAYLOAD_TOO_LARGE, failure.to_string()),
            Kind::Malformed => Self::malformed(failure.to_string()),
            Kind::Busy => Self(StatusCode::SERVICE_UNAVAILABLE, failure.to_string()),
            // Vault's clients know what that means, and wait.
            Kind::Unavailable | Kind::NoManifest | Kind::NeedsRecovery => {
                Self(StatusCode::SERVICE_UNAVAILABLE, "Vault is sealed".into())
            }
            _ => Self(StatusCode::INTERNAL_SERVER_ERROR, "the transit engine failed".into()),
        }
    }
}
