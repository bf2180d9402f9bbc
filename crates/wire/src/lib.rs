//! The gRPC services, generated from `proto/`. Wire types stop at the edge: servers and clients
//! turn them into domain types at once.
//!
//! Messages that carry secrets print no content in `Debug`.

pub mod http;

/// Header of answers about the history: milliseconds since the replica last knew that it had everything its
/// store holds.
pub const VIEW_AGE: &str = "contrast-view-age-ms";

/// What operators and data owners ask: manifests, history, recovery (docs/spec/control-plane.md,
/// section 1.2).
pub mod user {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("edgelesssys.contrast.userapi");
}

/// What workloads and peers ask: certificates, secrets (docs/spec/control-plane.md, section 1.3).
pub mod mesh {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("meshapi");
}

/// The event log for people and auditors (our own).
pub mod history {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("contrast.history.v1");
}

/// Manifest changes that several owners must sign (our own).
pub mod proposals {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("contrast.proposals.v1");
}

/// What Coordinators of one deployment say to each other (our own).
pub mod replica {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated"
    )]
    tonic::include_proto!("contrast.replica.v1");
}

/// gRPC paths under which older and newer clients call the same services; the first of each pair
/// is answered as the second (docs/spec/control-plane.md, sections 1.2, 1.3).
pub const PATH_ALIASES: [(&str, &str); 2] = [
    ("/userapi.UserAPI/", "/edgelesssys.contrast.userapi.UserAPI/"),
    ("/edgelesssys.contrast.meshapi.MeshAPI/", "/meshapi.MeshAPI/"),
];

/// Redacted: these carry secrets.
macro_rules! redacted_debug {
    ($($type:ty),*) => {$(
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($type), "(..)"))
            }
        }
    )*};
}
redacted_debug!(
    mesh::NewMeshCertResponse,
    mesh::RecoverResponse,
    user::RecoverRequest,
    replica::JoinResponse
);
