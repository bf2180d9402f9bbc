//! Issuing: a certificate, and maybe a secret, for a workload that was admitted.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use actors::{Active, Voucher};
use keys::WorkloadSecret;
use manifest::{KeyDigest, Timestamp};
use storage_schema::EventStore;

use super::{
    failure::Failure,
    handles::Desk,
    once,
    peer::{Presented, Workload},
};
use crate::metrics::Metrics;

/// What a workload gets. All certificates are PEM.
pub(crate) struct Issued {
    pub(crate) root_pem: String,
    pub(crate) mesh_pem: String,
    /// Its own certificate and the intermediate one.
    pub(crate) chain_pem: String,
    /// Its secret, if its manifest entry names one.
    pub(crate) secret: Option<WorkloadSecret>,
    /// Owners who vouch for the root, for a pod that demands that.
    pub(crate) vouchers: Vec<Voucher>,
    /// The signed list of mesh peers; empty: there is none.
    pub(crate) peers: Vec<u8>,
}

/// What a workload gets that has no connection of its own to be fresh on.
pub(crate) enum Answer {
    Issued(Issued),
    /// Evidence over this nonce is needed.
    Challenge([u8; 32]),
}

impl<L: EventStore> Desk<L> {
    /// Issues a certificate for the key that the workload attested, or for `certified_key` where it asked for
    /// another one.
    pub(crate) async fn issue(
        &self,
        workload: &Workload,
        certified_key: Option<Vec<u8>>,
    ) -> Result<Issued, Failure> {
        let current = self.current_for(&workload.active)?;
        let key = KeyDigest::of(certified_key.as_ref().unwrap_or(&workload.spki_der));
        self.not_evicted(workload, &key)?;
        let started = Instant::now();
        let lifetime = self.certificate_lifetime;
        let reply = self.secrets.identity(&current, workload, certified_key, lifetime).await;
        let outcome = if reply.is_ok() { "issued" } else { "failed" };
        Metrics::took(&self.metrics.issuing, outcome, started.elapsed());
        let identity = reply?;
        // It is on record by now. It is not handed out if the manifest was replaced in the meantime, or may
        // have been.
        let current = self.current_for(&workload.active)?;
        self.not_evicted(workload, &key)?;
        let (serial, policy) = (identity.certificate.serial, workload.claims.policy_hash());
        tracing::info!(%serial, %policy, platform = %workload.claims.platform(), "certificate issued");
        let public = current.ca.public();
        Ok(Issued {
            root_pem: public.root_pem.clone(),
            mesh_pem: public.mesh_pem.clone(),
            chain_pem: [identity.certificate.pem.as_str(), &public.intermediate_pem].concat(),
            secret: identity.secret,
            vouchers: self.vouchers(),
            peers: self.peers().map(|peers| peers.bytes.clone()).unwrap_or_default(),
        })
    }

    /// Owners shut out a policy, or the key of a certificate: it gets no other one.
    fn not_evicted(&self, workload: &Workload, key: &KeyDigest) -> Result<(), Failure> {
        let policy = workload.claims.policy_hash();
        match self.snapshot.borrow().state.evicted().contains(&policy, key) {
            true => Err(Failure::Denied(format!(
                "the policy {policy}, or this key, was evicted by workload owners (contrast evict): change the pod, whose \
                 policy is another one then"
            ))),
            false => Ok(()),
        }
    }

    /// Issues to a workload whose evidence is fresh because it answers a nonce of ours. What it presents is
    /// decoded only if the nonce is good; without a good one it gets a new nonce.
    pub(crate) async fn issue_for_nonce(
        &self,
        active: Arc<Active>,
        nonce: Option<[u8; 32]>,
        presented: impl FnOnce(&[u8; 32]) -> Result<Presented, Failure> + Send,
        source: SocketAddr,
        now: Timestamp,
    ) -> Result<Answer, Failure> {
        let Some(nonce) = nonce.filter(|nonce| self.challenges.is_good(&active.engine, nonce, now)) else {
            return challenge(&active, now);
        };
        let workload = self.admit(Arc::clone(&active), presented(&nonce)?, source, now).await?;
        if !self.challenges.use_up(nonce, now) {
            return challenge(&active, now);
        }
        self.issue(&workload, None).await.map(Answer::Issued)
    }
}

fn challenge(active: &Active, now: Timestamp) -> Result<Answer, Failure> {
    let nonce = once::fresh(&active.engine, now).map_err(|error| Failure::Fault(error.to_string()))?;
    Ok(Answer::Challenge(nonce))
}
