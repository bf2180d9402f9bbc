//! How everybody calls a Coordinator.
//!
//! The steps are always the same: [`dial`] with a deadline, [`Unjudged::open`] for the handshake of attested TLS, and
//! [`Unjudged::judge`], which completes the evidence, verifies it by a manifest and demands the role of a Coordinator.
//! What it gives, [`Attested`], is the only thing that requests can be sent through. Who takes any Coordinator says so
//! with [`Unjudged::unjudged`].
//!
//! With the feature `session`, [`Session`] offers the user API over gRPC or HTTP, and behaves alike over both. HTTP
//! leads through proxies that end TLS, so there the evidence is in the answers, and the same [`Trust`] judges it.

mod attested;
#[cfg(feature = "session")]
mod corporate;
mod dial;
mod error;
#[cfg(feature = "session")]
mod given_certificate;
#[cfg(feature = "session")]
mod grpc;
#[cfg(feature = "session")]
mod proxied;
#[cfg(feature = "session")]
mod request;
#[cfg(feature = "session")]
mod session;
mod trust;

pub use attested::{Attested, Caller, Deadlines, Unjudged};
#[cfg(feature = "session")]
pub use corporate::{Speech, dial_configured};
pub use dial::{dial, with_port};
pub use error::{CallError, Stranger, answered};
#[cfg(feature = "session")]
pub use proxied::{IN_RECOVERY, Proxied, host_and_port, is_url};
#[cfg(feature = "session")]
pub use request::{NewManifest, OlderHead, SeedShareForm, ShownHistory};
#[cfg(feature = "session")]
pub use session::Session;
pub use trust::Trust;
