//! What everybody may see, in a browser or with curl, and the head of the log for a client that remembers one.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use hyper::StatusCode;
use serde_json::json;
use storage_schema::StreamId;

use super::{
    answers::{Base64, answer},
    api::Api,
    error::ApiError,
    server::json as json_answer,
};
use crate::desk::Readiness;

/// `GET /v1/status`.
pub(super) fn status(api: &Api) -> Response {
    let snapshot = api.desk.snapshot.borrow().clone();
    let readiness = api.desk.readiness();
    let hint = match readiness {
        Readiness::Stale => "the event store has not answered for too long: contrast status",
        Readiness::NoManifest => "set one: contrast set",
        Readiness::NeedsRecovery => "a seedshare owner must: contrast recover",
        Readiness::NoWrites => "`contrast status` and the log of the Coordinator say why",
        Readiness::Ready => "",
    };
    let latest = snapshot.state.latest();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "status": readiness.word(),
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

/// `GET /v1/checkpoint?extends=N`: the signed head of the control stream, with a proof that it extends
/// an older one. Its readers check it by themselves.
pub(super) async fn checkpoint(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let extends = match query.strip_prefix("extends=") {
        Some(number) => number.parse().map_err(|_| ApiError::malformed("extends: expected a number"))?,
        None => 0,
    };
    let head = api.desk.head(StreamId::Control, extends).await?;
    answer(&json!({
        "signed_head": Base64(head.signed),
        "consistency": head.consistency.iter().map(|node| Base64(node.to_vec())).collect::<Vec<_>>(),
        "checkpoint": head.checkpoint,
    }))
}
