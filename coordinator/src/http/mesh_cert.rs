//! Mesh certificates over HTTP: the workload answers a nonce with evidence, and gets its certificate and
//! its secret sealed to an HPKE key that the same evidence vouches for.
//!
//! The evidence says that it is for this and nothing else (`ReportData::mesh_cert`): a workload makes evidence over
//! the nonce of whoever it connects to, and that must be worth nothing here. The request is signed with the key that
//! the certificate shall be for, so that nobody gets certificates for keys that he does not hold.

use std::{net::SocketAddr, sync::Arc};

use actors::{Active, IssueMeshCert};
use atls::hpke;
use attestation::{Evidence, EvidenceOid, ReportData};
use axum::{extract::Request, response::Response};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::{
    Api, Base64, answer,
    attest::in_force,
    challenge,
    error::{ApiError, Code},
    json, read,
};
use crate::{
    grpc::user_api::request_id,
    listener::{Peer, Shown},
    wiring::now,
};

/// Largest request, in bytes: evidence with its chain, as base64.
const MAX_REQUEST_BYTES: usize = 128 << 10;

#[derive(Deserialize)]
struct CertRequest {
    #[serde(default)]
    nonce: Base64,
    #[serde(default)]
    raw_attestation_doc: Base64,
    #[serde(default)]
    attestation_type: Vec<u64>,
    /// The key that the certificate shall be for, SubjectPublicKeyInfo DER.
    #[serde(default)]
    public_key: Base64,
    /// X25519, 32 bytes.
    #[serde(default)]
    hpke_public_key: Base64,
    /// Over [`wire::http::mesh_cert_request`] with the certificate's key: ECDSA (ASN.1 DER) or RSASSA-PSS, SHA-256.
    #[serde(default)]
    signature: Base64,
}

#[derive(Serialize)]
struct NonceRequired {
    version: &'static str,
    status_code: u16,
    code: Code,
    error: &'static str,
    nonce: Base64,
}

#[derive(Serialize)]
struct SealedAnswer {
    version: &'static str,
    encapsulated_key: Base64,
    ciphertext: Base64,
}

/// What is sealed.
#[derive(Serialize)]
struct Inner {
    mesh_ca: Base64,
    cert_chain: Base64,
    root_ca: Base64,
    workload_secret: Base64,
}

pub(super) async fn issue(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let active = in_force(&api, 1)?;
    let source = request.extensions().get::<SocketAddr>().copied();
    let source = source.ok_or_else(|| ApiError::internal("a request without a source"))?;
    let request: CertRequest = read(request, MAX_REQUEST_BYTES).await?;
    let nonce = <[u8; 32]>::try_from(request.nonce.0.as_slice()).ok();
    let Some(nonce) = nonce.filter(|nonce| api.challenges.is_good(&active.engine, nonce, now())) else {
        return challenge(&active);
    };
    let hpke_key = request.hpke_public_key.0;
    let kinds = EvidenceOid::ALL.into_iter();
    let oid = kinds.clone().find(|oid| oid.components() == request.attestation_type.as_slice());
    let oid = oid.ok_or_else(|| ApiError::malformed("attestation_type: no known kind of evidence"))?;

    let spki_der = request.public_key.0;
    let signed = wire::http::mesh_cert_request(&spki_der, &hpke_key, &nonce);
    keys::verify_possession(&spki_der, &signed, &request.signature.0)
        .map_err(|_| ApiError::denied("the signature is not by the certificate's key over this request"))?;
    let shown = Shown {
        expected: ReportData::mesh_cert(&spki_der, &hpke_key, &nonce),
        spki_der,
        evidence: Some(Evidence { oid, document: request.raw_attestation_doc.0 }),
        nonce: nonce.to_vec(),
    };
    let workload = match api.actors.judge(shown, Arc::clone(&active), source).await {
        Peer::Workload(workload) => workload,
        Peer::Refused(refused) => return Err(ApiError::denied(refused.reason.clone())),
        Peer::Busy(busy) => return Err(busy.into()),
        Peer::User(_) => return Err(ApiError::internal("no verdict")),
    };
    if !api.challenges.use_up(nonce, now()) {
        return challenge(&active);
    }
    let (active, spki_der) = (Arc::clone(&workload.active), workload.spki_der.clone());
    let command = IssueMeshCert {
        active: Arc::clone(&active),
        claims: workload.claims.clone(),
        evidence: workload.evidence.clone(),
        spki_der,
        certified_key: None,
        lifetime: api.actors.certificate_lifetime,
        nonce: workload.nonce.clone(),
        hpke_key: Some(hpke_key.clone()),
        request: request_id().map_err(|_| ApiError::internal("no random numbers"))?,
    };
    let replaced = |_| {
        ApiError::busy("the manifest has changed, or this replica does not know whether it has: ask again")
    };
    api.actors.check_in_force(&active).map_err(replaced)?;
    let identity = api.actors.authority.ask(command).await??;
    api.actors.check_in_force(&active).map_err(replaced)?;
    let public = active.ca.public();
    let mut inner = Inner {
        mesh_ca: Base64(public.mesh_pem.clone().into()),
        cert_chain: Base64([identity.certificate.pem.as_str(), &public.intermediate_pem].concat().into()),
        root_ca: Base64(public.root_pem.clone().into()),
        workload_secret: Base64(identity.secret.map(|secret| secret.expose().to_vec()).unwrap_or_default()),
    };
    let plain = serde_json::to_vec(&inner).map(zeroize::Zeroizing::new);
    inner.workload_secret.0.zeroize();
    let plain = plain.map_err(|error| ApiError::internal(error.to_string()))?;
    let sealed = hpke::seal(&hpke_key, wire::http::MESH_CERT, &[], &plain)
        .map_err(|error| ApiError::malformed(format!("hpke_public_key: {error}")))?;
    answer(&SealedAnswer {
        version: env!("CARGO_PKG_VERSION"),
        encapsulated_key: Base64(sealed.encapsulated_key),
        ciphertext: Base64(sealed.ciphertext),
    })
}

fn challenge(active: &Active) -> Result<Response, ApiError> {
    let nonce =
        challenge::fresh(&active.engine, now()).map_err(|error| ApiError::internal(error.to_string()))?;
    let body = NonceRequired {
        version: env!("CARGO_PKG_VERSION"),
        status_code: 401,
        code: Code::NonceRequired,
        error: "send evidence over this nonce within a minute",
        nonce: Base64(nonce.to_vec()),
    };
    let text = serde_json::to_string(&body).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(json(StatusCode::UNAUTHORIZED, text + "\n"))
}
