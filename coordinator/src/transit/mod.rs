//! The transit engine: encryption as a service for workloads, in the shape of Vault's
//! (docs/spec/control-plane.md, section 10). Keys are derived from the seed and never leave.
//!
//! A workload may use the key that is named like its workload secret, and no other.

mod engine;
mod refused;
mod tls;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, Request},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use hyper::{StatusCode, header::CONTENT_TYPE};
use keys::WorkloadSecretId;
use manifest::PolicyHash;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::{engine::Operation, refused::Refused, tls::TransitTls};
use crate::{
    budget::{Budget, Right},
    clock::now,
    desk::{Desk, TransitClient},
    door::Door,
    http::{Stream, Web, body},
};

/// Largest request, in bytes: a large batch.
const MAX_REQUEST_BYTES: usize = 8 << 20;

/// Serves until stopped.
pub(crate) async fn serve(
    door: Door,
    budget: Budget,
    socket: TcpListener,
    desk: Desk,
    own_policy: PolicyHash,
) -> anyhow::Result<()> {
    let tls = Arc::new(TransitTls::new(desk.clone(), own_policy));
    let open = move |stream, source| {
        let (desk, tls) = (desk.clone(), Arc::clone(&tls));
        async move {
            match tls.accept(stream).await {
                Ok((stream, client)) => Some((Box::new(stream) as Box<dyn Stream>, routes(&desk, &client))),
                Err(error) => {
                    tracing::debug!(%source, "no transit connection: {error:#}");
                    None
                }
            }
        }
    };
    let refuse = |failure| error(&Refused::from(failure));
    let web = Web { door, budget, right: Right::Transit, route, refuse };
    web.serve(socket, open).await;
    Ok(())
}

/// The routes for one client.
fn routes(desk: &Desk, client: &TransitClient) -> Router {
    let operation = |operation: Operation| {
        let (desk, client) = (desk.clone(), client.clone());
        any(move |Path(name): Path<String>, request: Request| async move {
            match run(&desk, &client, operation, &name, request).await {
                Ok(answer) => answer,
                Err(refused) => error(&refused),
            }
        })
    };
    let (health, seal) = (desk.clone(), desk.clone());
    Router::new()
        .route("/v1/transit/encrypt/{name}", operation(Operation::Encrypt))
        .route("/v1/transit/decrypt/{name}", operation(Operation::Decrypt))
        .route("/v1/transit/rewrap/{name}", operation(Operation::Rewrap))
        .route("/v1/sys/init", get(async || json_answer(StatusCode::OK, &json!({ "initialized": true }))))
        .route("/v1/sys/health", get(async move || json_answer(StatusCode::OK, &status(&health))))
        .route("/v1/sys/seal-status", get(async move || json_answer(StatusCode::OK, &status(&seal))))
        .fallback(async || error(&Refused(StatusCode::NOT_FOUND, "no handler for this route".into())))
}

/// The label of a path in metrics, and the largest request there.
fn route(path: &str) -> (&'static str, usize) {
    let mut parts = path.split('/').skip(1);
    let route = match (parts.next(), parts.next(), parts.next()) {
        (Some("v1"), Some("transit"), Some("encrypt")) => "encrypt",
        (Some("v1"), Some("transit"), Some("decrypt")) => "decrypt",
        (Some("v1"), Some("transit"), Some("rewrap")) => "rewrap",
        (Some("v1"), Some("sys"), Some("health" | "seal-status")) => "health",
        _ => "other",
    };
    (route, if matches!(route, "health" | "other") { 0 } else { MAX_REQUEST_BYTES })
}

async fn run(
    desk: &Desk,
    client: &TransitClient,
    operation: Operation,
    name: &str,
    request: Request,
) -> Result<Response, Refused> {
    let name = WorkloadSecretId::new(name).filter(|name| !name.as_str().contains('/'));
    let name = name.ok_or_else(|| {
        let text = "a key name is one path segment: give the workload a secret id without slashes";
        Refused(StatusCode::NOT_FOUND, text.into())
    })?;
    let keys = desk.transit_keys(client, name, now())?;
    let media_type = request.headers().get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    if media_type.is_some_and(|value| !value.starts_with(b"application/json")) {
        return Err(Refused::malformed("Content-Type: expected application/json or nothing"));
    }
    let bytes = body(request, MAX_REQUEST_BYTES).await.map_err(|status| {
        Refused(status, format!("the request is broken off, or larger than {MAX_REQUEST_BYTES} bytes"))
    })?;
    // A batch may be megabytes of AES and base64.
    let work = tokio::task::spawn_blocking(move || {
        let outcome = engine::run(&keys, operation, &bytes);
        (keys, outcome)
    });
    let (keys, outcome) = work
        .await
        .map_err(|_| Refused(StatusCode::INTERNAL_SERVER_ERROR, "the transit engine failed".into()))?;
    desk.transit_used(keys, now()).await?;
    let (status, data) = outcome?;
    Ok(json_answer(status, &json!({ "data": data })))
}

fn status(desk: &Desk) -> Value {
    let now = now().as_secs();
    json!({
        "initialized": true,
        "sealed": desk.is_sealed(),
        "standby": false,
        "performance_standby": false,
        "type": "shamir",
        "t": 1, "n": 1, "progress": 0,
        "server_time_utc": now,
        "version": env!("CARGO_PKG_VERSION"),
        "cluster_name": "contrast",
    })
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

fn error(Refused(status, message): &Refused) -> Response {
    tracing::debug!(%status, %message, "transit request refused");
    json_answer(*status, &json!({ "errors": [message] }))
}
