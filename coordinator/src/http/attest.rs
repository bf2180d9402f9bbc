//! Attestation in the payload (docs/spec/control-plane.md, section 9.2).

use std::sync::Arc;

use actors::Active;
use attestation::{Evidence, ReportData, Standing};
use axum::{extract::Request, response::Response};
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use storage_schema::StreamId;
use wire::http::OlderHead;

use super::{
    answers::{Base64, answer, read, source_of},
    api::Api,
    error::ApiError,
    vouch::Voucher,
};
use crate::{budget::Right, desk::Failure};

/// Largest request, in bytes.
pub(super) const MAX_REQUEST_BYTES: usize = 1024;

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
    /// Ours: owners who vouch for the root; each verifies itself.
    vouchers: Vec<Voucher>,
}

#[derive(Deserialize)]
struct StandingRequest {
    nonce: Base64,
    /// Number of events that the caller knows already; 0 for none.
    #[serde(default)]
    extends: u64,
}

/// All of it is under the evidence, but for the last two, which verify themselves against the head.
#[derive(Serialize)]
struct AttestedStanding {
    version: &'static str,
    raw_attestation_doc: Base64,
    attestation_type: &'static [u64],
    /// Exact body of `/capabilities`, which holds the key.
    capabilities: Base64,
    state: &'static str,
    /// Of the control stream; empty: it has no event.
    signed_head: Base64,
    /// Digest of the seed shares document of this deployment; empty: there is none.
    seed_shares: Base64,
    /// Histories that were given up after a disaster, oldest first.
    older_heads: Vec<GivenUp>,
    /// Proof that the head extends what the caller knows.
    consistency: Vec<Base64>,
    /// The head as a C2SP checkpoint; empty while the seed is away.
    checkpoint: String,
}

/// A history that was given up, and who accepted that.
#[derive(Serialize)]
struct GivenUp {
    /// PKCS#1 DER.
    public_key: Base64,
    /// Over `keys::older_head_acceptance`, RSASSA-PSS with SHA-256.
    signature: Base64,
    given_up_size: u64,
    given_up_root: Base64,
    accepted_size: u64,
    accepted_root: Base64,
    /// Milliseconds since 1970.
    at: u64,
}

fn checked(Base64(nonce): Base64) -> Result<Vec<u8>, ApiError> {
    if nonce.len() != 32 {
        return Err(ApiError::malformed(format!("nonce: expected 32 bytes, got {}", nonce.len())));
    }
    Ok(nonce)
}

async fn evidence(api: &Api, data: ReportData) -> Result<Evidence, ApiError> {
    let turn = api.attesting.try_acquire();
    let _turn = turn.map_err(|_| Failure::Busy("too many attest at once; try again".into()))?;
    let issuer = Arc::clone(&api.issuer);
    let evidence = tokio::task::spawn_blocking(move || issuer.issue(&data)).await;
    let evidence = evidence.map_err(|error| ApiError::internal(error.to_string()))?;
    evidence.map_err(|error| ApiError::internal(error.to_string()))
}

pub(super) async fn attest_legacy(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let active = api.desk.in_force_for_api(0)?;
    attest(&api, &active, request, None).await
}

pub(super) async fn attest_v1(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let active = api.desk.in_force_for_api(1)?;
    attest(&api, &active, request, Some(api.capabilities.clone())).await
}

async fn attest(
    api: &Api,
    active: &Active,
    request: Request,
    capabilities: Option<Bytes>,
) -> Result<Response, ApiError> {
    let right = source_of(&request).map(Right::Stranger)?;
    // The whole history for a question of a few bytes: what that takes counts as a request of its size.
    let held = api.budget.reserve_answer(right, active.history_bytes())?;
    let AttestRequest { nonce } = read(request, MAX_REQUEST_BYTES).await?;
    let nonce = checked(nonce)?;
    let public = active.ca.public();
    let data = ReportData::history(
        &nonce,
        active.transition.as_bytes(),
        public.root_pem.as_bytes(),
        public.mesh_pem.as_bytes(),
        capabilities.as_deref(),
    );
    let Evidence { oid, document } = evidence(api, data).await?;
    let mut answer = answer(&Attested {
        version: env!("CARGO_PKG_VERSION"),
        raw_attestation_doc: Base64(document),
        attestation_type: oid.components(),
        manifests: active.manifests.iter().map(|bytes| Base64(bytes.to_vec())).collect(),
        policies: active.policies.iter().map(|bytes| Base64(bytes.to_vec())).collect(),
        root_ca: Base64(public.root_pem.clone().into()),
        mesh_ca: Base64(public.mesh_pem.clone().into()),
        vouchers: api.desk.vouchers().into_iter().map(Voucher::from).collect(),
    })?;
    answer.extensions_mut().insert(held);
    Ok(answer)
}

/// Evidence for the HPKE key and for how this Coordinator stands, before there is a manifest and in recovery, too.
/// Ours: what a client believes of a Coordinator behind a proxy is under this evidence, and fresh by its nonce.
pub(super) async fn attest_key(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let StandingRequest { nonce, extends } = read(request, MAX_REQUEST_BYTES).await?;
    let nonce = checked(nonce)?;
    let head = api.desk.head(StreamId::Control, extends).await?;
    let state = api.desk.readiness().word();
    let seed_shares = api.desk.snapshot.borrow().state.seed_shares().document.clone();
    let given_up = api.desk.older_heads();
    let covered: Vec<OlderHead<'_>> = (given_up.iter())
        .map(|head| OlderHead {
            public_key: &head.public_key,
            signature: &head.signature,
            given_up: (head.given_up.size, &head.given_up.root),
            accepted: (head.accepted.size, &head.accepted.root),
            at: head.at.as_millis(),
        })
        .collect();
    let older_heads = wire::http::older_heads_text(&covered);
    let data = ReportData::standing(&Standing {
        nonce: &nonce,
        capabilities: &api.capabilities,
        state,
        signed_head: &head.signed,
        seed_shares: &seed_shares,
        older_heads: &older_heads,
    });
    let Evidence { oid, document } = evidence(&api, data).await?;
    answer(&AttestedStanding {
        version: env!("CARGO_PKG_VERSION"),
        raw_attestation_doc: Base64(document),
        attestation_type: oid.components(),
        capabilities: Base64(api.capabilities.to_vec()),
        state,
        signed_head: Base64(head.signed),
        seed_shares: Base64(seed_shares),
        older_heads: (given_up.into_iter())
            .map(|head| GivenUp {
                public_key: Base64(head.public_key),
                signature: Base64(head.signature),
                given_up_size: head.given_up.size,
                given_up_root: Base64(head.given_up.root.to_vec()),
                accepted_size: head.accepted.size,
                accepted_root: Base64(head.accepted.root.to_vec()),
                at: head.at.as_millis(),
            })
            .collect(),
        consistency: head.consistency.iter().map(|node| Base64(node.to_vec())).collect(),
        checkpoint: head.checkpoint,
    })
}
