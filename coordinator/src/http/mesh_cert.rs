//! Mesh certificates over HTTP: the workload answers a nonce with evidence, and gets its certificate and
//! its secret sealed to an HPKE key that the same evidence vouches for.
//!
//! The evidence says that it is for this and nothing else (`ReportData::mesh_cert`): a workload makes evidence over
//! the nonce of whoever it connects to, and that must be worth nothing here. The request is signed with the key that
//! the certificate shall be for, so that nobody gets certificates for keys that he does not hold.

use std::{net::SocketAddr, sync::Arc};

use atls::hpke;
use attestation::{Evidence, EvidenceOid, ReportData};
use axum::{extract::Request, response::Response};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::{
    answers::{Base64, answer, read},
    api::Api,
    error::{ApiError, Code},
    server::json,
    vouch::Voucher,
};
use crate::{
    clock::now,
    desk::{Answer, Failure, Presented},
};

/// Largest request, in bytes: evidence with its chain, as base64.
pub(super) const MAX_REQUEST_BYTES: usize = 128 << 10;

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
    vouchers: Vec<Voucher>,
}

pub(super) async fn issue(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let active = api.desk.in_force_for_api(1)?;
    let source = request.extensions().get::<SocketAddr>().copied();
    let source = source.ok_or_else(|| ApiError::internal("a request without a source"))?;
    let request: CertRequest = read(request, MAX_REQUEST_BYTES).await?;
    let nonce = <[u8; 32]>::try_from(request.nonce.0.as_slice()).ok();
    let hpke_key = request.hpke_public_key.0.clone();
    let presented = |nonce: &[u8; 32]| presented(request, nonce);
    let issued = match api.desk.issue_for_nonce(active, nonce, presented, source, now()).await? {
        Answer::Issued(issued) => issued,
        Answer::Challenge(nonce) => return challenge(&nonce),
    };
    let mut inner = Inner {
        mesh_ca: Base64(issued.mesh_pem.into()),
        cert_chain: Base64(issued.chain_pem.into()),
        root_ca: Base64(issued.root_pem.into()),
        vouchers: issued.vouchers.into_iter().map(Voucher::from).collect(),
        workload_secret: Base64(issued.secret.map(|secret| secret.expose().to_vec()).unwrap_or_default()),
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

/// What the evidence must be bound to, see the top of this file.
fn presented(request: CertRequest, nonce: &[u8; 32]) -> Result<Presented, Failure> {
    let mut kinds = EvidenceOid::ALL.into_iter();
    let oid = kinds.find(|oid| oid.components() == request.attestation_type.as_slice());
    let oid = oid.ok_or_else(|| Failure::Malformed("attestation_type: no known kind of evidence".into()))?;
    let (spki_der, hpke_key) = (request.public_key.0, request.hpke_public_key.0);
    let signed = wire::http::mesh_cert_request(&spki_der, &hpke_key, nonce);
    keys::verify_possession(&spki_der, &signed, &request.signature.0).map_err(|_| {
        Failure::Denied("the signature is not by the certificate's key over this request".into())
    })?;
    Ok(Presented {
        evidence: Some(Evidence { oid, document: request.raw_attestation_doc.0 }),
        expected: ReportData::mesh_cert(&spki_der, &hpke_key, nonce),
        spki_der,
        nonce: nonce.to_vec(),
        hpke_key: Some(hpke_key),
    })
}

fn challenge(nonce: &[u8; 32]) -> Result<Response, ApiError> {
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
