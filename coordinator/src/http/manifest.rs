//! Setting a manifest (docs/spec/control-plane.md, section 9.5). Updates are authorised by signatures alone:
//! there is no client key here that would prove anything.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use serde::{Deserialize, Serialize};

use super::{
    answers::{Base64, answer, at_most, read},
    api::Api,
    error::ApiError,
};
use crate::{
    budget::MOST_BYTES,
    desk::{Failure, NewManifest},
};

/// Largest request, in bytes.
pub(super) const MAX_REQUEST_BYTES: usize = MOST_BYTES;

#[derive(Deserialize)]
struct SetRequest {
    manifest: Base64,
    #[serde(deserialize_with = "at_most::<_, _, 10_000>")]
    policies: Option<Vec<Base64>>,
    #[serde(default, deserialize_with = "at_most::<_, _, 255>")]
    signatures: Option<Vec<Base64>>,
}

#[derive(Serialize)]
struct SetAnswer {
    version: &'static str,
    root_ca: Base64,
    mesh_ca: Base64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed_shares_doc: Option<SeedSharesDoc>,
}

#[derive(Serialize)]
struct SeedSharesDoc {
    seed_shares: Vec<SeedShare>,
    salt: Base64,
}

#[derive(Serialize)]
struct SeedShare {
    public_key: String,
    encrypted_seed: Base64,
}

pub(super) async fn set(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    // Without a manifest in force there is no minimal version either.
    match api.desk.in_force_for_api(1) {
        Ok(_) | Err(Failure::NotInForce(_)) => {}
        Err(too_old) => return Err(too_old.into()),
    }
    let SetRequest { manifest, policies, signatures } = read(request, MAX_REQUEST_BYTES).await?;
    let new = NewManifest {
        manifest: manifest.0,
        policies: policies.unwrap_or_default().into_iter().map(|policy| policy.0).collect(),
        previous: None,
        caller: None,
        signatures: signatures.unwrap_or_default().into_iter().map(|signature| signature.0).collect(),
    };
    let reply = api.desk.set_manifest(new).await?;
    let share = |share: actors::SeedShare| SeedShare {
        public_key: share.owner.to_string(),
        encrypted_seed: Base64(share.ciphertext),
    };
    let document = |shares: actors::SeedShares| SeedSharesDoc {
        seed_shares: shares.shares.into_iter().map(share).collect(),
        salt: Base64(shares.salt.as_bytes().to_vec()),
    };
    answer(&SetAnswer {
        version: env!("CARGO_PKG_VERSION"),
        root_ca: Base64(reply.root_pem.into()),
        mesh_ca: Base64(reply.mesh_pem.into()),
        seed_shares_doc: reply.shares.map(document),
    })
}
