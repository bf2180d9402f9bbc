//! The services: wire types in, commands to actors, wire types out.

mod history_api;
pub(crate) mod mesh_api;
mod proposals_api;
pub(crate) mod status;
pub(crate) mod user_api;

pub(crate) use history_api::{HistoryApi, control_head};
pub(crate) use mesh_api::MeshApi;
pub(crate) use proposals_api::ProposalsApi;
pub(crate) use user_api::UserApi;

use tonic::codegen::http;
use tower::util::MapRequestLayer;

type Body = tonic::body::Body;

/// Answers older and newer clients under the same services (spec control-plane.md 1.2, 1.3).
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
