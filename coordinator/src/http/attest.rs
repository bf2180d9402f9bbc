//! Attestation in the payload (spec control-plane.md 9.2).

use std::sync::Arc;

use actors::{Active, Phase};
use attestation::{Evidence, ReportData};
use axum::{extract::Request, response::Response};
use hyper::{StatusCode, body::Bytes};
use serde::{Deserialize, Serialize};

use super::{
    Api, Base64, answer,
    error::{ApiError, Code},
    read,
};

/// Largest request, in bytes.
const MAX_REQUEST_BYTES: usize = 1024;

#[derive(Deserialize)]
struct AttestRequest {
    nonce: Base64,
}

#[derive(Serialize)]
struct Attested {
    version: &'static str,
    raw_attestation_doc: Base64,
    attestation_type: &'static [u64],
    manifests: Vec<Base64>,
    policies: Vec<Base64>,
    root_ca: Base64,
    mesh_ca: Base64,
}

#[derive(Serialize)]
struct AttestedKey {
    version: &'static str,
    raw_attestation_doc: Base64,
    attestation_type: &'static [u64],
    /// Exact body of `/capabilities`, which holds the key.
    capabilities: Base64,
}

/// What is in force, if the API of this version may serve it.
pub(super) fn in_force(api: &Api, version: u16) -> Result<Arc<Active>, ApiError> {
    let phase = api.actors.snapshot.borrow().phase.clone();
    let active = match phase {
        Phase::Active(active) => active,
        Phase::Uninitialised => return Err(ApiError::no_manifest()),
        Phase::NeedsRecovery => return Err(ApiError::needs_recovery()),
    };
    gate(&active, version)?;
    Ok(active)
}

/// Spec control-plane.md 9.6.
pub(super) fn gate(active: &Active, version: u16) -> Result<(), ApiError> {
    let minimum = active.manifest.minimum_api();
    if version >= minimum {
        return Ok(());
    }
    let text =
        format!("the manifest demands version v{minimum} of this API or a newer one, this is v{version}");
    Err(ApiError::new(StatusCode::FORBIDDEN, Code::ApiVersionTooOld, text))
}

async fn nonce(request: Request) -> Result<Vec<u8>, ApiError> {
    let AttestRequest { nonce: Base64(nonce) } = read(request, MAX_REQUEST_BYTES).await?;
    if nonce.len() != 32 {
        return Err(ApiError::malformed(format!("nonce: expected 32 bytes, got {}", nonce.len())));
    }
    Ok(nonce)
}

fn report_data(parts: &[&[u8]]) -> ReportData {
    let mut data = [0; 64];
    data[..32].copy_from_slice(&keys::sha256(parts));
    ReportData::from_bytes(data)
}

async fn evidence(api: &Api, data: ReportData) -> Result<Evidence, ApiError> {
    let _turn =
        api.attesting.try_acquire().map_err(|_| ApiError::busy("too many attest at once; try again"))?;
    let issuer = Arc::clone(&api.issuer);
    let evidence = tokio::task::spawn_blocking(move || issuer.issue(&data)).await;
    let evidence = evidence.map_err(|error| ApiError::internal(error.to_string()))?;
    evidence.map_err(|error| ApiError::internal(error.to_string()))
}

pub(super) async fn attest_legacy(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let active = in_force(&api, 0)?;
    attest(&api, &active, request, None).await
}

pub(super) async fn attest_v1(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let active = in_force(&api, 1)?;
    attest(&api, &active, request, Some(api.capabilities.clone())).await
}

async fn attest(
    api: &Api,
    active: &Active,
    request: Request,
    capabilities: Option<Bytes>,
) -> Result<Response, ApiError> {
    let nonce = nonce(request).await?;
    let public = active.ca.public();
    let digests = [public.root_pem.as_bytes(), public.mesh_pem.as_bytes()].map(|pem| keys::sha256(&[pem]));
    let of_capabilities = capabilities.map(|body| keys::sha256(&[&body]));
    let data = report_data(&[
        &nonce,
        active.transition.as_bytes(),
        &digests[0],
        &digests[1],
        of_capabilities.as_ref().map_or(&[], |digest| digest.as_slice()),
    ]);
    let Evidence { oid, document } = evidence(api, data).await?;
    answer(&Attested {
        version: env!("CARGO_PKG_VERSION"),
        raw_attestation_doc: Base64(document),
        attestation_type: oid.components(),
        manifests: active.manifests.iter().map(|bytes| Base64(bytes.to_vec())).collect(),
        policies: active.policies.iter().map(|bytes| Base64(bytes.to_vec())).collect(),
        root_ca: Base64(public.root_pem.clone().into()),
        mesh_ca: Base64(public.mesh_pem.clone().into()),
    })
}

/// Evidence for the HPKE key alone, before there is a manifest and in recovery, too. Ours.
pub(super) async fn attest_key(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let nonce = nonce(request).await?;
    let data = report_data(&[wire::http::ATTEST_KEY, &nonce, &keys::sha256(&[&api.capabilities])]);
    let Evidence { oid, document } = evidence(&api, data).await?;
    answer(&AttestedKey {
        version: env!("CARGO_PKG_VERSION"),
        raw_attestation_doc: Base64(document),
        attestation_type: oid.components(),
        capabilities: Base64(api.capabilities.to_vec()),
    })
}
