//! The event store on etcd, for Coordinators that run as several replicas.
//!
//! etcd is as untrusted as any disk: it only has to keep opaque bytes and to decide who is first.
//! What it returns is verified by [`storage_schema::Log`], and what a Coordinator verified it keeps in
//! a copy of its own ([`storage_schema::Replicated`]).
//!
//! Keys below the prefix, in binary: `s` + stream + index (8 bytes) for a segment, `n` + stream for a
//! stream's name, `b` + SHA-256 + part for a blob, `d` + name for what is derived. A segment that is
//! too large for one key is kept as a blob that its key names.
//! See docs/replicas.md. Source: the key-value, watch and auth services of etcd's API version 3.

mod args;
mod client;
mod keys;
mod store;
mod watch;

pub use args::EtcdArgs;
pub use client::{ConnectError, EtcdOptions, TlsFiles};
pub use store::{EtcdStore, Health, segments_in};

/// Generated from `proto/etcd.proto`.
mod api {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("etcdserverpb");

    impl std::fmt::Debug for AuthenticateRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("AuthenticateRequest(..)")
        }
    }

    impl std::fmt::Debug for AuthenticateResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("AuthenticateResponse(..)")
        }
    }
}
