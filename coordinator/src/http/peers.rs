//! `GET /v1/mesh-peers?after=N`: whose certificates count in the mesh. Every pod asks every few seconds, so the answer is
//! empty if there is no list with a greater number. The list is signed, and its readers check it by themselves.

use std::sync::Arc;

use actors::SignedPeers;
use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse as _, Response},
};
use hyper::{StatusCode, body::Bytes};

use super::{api::Api, error::ApiError, server::json};
use crate::desk::Failure;

pub(super) const PATH: &str = "/v1/mesh-peers";

struct Shared(Arc<SignedPeers>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

pub(super) async fn peers(api: Arc<Api>, request: Request<Body>) -> Result<Response, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let after: u64 = match query.strip_prefix("after=") {
        Some(number) => number.parse().map_err(|_| ApiError::malformed("after: expected a number"))?,
        None => 0,
    };
    api.desk.in_force().map_err(Failure::from)?;
    match api.desk.peers() {
        // Every answer is the same memory, however many wait to be fetched.
        Some(peers) if peers.list.number > after => {
            Ok(json(StatusCode::OK, Bytes::from_owner(Shared(peers))))
        }
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}
