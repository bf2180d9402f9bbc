//! What everybody may see, in a browser or with curl, and the head of the log for whoever remembers one.

use std::sync::Arc;

use actors::Phase;
use axum::{extract::Request, response::Response};
use hyper::StatusCode;
use serde_json::json;
use storage_schema::{LogError, StreamId};
use wire::history::HeadResponse;

use super::{
    Api, Base64, answer,
    error::{ApiError, Code},
    json as json_answer,
};
use crate::grpc::control_head;

/// What state this Coordinator is in.
pub(super) fn state(api: &Api) -> &'static str {
    match &api.actors.snapshot.borrow().phase {
        Phase::Active(_) if !api.actors.standing.is_current() => "stale",
        Phase::Active(_) => "ready",
        Phase::Uninitialised => "no manifest configured",
        Phase::NeedsRecovery => "coordinator is in recovery mode",
    }
}

/// `GET /v1/status`.
pub(super) fn status(api: &Api) -> Response {
    let snapshot = api.actors.snapshot.borrow().clone();
    let state = state(api);
    let hint = match state {
        "stale" => "the event store has not answered for too long: contrast status",
        "no manifest configured" => "set one: contrast set",
        "coordinator is in recovery mode" => "a seedshare owner must: contrast recover",
        _ => "",
    };
    let latest = snapshot.state.latest();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "status": state,
        "hint": hint,
        "generation": snapshot.state.entries().len(),
        "manifest": latest.map(|entry| entry.manifest),
        "latest_transition": latest.map(|entry| entry.transition),
        "since": latest.map(|entry| entry.at.to_string()),
        "proposals": snapshot.state.proposals().len(),
        "seedshare_owners_needed": snapshot.state.seed_shares().needed.max(1),
        "api_versions": ["v1"],
        "note": "not attested: believe it after `contrast verify`",
    });
    let text = serde_json::to_string_pretty(&body).unwrap_or_default() + "\n";
    json_answer(StatusCode::OK, text)
}

/// The signed head of the control stream, with a proof that it extends an older one.
pub(super) async fn control(api: &Api, extends: u64) -> Result<HeadResponse, ApiError> {
    control_head(&api.actors, StreamId::Control, extends).await.map_err(|error| match error {
        Some(LogError::Beyond { .. }) => {
            let text = "the log has fewer events";
            ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::ManifestConflict, text)
        }
        Some(error) => ApiError::internal(error.to_string()),
        None => ApiError::internal("reading the log was cut off"),
    })
}

/// `GET /v1/checkpoint?extends=N`: the signed head of the control stream, with a proof that it extends
/// an older one. Whoever reads it checks it himself.
pub(super) async fn checkpoint(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let extends = match query.strip_prefix("extends=") {
        Some(number) => number.parse().map_err(|_| ApiError::malformed("extends: expected a number"))?,
        None => 0,
    };
    let head = control(&api, extends).await?;
    answer(&json!({
        "signed_head": Base64(head.signed_head),
        "consistency": head.consistency.into_iter().map(Base64).collect::<Vec<_>>(),
        "checkpoint": head.checkpoint,
    }))
}
