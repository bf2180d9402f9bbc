//! The HTTP API: what the gRPC API does, for clients behind proxies that end TLS on the way
//! (docs/spec/control-plane.md, section 9). Nothing here relies on the connection: freshness comes from
//! nonces in evidence, authority from signatures, secrecy from HPKE to a key that evidence vouches for.

mod answers;
mod api;
mod attest;
mod error;
mod manifest;
mod mesh_cert;
mod peers;
mod recover;
mod server;
mod status;
mod vouch;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter, get, on},
};
use hyper::StatusCode;
use tokio::net::TcpListener;

pub(crate) use self::{
    answers::at_most,
    api::Api,
    server::{Stream, Web, body},
};

use self::{
    error::{ApiError, Code},
    server::json,
};
use crate::{
    budget::{Budget, Right},
    door::Door,
};

/// The routes of the API.
fn routes(api: &Arc<Api>) -> Router {
    let capabilities = api.capabilities.clone();
    let status = Arc::clone(api);
    Router::new()
        .route("/attest", answered(MethodFilter::POST, api, attest::attest_legacy))
        .route("/verify", answered(MethodFilter::POST, api, attest::attest_legacy))
        .route("/capabilities", get(async move || json(StatusCode::OK, capabilities)))
        .route("/v1/attest", answered(MethodFilter::POST, api, attest::attest_v1))
        .route("/v1/attest-key", answered(MethodFilter::POST, api, attest::attest_key))
        .route("/v1/manifest", answered(MethodFilter::POST, api, manifest::set))
        .route("/v1/recover", answered(MethodFilter::POST, api, recover::recover))
        .route("/v1/vouch", answered(MethodFilter::POST, api, vouch::vouch))
        .route("/v1/mesh-cert", answered(MethodFilter::POST, api, mesh_cert::issue))
        .route("/v1/status", get(async move || status::status(&status)))
        .route(peers::PATH, answered(MethodFilter::GET, api, peers::peers))
        .route("/v1/checkpoint", answered(MethodFilter::GET, api, status::checkpoint))
        .method_not_allowed_fallback(async || {
            let text = "this route takes another method: docs/http-api.md lists them";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, Code::InvalidArgument, text).into_response()
        })
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, Code::InvalidArgument, "no such route").into_response()
        })
}

/// A route whose handler gives an answer or an error.
fn answered<F>(method: MethodFilter, api: &Arc<Api>, handler: fn(Arc<Api>, Request) -> F) -> MethodRouter
where
    F: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    let api = Arc::clone(api);
    on(method, async move |request: Request| match handler(api, request).await {
        Ok(answer) => answer,
        Err(error) => error.into_response(),
    })
}

/// The label of a path in metrics, and the largest request there.
fn route(path: &str) -> (&'static str, usize) {
    const ROUTES: [(&str, usize); 12] = [
        ("/attest", attest::MAX_REQUEST_BYTES),
        ("/verify", attest::MAX_REQUEST_BYTES),
        ("/capabilities", 0),
        ("/v1/attest", attest::MAX_REQUEST_BYTES),
        ("/v1/attest-key", attest::MAX_REQUEST_BYTES),
        ("/v1/manifest", manifest::MAX_REQUEST_BYTES),
        ("/v1/recover", recover::MAX_REQUEST_BYTES),
        ("/v1/vouch", vouch::MAX_REQUEST_BYTES),
        ("/v1/mesh-cert", mesh_cert::MAX_REQUEST_BYTES),
        ("/v1/status", 0),
        ("/v1/checkpoint", 0),
        (peers::PATH, 0),
    ];
    ROUTES.into_iter().find(|(route, _)| *route == path).unwrap_or(("other", 0))
}

/// Serves the API until stopped.
pub(crate) async fn serve(
    door: Door,
    budget: Budget,
    socket: TcpListener,
    api: Arc<Api>,
) -> anyhow::Result<()> {
    let refuse = |failure| ApiError::from(failure).into_response();
    let web = Web { door, budget, right: Right::Stranger, route, refuse };
    web.serve_plain(socket, routes(&api)).await
}
