//! The HTTP API: what the gRPC API does, for clients behind proxies that end TLS on the way
//! (docs/spec/control-plane.md, section 9). Nothing here relies on the connection: freshness comes from
//! nonces in evidence, authority from signatures, secrecy from HPKE to a key that evidence vouches for.

mod answers;
mod api;
mod attest;
mod error;
mod manifest;
mod mesh_cert;
mod recover;
mod server;
mod status;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter, get, on},
};
use hyper::StatusCode;

pub(crate) use self::{
    api::Api,
    server::{Stream, Web, body},
};

use self::{
    error::{ApiError, Code},
    server::json,
};

/// The routes of the API.
pub(crate) fn routes(api: &Arc<Api>) -> Router {
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
        .route("/v1/mesh-cert", answered(MethodFilter::POST, api, mesh_cert::issue))
        .route("/v1/status", get(async move || status::status(&status)))
        .route("/v1/checkpoint", answered(MethodFilter::GET, api, status::checkpoint))
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

/// The label of a path in metrics.
pub(crate) fn route(path: &str) -> &'static str {
    const ROUTES: [&str; 10] = [
        "/attest",
        "/verify",
        "/capabilities",
        "/v1/attest",
        "/v1/attest-key",
        "/v1/manifest",
        "/v1/recover",
        "/v1/mesh-cert",
        "/v1/status",
        "/v1/checkpoint",
    ];
    ROUTES.into_iter().find(|route| *route == path).unwrap_or("other")
}
