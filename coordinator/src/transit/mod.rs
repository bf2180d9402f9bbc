//! The transit engine: encryption as a service for workloads, in the shape of Vault's
//! (spec control-plane.md section 10). Keys are derived from the seed and never leave.
//!
//! A workload may use the key that is named like its workload secret, and no other.

mod engine;
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
use manifest::{PolicyHash, Timestamp};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::engine::Operation;
use self::tls::TransitTls;
use crate::{
    web::{Stream, Web, body},
    wiring::Actors,
};

/// Largest request, in bytes: a large batch.
const MAX_REQUEST_BYTES: usize = 8 << 20;

/// Who is at the other end of a connection, by its certificate.
#[derive(Clone)]
pub(crate) struct Client {
    /// The workload secret that its certificate names.
    secret_id: Option<WorkloadSecretId>,
    /// What was in force when its certificate was checked.
    active: Arc<actors::Active>,
    /// Until when its certificate is valid.
    until: Timestamp,
}

/// Why a request got nothing, in Vault's form.
#[derive(Debug, PartialEq)]
struct Refused(StatusCode, String);

impl Refused {
    fn malformed(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }
}

/// Serves until stopped.
pub(crate) async fn serve(
    web: Web,
    socket: TcpListener,
    actors: Actors,
    own_policy: PolicyHash,
) -> anyhow::Result<()> {
    let tls = Arc::new(TransitTls::new(actors.clone(), own_policy));
    let open = move |stream, source| {
        let (actors, tls) = (actors.clone(), Arc::clone(&tls));
        async move {
            match tls.accept(stream).await {
                Ok((stream, client)) => Some((Box::new(stream) as Box<dyn Stream>, routes(&actors, &client))),
                Err(error) => {
                    tracing::debug!(%source, "no transit connection: {error:#}");
                    None
                }
            }
        }
    };
    web.serve(socket, open).await;
    Ok(())
}

/// The routes for one client.
fn routes(actors: &Actors, client: &Client) -> Router {
    let operation = |operation: Operation| {
        let (actors, client) = (actors.clone(), client.clone());
        any(move |Path(name): Path<String>, request: Request| async move {
            match run(&actors, &client, operation, &name, request).await {
                Ok(answer) => answer,
                Err(refused) => error(&refused),
            }
        })
    };
    let (health, seal) = (actors.clone(), actors.clone());
    Router::new()
        .route("/v1/transit/encrypt/{name}", operation(Operation::Encrypt))
        .route("/v1/transit/decrypt/{name}", operation(Operation::Decrypt))
        .route("/v1/transit/rewrap/{name}", operation(Operation::Rewrap))
        .route("/v1/sys/init", get(async || json_answer(StatusCode::OK, &json!({ "initialized": true }))))
        .route("/v1/sys/health", get(async move || json_answer(StatusCode::OK, &status(&health))))
        .route("/v1/sys/seal-status", get(async move || json_answer(StatusCode::OK, &status(&seal))))
        .fallback(async || error(&Refused(StatusCode::NOT_FOUND, "no handler for this route".into())))
}

/// The label of a path in metrics.
pub(crate) fn route(path: &str) -> &'static str {
    let mut parts = path.split('/').skip(1);
    match (parts.next(), parts.next(), parts.next()) {
        (Some("v1"), Some("transit"), Some("encrypt")) => "encrypt",
        (Some("v1"), Some("transit"), Some("decrypt")) => "decrypt",
        (Some("v1"), Some("transit"), Some("rewrap")) => "rewrap",
        (Some("v1"), Some("sys"), Some("health" | "seal-status")) => "health",
        _ => "other",
    }
}

async fn run(
    actors: &Actors,
    client: &Client,
    operation: Operation,
    name: &str,
    request: Request,
) -> Result<Response, Refused> {
    let name = WorkloadSecretId::new(name).filter(|name| !name.as_str().contains('/'));
    let name = name.ok_or_else(|| {
        let text = "a key name is one path segment: give the workload a secret id without slashes";
        Refused(StatusCode::NOT_FOUND, text.into())
    })?;
    authorise(actors, client, &name)?;
    let media_type = request.headers().get(CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    if media_type.is_some_and(|value| !value.starts_with(b"application/json")) {
        return Err(Refused::malformed("Content-Type: expected application/json or nothing"));
    }
    let bytes = body(request, MAX_REQUEST_BYTES).await.map_err(|status| {
        Refused(status, format!("the request is broken off, or larger than {MAX_REQUEST_BYTES} bytes"))
    })?;
    let engine = Arc::clone(&client.active.engine);
    // A batch may be megabytes of AES and base64.
    let work = tokio::task::spawn_blocking(move || engine::run(&engine, operation, &name, &bytes));
    let (status, data) = work
        .await
        .map_err(|_| Refused(StatusCode::INTERNAL_SERVER_ERROR, "the transit engine failed".into()))??;
    Ok(json_answer(status, &json!({ "data": data })))
}

/// The certificate must be of the manifest in force, and name this key.
fn authorise(actors: &Actors, client: &Client, name: &WorkloadSecretId) -> Result<(), Refused> {
    let current = tls::in_force(actors)
        .ok_or_else(|| Refused(StatusCode::SERVICE_UNAVAILABLE, "Vault is sealed".into()))?;
    if crate::wiring::now() > client.until {
        let text = "the certificate of this connection has expired: connect again, with a new one";
        return Err(Refused(StatusCode::FORBIDDEN, text.into()));
    }
    if current.ca.mesh_der() != client.active.ca.mesh_der() {
        let text =
            "the manifest was changed since this connection was made: connect again, with a new certificate";
        return Err(Refused(StatusCode::FORBIDDEN, text.into()));
    }
    if client.secret_id.as_ref() == Some(name) {
        return Ok(());
    }
    let found = client.secret_id.as_ref().map_or("none", WorkloadSecretId::as_str);
    let text = format!(
        "permission denied: this certificate is for the workload secret id {found:?}, the key is {:?}",
        name.as_str()
    );
    Err(Refused(StatusCode::FORBIDDEN, text))
}

fn status(actors: &Actors) -> Value {
    let now = crate::wiring::now().as_secs();
    json!({
        "initialized": true,
        "sealed": tls::in_force(actors).is_none(),
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
