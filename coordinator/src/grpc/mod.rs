//! The services: decode, call the desk, encode. They decide nothing.

mod history_api;
mod intake;
mod listener;
mod mesh_api;
mod peer;
mod proposals_api;
mod status;
mod user_api;

pub(crate) use history_api::HistoryApi;
pub(crate) use intake::Intake;
pub(crate) use listener::{Listener, PeerPolicy};
pub(crate) use mesh_api::MeshApi;
pub(crate) use peer::workload;
pub(crate) use proposals_api::ProposalsApi;
pub(crate) use user_api::UserApi;

use tonic::codegen::http;
use tower::util::MapRequestLayer;

type Body = tonic::body::Body;

/// Answers older and newer clients under the same services (docs/spec/control-plane.md, sections 1.2, 1.3).
pub(crate) fn path_aliases() -> MapRequestLayer<fn(http::Request<Body>) -> http::Request<Body>> {
    MapRequestLayer::new(|mut request| {
        for (alias, path) in wire::PATH_ALIASES {
            if let Some(method) = request.uri().path().strip_prefix(alias)
                && let Ok(uri) = format!("{path}{method}").parse()
            {
                *request.uri_mut() = uri;
            }
        }
        request
    })
}
