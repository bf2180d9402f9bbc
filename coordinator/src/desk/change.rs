//! Changing the manifest: at once, or by a proposal that several owners sign. Whether a change may be made is
//! decided by the ledger; here requests of all doors get one shape and one bound.

use std::sync::Arc;

use actors::{
    ApproveProposal, Evict, OlderHead, Phase, Proposal, ProposalReply, ProposeManifest, SetManifest,
    SetManifestError, SetManifestReply, SignedPeers, Vouch, Voucher, WithdrawProposal,
};
use manifest::{KeyDigest, PolicyHash, Timestamp, TransitionHash};
use storage_schema::{BlobHash, EventStore};

use super::{
    failure::Failure,
    handles::Desk,
    request::{parse, request_id},
};

/// A manifest that somebody wants to be in force.
pub(crate) struct NewManifest {
    pub(crate) manifest: Vec<u8>,
    pub(crate) policies: Vec<Vec<u8>>,
    /// What the sender believes is in force; `None` if it does not care.
    pub(crate) previous: Option<TransitionHash>,
    /// The key of the sender's connection, where there is one that proves something.
    pub(crate) caller: Option<KeyDigest>,
    /// Detached signatures over the new transition.
    pub(crate) signatures: Vec<Vec<u8>>,
}

/// Proposals that wait for signatures.
pub(crate) struct WaitingProposals {
    pub(crate) proposals: Vec<WaitingProposal>,
    /// How many owners must sign.
    pub(crate) needed: usize,
}

/// One proposal, with its documents.
pub(crate) struct WaitingProposal {
    pub(crate) transition: TransitionHash,
    pub(crate) manifest: Vec<u8>,
    pub(crate) policies: Vec<Vec<u8>>,
    pub(crate) signed: Vec<KeyDigest>,
    pub(crate) at: Timestamp,
}

impl<L: EventStore> Desk<L> {
    pub(crate) async fn set_manifest(&self, new: NewManifest) -> Result<SetManifestReply, Failure> {
        let NewManifest { manifest, policies, previous, caller, signatures } = new;
        self.check_number(signatures.len())?;
        let command = SetManifest {
            manifest: parse(&manifest)?,
            policies,
            previous,
            caller,
            signatures,
            request: request_id()?,
        };
        Ok(self.ledger.ask(command).await??)
    }

    /// Anybody can send signatures, and each costs time to verify: no more than are needed.
    fn check_number(&self, found: usize) -> Result<(), Failure> {
        let most = match &self.snapshot.borrow().phase {
            Phase::Active(active) => active.manifest.workload_owners_needed().max(1),
            Phase::Uninitialised => 1,
            Phase::NeedsRecovery => return Ok(()), // the ledger refuses the change, and verifies none of them
        };
        if found > most { Err(SetManifestError::TooManySignatures { most, found }.into()) } else { Ok(()) }
    }

    pub(crate) async fn propose(
        &self,
        manifest: &[u8],
        policies: Vec<Vec<u8>>,
        signature: Vec<u8>,
    ) -> Result<ProposalReply, Failure> {
        let manifest = parse(manifest)?;
        let command = ProposeManifest { manifest, policies, signature, request: request_id()? };
        Ok(self.ledger.ask(command).await??)
    }

    pub(crate) async fn approve(
        &self,
        transition: TransitionHash,
        signature: Vec<u8>,
    ) -> Result<ProposalReply, Failure> {
        Ok(self.ledger.ask(ApproveProposal { transition, signature, request: request_id()? }).await??)
    }

    /// Takes an owner's word for this deployment's root.
    pub(crate) async fn vouch(&self, public_key: Vec<u8>, signature: Vec<u8>) -> Result<(), Failure> {
        Ok(self.ledger.ask(Vouch { public_key, signature, request: request_id()? }).await??)
    }

    /// Shuts policies and certificates' keys out of the mesh.
    pub(crate) async fn evict(
        &self,
        policies: Vec<PolicyHash>,
        keys: Vec<KeyDigest>,
        signatures: Vec<Vec<u8>>,
    ) -> Result<TransitionHash, Failure> {
        self.check_number(signatures.len())?;
        Ok(self.ledger.ask(Evict { policies, keys, signatures, request: request_id()? }).await??)
    }

    /// Whose certificates count in the mesh, signed. For everybody: it says nothing that the history does not.
    pub(crate) fn peers(&self) -> Option<Arc<SignedPeers>> {
        self.snapshot.borrow().peers.clone()
    }

    /// Owners who vouch for this deployment's root. Whoever is given them verifies them.
    pub(crate) fn vouchers(&self) -> Vec<Voucher> {
        self.snapshot.borrow().state.vouchers().values().cloned().collect()
    }

    /// Histories that were given up after a disaster.
    pub(crate) fn older_heads(&self) -> Vec<OlderHead> {
        self.snapshot.borrow().state.older_heads().to_vec()
    }

    pub(crate) async fn withdraw(
        &self,
        transition: TransitionHash,
        caller: Option<KeyDigest>,
    ) -> Result<(), Failure> {
        Ok(self.ledger.ask(WithdrawProposal { transition, caller, request: request_id()? }).await??)
    }

    /// Everything that waits, for anybody who may have to sign.
    pub(crate) async fn proposals(&self) -> Result<WaitingProposals, Failure> {
        let snapshot = self.snapshot.borrow().clone();
        let needed = snapshot.require()?.manifest.workload_owners_needed();
        let store = Arc::clone(&self.store);
        let read = move || {
            let blob = |hash: &[u8; 32]| {
                let found = store.get_blob(&BlobHash::from_bytes(*hash))?;
                found.ok_or_else(|| Failure::Fault("a document of a proposal is missing".to_owned()))
            };
            let proposal = |(transition, proposal): (&TransitionHash, &Proposal)| {
                let policies = proposal.policies.iter().map(|hash| blob(hash.as_bytes()));
                Ok::<_, Failure>(WaitingProposal {
                    transition: *transition,
                    manifest: blob(proposal.manifest.as_bytes())?,
                    policies: policies.collect::<Result<_, _>>()?,
                    signed: proposal.approvals.keys().copied().collect(),
                    at: proposal.at,
                })
            };
            snapshot.state.proposals().iter().map(proposal).collect::<Result<Vec<_>, Failure>>()
        };
        let proposals = tokio::task::spawn_blocking(read).await;
        let proposals = proposals.map_err(|error| Failure::Fault(error.to_string()))??;
        Ok(WaitingProposals { proposals, needed })
    }
}
