//! Attested TLS: each side sends the other a nonce in the handshake, and answers with a
//! self-signed certificate whose extension holds hardware evidence over (its key, that nonce).
//!
//! A finished handshake proves possession of the certificate's key. It does **not** judge the
//! evidence: [`accept`] and [`connect`] return the peer's [`PeerCertificate`], and the caller
//! verifies `peer.evidence` against `peer.report_data()` before it sends or believes anything.
//! That keeps half a millisecond of RSA off the executor, and lets a server say why it refuses.
//!
//! TLS 1.3 only, no tickets, no resumption, no early data: a resumed session has no fresh evidence.
//! Source: docs/spec/control-plane.md, section 2.

mod certificate;
mod client;
pub mod hpke;
mod nonce;
mod server;

pub use certificate::{CertificateError, ConnectionKey, KeyAlgorithm, PeerCertificate};
pub use client::{ClientConfig, ConnectError, connect};
pub use nonce::{Nonce, NonceError};
pub use server::{AcceptError, Accepted, ClientAuth, ServerConfig, accept};
