//! Recovery through a proxy: the seed is sealed to the HPKE key that `/v1/attest-key` vouches for, and
//! the seedshare owner signs inside. What an owner signs names the sealed message, so that a signature
//! serves no other.

use std::sync::Arc;

use actors::{Acceptance, RecoverReply};
use atls::hpke::Sealed;
use axum::{extract::Request, response::Response};
use keys::Salt;
use manifest::KeyDigest;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    answers::{Base64, answer, read},
    api::Api,
    error::ApiError,
};
use crate::desk::{Failure, Recovery};

/// Largest request, in bytes: RSA-8192 twice, and room.
pub(super) const MAX_REQUEST_BYTES: usize = 16 << 10;

#[derive(Deserialize)]
struct RecoverRequest {
    encapsulated_key: Base64,
    ciphertext: Base64,
}

/// What is sealed. It has no `Debug`: it is the seed.
#[derive(Deserialize)]
struct Inner {
    seed: Base64,
    salt: Base64,
    /// The owner's key, PKCS#1 DER.
    public_key: Base64,
    /// RSASSA-PSS with SHA-256 over [`wire::http::recovery_message`].
    signature: Base64,
    /// The last checkpoint that the owner verified, a signed note; empty: none.
    checkpoint: String,
    /// The owner accepts the history that is there all the same: RSASSA-PSS with SHA-256 over
    /// `keys::older_head_acceptance`.
    #[serde(default)]
    accept_older_head: Option<Base64>,
}

#[derive(Serialize)]
struct Recovered {
    version: &'static str,
    recovered: bool,
    shares_received: usize,
    shares_needed: usize,
}

pub(super) async fn recover(api: Arc<Api>, request: Request) -> Result<Response, ApiError> {
    let RecoverRequest { encapsulated_key, ciphertext } = read(request, MAX_REQUEST_BYTES).await?;
    let sealed = Sealed { encapsulated_key: encapsulated_key.0, ciphertext: ciphertext.0 };
    let opened = api.hpke.open(&sealed, wire::http::RECOVER, &[]);
    let opened =
        opened.map_err(|error| ApiError::malformed(format!("{error}; fetch /v1/attest-key again")))?;
    // The parser's words could quote the seed.
    let inner: Inner = serde_json::from_slice(&opened)
        .map_err(|_| ApiError::malformed("the sealed message is not the expected JSON"))?;
    let seed = Zeroizing::new(inner.seed.0);
    let salt = Salt::from_bytes(&inner.salt.0).map_err(|error| ApiError::malformed(error.to_string()))?;

    let message = Zeroizing::new(wire::http::recovery_message(
        api.hpke.public(),
        &sealed.encapsulated_key,
        &seed,
        salt.as_bytes(),
        &inner.checkpoint,
    ));
    keys::verify_rsa_pss(&inner.public_key.0, &message, &inner.signature.0)
        .map_err(|_| Failure::Denied("the signature is not by the given key over this message".into()))?;
    let recovery = Recovery {
        seed,
        salt,
        caller: Some(KeyDigest::of(&inner.public_key.0)),
        checkpoint: inner.checkpoint,
        acceptance: (inner.accept_older_head)
            .map(|signature| Acceptance { public_key: inner.public_key.0.clone(), signature: signature.0 }),
        message: Some(sealed.encapsulated_key),
    };
    let reply = api.desk.recover(recovery).await?;
    let (received, needed) = match reply {
        RecoverReply::Recovered(_) => (0, 0),
        RecoverReply::Waiting { received, needed } => (received, needed),
    };
    answer(&Recovered {
        version: env!("CARGO_PKG_VERSION"),
        recovered: needed == 0,
        shares_received: received,
        shares_needed: needed,
    })
}
