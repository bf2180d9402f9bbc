//! The HTTP API: what the gRPC API does, for clients behind proxies that end TLS on the way
//! (spec control-plane.md section 9). Nothing here relies on the connection: freshness comes from nonces
//! in evidence, authority from signatures, secrecy from HPKE to a key that evidence vouches for.

mod attest;
mod challenge;
mod error;
mod manifest;
mod mesh_cert;
mod recover;
mod status;

use std::sync::{Arc, Mutex};

use atls::hpke::HpkeKey;
use attestation::Issuer;
use axum::{
    Router,
    extract::Request,
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get, post},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::{
    StatusCode,
    body::Bytes,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use self::{
    challenge::Challenges,
    error::{ApiError, Code},
};
use crate::{web::body, wiring::Actors};

/// Evidence that is made at once for this API; hardware takes its time, and everybody may ask.
const MAX_ATTESTING: usize = 32;

/// What the handlers share.
pub(crate) struct Api {
    actors: Actors,
    issuer: Arc<dyn Issuer>,
    hpke: HpkeKey,
    /// Body of `/capabilities`: stable for the life of the process, because evidence covers its digest.
    capabilities: Bytes,
    challenges: Challenges,
    /// Sealed messages with parts of the seed that were accepted: none is of use twice.
    recoveries: Mutex<Vec<Vec<u8>>>,
    attesting: Semaphore,
}

impl Api {
    pub(crate) fn new(actors: Actors, issuer: Arc<dyn Issuer>) -> anyhow::Result<Arc<Self>> {
        let hpke = HpkeKey::generate()?;
        let capabilities = Bytes::from(format!(
            "{{\"apiVersions\":[\"v1\"],\"hpkePublicKey\":\"{}\"}}\n",
            BASE64_STANDARD.encode(hpke.public())
        ));
        let challenges = Challenges::default();
        let attesting = Semaphore::new(MAX_ATTESTING);
        let recoveries = Mutex::default();
        Ok(Arc::new(Self { actors, issuer, hpke, capabilities, challenges, recoveries, attesting }))
    }

    pub(crate) fn routes(self: &Arc<Self>) -> Router {
        let capabilities = self.capabilities.clone();
        let (key_capabilities, status, checkpoint) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        Router::new()
            .route("/attest", self.post(attest::attest_legacy))
            .route("/verify", self.post(attest::attest_legacy))
            .route("/capabilities", get(async move || json(StatusCode::OK, capabilities)))
            .route("/v1/attest", self.post(attest::attest_v1))
            .route("/v1/attest-key", key_capabilities.post(attest::attest_key))
            .route("/v1/manifest", self.post(manifest::set))
            .route("/v1/recover", self.post(recover::recover))
            .route("/v1/mesh-cert", self.post(mesh_cert::issue))
            .route("/v1/status", get(async move || status::status(&status)))
            .route(
                "/v1/checkpoint",
                get(async move |request: Request| match status::checkpoint(checkpoint, request).await {
                    Ok(answer) => answer,
                    Err(error) => error.into_response(),
                }),
            )
            .fallback(async || {
                ApiError::new(StatusCode::NOT_FOUND, Code::InvalidArgument, "no such route").into_response()
            })
    }

    fn post<F>(self: &Arc<Self>, handler: fn(Arc<Self>, Request) -> F) -> MethodRouter
    where
        F: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        let api = Arc::clone(self);
        post(async move |request: Request| match handler(api, request).await {
            Ok(answer) => answer,
            Err(error) => error.into_response(),
        })
    }
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

/// Bytes that are standard base64 with padding in JSON.
#[derive(Clone, Debug, Default, PartialEq)]
struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?); // it may be a seed
        let decoded = BASE64_STANDARD.decode(text.as_bytes()).map(Self);
        decoded.map_err(|_| serde::de::Error::custom("expected standard base64 with padding"))
    }
}

/// A JSON answer.
fn json(status: StatusCode, body: impl Into<axum::body::Body>) -> Response {
    (status, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body.into()).into_response()
}

/// A JSON answer with one trailing newline.
fn answer(value: &impl Serialize) -> Result<Response, ApiError> {
    let mut body = serde_json::to_vec(value).map_err(|error| ApiError::internal(error.to_string()))?;
    body.push(b'\n');
    Ok(json(StatusCode::OK, body))
}

/// Reads a JSON request of at most `most` bytes.
async fn read<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, ApiError> {
    let media_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type =
        media_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match media_type.as_deref() {
        Some("application/json") => {}
        Some(other) if other.split('/').filter(|part| !part.is_empty()).count() == 2 => {
            let text = "Content-Type: expected application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, text));
        }
        _ => {
            return Err(ApiError::malformed("Content-Type: missing or malformed, expected application/json"));
        }
    }
    let bytes = body(request, most).await.map_err(|status| {
        let text = format!("the request is larger than {most} bytes, or was broken off");
        ApiError::new(status, Code::InvalidArgument, text)
    })?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::malformed(format!("the body: {error}")))
}
