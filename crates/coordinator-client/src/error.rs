//! Why a call led to nothing.

use std::io;

use atls::{CertificateError, ConnectError};
use attestation::Refusal;
use manifest::PolicyHash;
use tonic::{Code, Status};

/// Why somebody is not a Coordinator of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// No evidence came, so anybody may have answered.
    #[error("it sent no evidence")]
    NoEvidence,
    /// The evidence does not fit the connection or the reference values, or its vendor did not sign it.
    #[error(transparent)]
    Evidence(#[from] Refusal),
    /// A confidential VM of this deployment or of somebody else, but not one that runs a Coordinator.
    #[error("it is genuine, but its policy {0} is not a Coordinator's in the manifest")]
    NotACoordinator(PolicyHash),
}

/// Why a Coordinator was not called, or what was answered instead of what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody accepts connections there.
    #[error("cannot reach the Coordinator at {address}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// No attested TLS was spoken.
    #[error("no attested connection to {address}{hint}")]
    Handshake {
        /// With whom.
        address: String,
        /// What it is most likely.
        hint: &'static str,
        /// Why.
        #[source]
        error: ConnectError,
    },
    /// Attested TLS, and then no HTTP/2.
    #[error("no HTTP/2 with {address}")]
    Http2 {
        /// With whom.
        address: String,
        /// Why.
        #[source]
        error: tonic::transport::Error,
    },
    /// Somebody, but not a Coordinator of the manifest.
    #[error("the Coordinator at {address}: {reason}{}", next_step(reason))]
    Stranger {
        /// Where.
        address: String,
        /// Why.
        reason: Stranger,
    },
    /// The Coordinator refuses what was asked for.
    #[error("the Coordinator answered: {0}")]
    Declined(String),
    /// The Coordinator could not do it.
    #[error("the Coordinator answered: {0}")]
    Failed(String),
    /// Something that speaks gRPC, but not this.
    #[error("what answers there has no such API: the user API is usually on port 1313, the mesh API on 7777")]
    NoSuchApi,
    /// What was answered contradicts the evidence: another than the Coordinator made it.
    #[error("{0}")]
    Contradiction(String),
    /// An answer that cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// The way through a proxy.
    #[error("{0}")]
    Proxy(String),
    /// A key of the caller's.
    #[error(transparent)]
    Key(#[from] CertificateError),
    /// A bug of this program.
    #[error("a bug of this program: {0}")]
    Bug(String),
}

/// What to do about evidence that is not believed, where that is known.
fn next_step(reason: &Stranger) -> &'static str {
    match reason.to_string().contains("NOT-HARDWARE") {
        true => {
            "\n  next: this is a simulated machine, which protects nothing; for trials the manifest must name its root, as \
             that of `contrast dev` does"
        }
        false => "",
    }
}

impl CallError {
    /// Whether somebody was refused, or refused the caller; anything else is a fault.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Stranger { .. } | Self::Declined(_) | Self::Contradiction(_) => true,
            Self::Unreachable { .. }
            | Self::Handshake { .. }
            | Self::Http2 { .. }
            | Self::Failed(_)
            | Self::NoSuchApi
            | Self::Malformed(_)
            | Self::Proxy(_)
            | Self::Key(_)
            | Self::Bug(_) => false,
        }
    }

    pub(crate) fn handshake(address: &str, error: ConnectError) -> Self {
        let text = error.to_string();
        let hint = if text.contains("InvalidContentType") || text.contains("corrupt message") {
            " (no TLS is spoken there: for the HTTP API begin with http://, for the user API give its port, usually 1313)"
        } else if text.contains("NoApplicationProtocol") {
            " (another protocol is spoken there, as by the transit engine on 8200: the user API is usually on port 1313)"
        } else {
            ""
        };
        Self::Handshake { address: address.to_owned(), hint, error }
    }
}

/// What a status of the user API or the history means to the caller.
#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
pub fn answered(status: Status) -> CallError {
    let text = match (status.code(), status.message()) {
        (Code::Unimplemented, "") => return CallError::NoSuchApi,
        (code, "") => code.description().to_owned(),
        (_, message) if message.ends_with("coordinator is in recovery mode") => {
            format!("{message}: a seedshare owner has to run `contrast recover`")
        }
        (_, message) => message.to_owned(),
    };
    match status.code() {
        Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound => {
            CallError::Declined(text)
        }
        _ => CallError::Failed(text),
    }
}
