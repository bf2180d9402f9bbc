//! The two actors that give secrets away. Only the desk can ask them, and only with a token which says that
//! this replica's view of the manifest is recent enough: see [`super::standing`].

use std::{sync::Arc, time::Duration};

use actors::{
    Authority, HandOver, HandedOver, Handover, IssueMeshCert, IssueServiceCert, IssuedIdentity, Mailbox,
};
use keys::IssuedCert;
use storage_schema::{EventStore, Replicated};

use super::{
    failure::Failure,
    peer::Workload,
    request::request_id,
    standing::{Confirmed, Current},
};
use crate::clock::SystemClock;

/// The way to the authority and to the actor that hands secrets to peers.
pub(crate) struct Secrets<L: EventStore> {
    authority: Mailbox<Authority<Replicated<L>, SystemClock>>,
    handing_over: Mailbox<Handover<Replicated<L>, SystemClock>>,
}

impl<L: EventStore> Clone for Secrets<L> {
    fn clone(&self) -> Self {
        Self { authority: self.authority.clone(), handing_over: self.handing_over.clone() }
    }
}

impl<L: EventStore> Secrets<L> {
    pub(crate) fn new(
        authority: Mailbox<Authority<Replicated<L>, SystemClock>>,
        handing_over: Mailbox<Handover<Replicated<L>, SystemClock>>,
    ) -> Self {
        Self { authority, handing_over }
    }

    /// Certificate and secret of a workload. They are on record when they are here, but must not leave before
    /// the caller has looked at the standing again.
    pub(super) async fn identity(
        &self,
        current: &Current,
        workload: &Workload,
        certified_key: Option<Vec<u8>>,
        lifetime: Duration,
    ) -> Result<IssuedIdentity, Failure> {
        let command = IssueMeshCert {
            active: Arc::clone(current),
            claims: workload.claims.clone(),
            evidence: workload.evidence.clone(),
            nonce: workload.nonce.clone(),
            spki_der: workload.spki_der.clone(),
            certified_key,
            hpke_key: workload.hpke_key.clone(),
            lifetime,
            request: request_id()?,
        };
        Ok(self.authority.ask(command).await??)
    }

    /// A certificate for a service of this Coordinator itself.
    pub(super) async fn service_certificate(
        &self,
        current: &Current,
        service: &'static str,
        sans: Vec<String>,
        spki_der: Vec<u8>,
        lifetime: Duration,
    ) -> Result<IssuedCert, Failure> {
        let active = Arc::clone(current);
        let command = IssueServiceCert { active, service, sans, spki_der, lifetime, request: request_id()? };
        Ok(self.authority.ask(command).await??)
    }

    /// The secrets of a Coordinator, for another one.
    pub(super) async fn hand_over(
        &self,
        confirmed: &Confirmed,
        workload: &Workload,
    ) -> Result<HandedOver, Failure> {
        let (active, claims) = (Arc::clone(confirmed), workload.claims.clone());
        Ok(self.handing_over.ask(HandOver { active, claims, request: request_id()? }).await??)
    }

    /// How many questions wait at each of the two.
    pub(crate) fn under_way(&self) -> [(&'static str, usize); 2] {
        [("authority", self.authority.under_way()), ("recovery", self.handing_over.under_way())]
    }
}
