//! What the handlers of the HTTP API share.

use std::sync::Arc;

use atls::hpke::HpkeKey;
use attestation::Issuer;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::body::Bytes;
use tokio::sync::Semaphore;

use crate::{budget::Budget, desk::Desk};

/// Evidence that is made at once for this API; hardware takes its time, and everybody may ask.
const MAX_ATTESTING: usize = 32;

/// What the handlers share.
pub(crate) struct Api {
    pub(super) desk: Desk,
    pub(super) budget: Budget,
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) hpke: HpkeKey,
    /// Body of `/capabilities`: stable for the life of the process, because evidence covers its digest.
    pub(super) capabilities: Bytes,
    pub(super) attesting: Semaphore,
}

impl Api {
    pub(crate) fn new(desk: Desk, issuer: Arc<dyn Issuer>, budget: Budget) -> anyhow::Result<Arc<Self>> {
        let hpke = HpkeKey::generate()?;
        let capabilities = Bytes::from(format!(
            "{{\"apiVersions\":[\"v1\"],\"hpkePublicKey\":\"{}\"}}\n",
            BASE64_STANDARD.encode(hpke.public())
        ));
        let attesting = Semaphore::new(MAX_ATTESTING);
        Ok(Arc::new(Self { desk, budget, issuer, hpke, capabilities, attesting }))
    }
}
