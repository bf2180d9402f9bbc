//! A workload owner's word for this deployment's root, for pods whose policy demands it. The signature is all the
//! authority that it needs.

use std::sync::Arc;

use axum::{extract::Request, response::Response};
use serde::{Deserialize, Serialize};

use super::{
    answers::{Base64, answer, read},
    api::Api,
    error::ApiError,
};

/// Largest request, in bytes: a key and a signature.
pub(super) const MAX_REQUEST_BYTES: usize = 4 << 10;

/// In requests, and in answers that show who vouches.
#[derive(Deserialize, Serialize)]
pub(super) struct Voucher {
    /// SubjectPublicKeyInfo DER.
    public_key: Base64,
    /// ASN.1 DER.
    signature: Base64,
}

impl From<actors::Voucher> for Voucher {
    fn from(voucher: actors::Voucher) -> Self {
        Self { public_key: Base64(voucher.public_key), signature: Base64(voucher.signature) }
    }
}

#[derive(Serialize)]
struct Vouched {
    version: &'static str,
}

pub(super) async fn vouch(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let Voucher { public_key, signature } = read(request, MAX_REQUEST_BYTES).await?;
    api.desk.vouch(public_key.0, signature.0).await?;
    answer(&Vouched { version: env!("CARGO_PKG_VERSION") })
}
