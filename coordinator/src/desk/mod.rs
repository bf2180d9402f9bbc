//! What a Coordinator does, whichever door a request came in by.
//!
//! Each use case is one plain asynchronous function on domain types: admit a workload, issue its certificate,
//! hand the secrets over to a peer, set a manifest, recover, read the history, use the transit engine. A rule
//! about who gets what therefore stands once, and cannot differ between gRPC and HTTP. The doors (`grpc/`,
//! `http/`, `transit/`, `replicas/`) decode a request, call one function here, and encode its answer.
//!
//! **Invariant:** nothing here knows tonic, axum or sockets, so the rules are tested without them.

mod admit;
mod change;
mod failure;
mod handles;
mod handover;
mod history;
mod issue;
mod once;
mod peer;
mod recover;
mod request;
mod secrets;
mod standing;
mod status;
mod transit;
mod transit_uses;
mod vendors;

#[cfg(test)]
mod tests;

pub(crate) use self::{
    change::NewManifest,
    failure::{Failure, Kind},
    handles::{Desk, Store},
    history::Page,
    issue::Answer,
    peer::{Presented, Turned, Workload},
    recover::Recovery,
    secrets::Secrets,
    standing::{Current, Peer, STALE_AFTER, Standing},
    status::Readiness,
    transit::{TransitClient, TransitKeys},
};
