//! The user API, whichever way leads to it. Nothing here depends on the way but how a request is sent and what has to
//! be checked of the answer because of that.

use continuity::Voucher;
use wire::{
    history::HeadResponse,
    user::{RecoverResponse, SetManifestResponse},
};

use crate::{
    attested::Attested,
    error::CallError,
    proxied::{Proxied, Standing},
    request::{NewManifest, SeedShareForm, ShownHistory},
};

/// A Coordinator of the manifest.
pub enum Session {
    /// Through attested TLS.
    Grpc(Attested),
    /// Through a proxy that ends TLS.
    Http(Box<Proxied>),
}

impl Session {
    /// The signed head of the control stream, with a proof that it extends `extends` events. `None`: it has fewer.
    pub async fn head(&self, extends: u64) -> Result<Option<HeadResponse>, CallError> {
        match self {
            Self::Grpc(attested) => attested.head(extends).await,
            Self::Http(proxied) => Ok(proxied.standing(extends).await?.map(|standing| standing.head)),
        }
    }

    /// The history. `None`: no manifest was ever set.
    pub async fn history(&self) -> Result<Option<ShownHistory>, CallError> {
        match self {
            Self::Grpc(attested) => match self.is_empty().await? {
                true => Ok(None),
                false => attested.history().await.map(Some),
            },
            Self::Http(proxied) => {
                let Standing { head, older_heads, .. } = proxied.any_standing().await?;
                if head.signed_head.is_empty() {
                    return Ok(None);
                }
                Ok(Some(ShownHistory { older_heads, ..proxied.shown_history().await? }))
            }
        }
    }

    /// Whether no manifest was ever set.
    async fn is_empty(&self) -> Result<bool, CallError> {
        let head = self.head(0).await?;
        Ok(head.is_none_or(|head| head.signed_head.is_empty()))
    }

    /// Sets a manifest, authorised by the key that the session was opened with, and by signatures.
    pub async fn set(&self, new: NewManifest<'_>) -> Result<SetManifestResponse, CallError> {
        match self {
            Self::Grpc(attested) => attested.set(new).await,
            Self::Http(proxied) => {
                let is_first = self.is_empty().await?;
                proxied.set(new, is_first).await
            }
        }
    }

    /// Gives a restarted Coordinator its seed back.
    pub async fn recover(&self, form: SeedShareForm<'_>) -> Result<RecoverResponse, CallError> {
        match self {
            Self::Grpc(attested) => attested.recover(form).await,
            Self::Http(proxied) => proxied.recover(form).await,
        }
    }

    /// Hands in an owner's word for the deployment.
    pub async fn vouch(&self, voucher: Voucher) -> Result<(), CallError> {
        match self {
            Self::Grpc(attested) => attested.vouch(voucher).await,
            Self::Http(proxied) => proxied.vouch(voucher).await,
        }
    }
}
