//! Manifest changes: at once, or as proposals that wait for more signatures.

use std::{collections::BTreeMap, sync::Arc};

use keys::{CaKey, MeshCa, ReplicaSecret, Salt, Seed, SeedEngine, encrypt_seed_share, split_seed};
use manifest::{KeyDigest, Manifest, PolicyHash, RequestId, TransitionHash};
use storage_schema::{Approval, EventStore, Fact, ShareCommitment};

use super::{
    actor::Ledger,
    messages::{
        ApproveProposal, Evict, LedgerError, ProposalReply, ProposeManifest, SeedShare, SeedShares,
        SetManifest, SetManifestError, SetManifestReply, Vouch, WithdrawProposal,
    },
    proposals::{Permit, permit},
    state::{Active, Phase, decide_platforms},
    waiting::Unsure,
};
use crate::Clock;

/// A change that is permitted, and what it needs.
struct Change<'a> {
    manifest: &'a Manifest,
    policies: Vec<PolicyHash>,
    permit: Permit,
    request: RequestId,
}

impl<S: EventStore, C: Clock> Ledger<S, C> {
    pub(super) fn set_manifest(&mut self, cmd: &SetManifest) -> Result<SetManifestReply, SetManifestError> {
        if let Some(reply) = self.first_manifest_again(cmd)? {
            return Ok(reply);
        }
        let current = match self.phase() {
            Phase::Active(active) => Some(active),
            Phase::Uninitialised => None,
            Phase::NeedsRecovery => return Err(self.state.while_waiting(&cmd.manifest)),
        };
        let in_force = current.as_ref().map(|active| active.manifest.as_ref());
        decide_platforms(&cmd.manifest, self.allow_insecure)?;
        let permit = self.state.decide_set_manifest(cmd, in_force, self.bootstrap_key.as_ref())?;
        let policies = self.store_documents(&cmd.manifest, &cmd.policies)?;
        let change = Change { manifest: &cmd.manifest, policies, permit, request: cmd.request };
        self.make(change, current.as_deref())
    }

    /// Content first, under its hash, so that the event that names it never names what is not there.
    fn store_documents(
        &self,
        manifest: &Manifest,
        policies: &[Vec<u8>],
    ) -> Result<Vec<PolicyHash>, LedgerError> {
        self.store.put_blob(manifest.bytes())?;
        let mut hashes = Vec::with_capacity(policies.len());
        for policy in policies {
            hashes.push(PolicyHash::from_bytes(*self.store.put_blob(policy)?.as_bytes()));
        }
        Ok(hashes)
    }

    fn make(
        &mut self,
        change: Change<'_>,
        current: Option<&Active>,
    ) -> Result<SetManifestReply, SetManifestError> {
        let Change { manifest, policies, permit: Permit { transition, right, approvals }, request } = change;
        let engine = match current {
            Some(active) => Arc::clone(&active.engine),
            None => Arc::new(fresh_engine()?),
        };
        let secret = match current {
            Some(active) if active.manifest.same_coordinators(manifest) => active.replica_secret.clone(),
            // Whoever was a Coordinator and is none now must not be able to open what comes.
            _ => ReplicaSecret::generate().map_err(LedgerError::from)?,
        };
        let shares = match current {
            Some(_) => None,
            None => Some(seed_shares(&engine, manifest)?),
        };
        let mesh_key = CaKey::generate().map_err(LedgerError::from)?;
        let wrapped_mesh_key = secret.wrap(&mesh_key, &transition).map_err(LedgerError::from)?;
        let ca = MeshCa::new(&engine, mesh_key, self.clock.now()).map_err(LedgerError::from)?;
        let mut facts = vec![Fact::ManifestSet {
            generation: self.state.entries().len() as u64 + 1,
            manifest: manifest.hash(),
            policies,
            previous: self.state.latest().map(|entry| entry.transition),
            transition,
            transition_signature: engine.transaction_key().sign(&transition).map_err(LedgerError::from)?,
            authorised_by: right,
            wrapped_mesh_key,
            root_ca: ca.root_der().to_vec(),
            mesh_ca: ca.mesh_der().to_vec(),
            approvals,
        }];
        let shares = shares.map(|(shares, fact)| {
            facts.push(fact);
            shares
        });
        let public = ca.public().clone();
        let keys = Unsure { request, engine, secret, shares: shares.clone() };
        self.commit_change(facts, keys, transition, ca)?;
        tracing::info!(%transition, manifest = %manifest.hash(), "manifest set");
        Ok(SetManifestReply { transition, root_pem: public.root_pem, mesh_pem: public.mesh_pem, shares })
    }

    fn in_force(&self) -> Result<Arc<Active>, SetManifestError> {
        match self.phase() {
            Phase::Active(active) => Ok(active),
            Phase::Uninitialised => Err(SetManifestError::NothingToChange),
            Phase::NeedsRecovery => Err(SetManifestError::NeedsRecovery),
        }
    }

    pub(super) fn propose(&mut self, cmd: &ProposeManifest) -> Result<ProposalReply, SetManifestError> {
        let active = self.in_force()?;
        decide_platforms(&cmd.manifest, self.allow_insecure)?;
        let (transition, signed) =
            self.state.decide_propose(&cmd.manifest, &cmd.policies, &cmd.signature, &active.manifest)?;
        let policies = self.store_documents(&cmd.manifest, &cmd.policies)?;
        let previous = active.transition;
        let is_new = !self.state.proposals().contains_key(&transition);
        let fact = |approval: Approval| match is_new {
            true => Fact::ManifestProposed {
                manifest: cmd.manifest.hash(),
                policies: policies.clone(),
                previous,
                transition,
                approval,
            },
            false => Fact::ProposalApproved { transition, approval },
        };
        let change = (&cmd.manifest, policies.clone());
        self.signed(change, transition, signed, fact, cmd.request, &active)
    }

    pub(super) fn approve(&mut self, cmd: &ApproveProposal) -> Result<ProposalReply, SetManifestError> {
        let active = self.in_force()?;
        let transition = cmd.transition;
        let (proposal, signed) = self.state.decide_approve(&transition, &cmd.signature, &active.manifest)?;
        let policies = proposal.policies.clone();
        let bytes = self.blob("manifest", *proposal.manifest.as_bytes())?;
        let manifest = Manifest::parse(&bytes).map_err(LedgerError::from)?;
        let fact = |approval| Fact::ProposalApproved { transition, approval };
        self.signed((&manifest, policies), transition, signed, fact, cmd.request, &active)
    }

    /// Makes the change if these signatures are enough, else records the new one.
    fn signed(
        &mut self,
        (manifest, policies): (&Manifest, Vec<PolicyHash>),
        transition: TransitionHash,
        signed: BTreeMap<KeyDigest, Vec<u8>>,
        fact: impl FnOnce(Approval) -> Fact,
        request: RequestId,
        active: &Arc<Active>,
    ) -> Result<ProposalReply, SetManifestError> {
        match permit(&active.manifest, transition, signed.clone()) {
            Ok(permit) => {
                let change = Change { manifest, policies, permit, request };
                return self.make(change, Some(active)).map(ProposalReply::Set);
            }
            Err(SetManifestError::TooFewSignatures { .. }) => {}
            Err(refused) => return Err(refused),
        }
        let known = self.state.proposals().get(&transition).map(|proposal| &proposal.approvals);
        let is_new = |owner: &KeyDigest| !known.is_some_and(|known| known.contains_key(owner));
        if let Some((owner, signature)) = signed.iter().find(|(owner, _)| is_new(owner)) {
            let approval = Approval { owner: *owner, signature: signature.clone() };
            self.commit(vec![fact(approval)], request, &active.engine)?;
            self.publish(Phase::Active(Arc::clone(active)));
            tracing::info!(%transition, %owner, "proposal signed");
        }
        let needed = active.manifest.workload_owners_needed();
        Ok(ProposalReply::Pending { transition, signed: signed.into_keys().collect(), needed })
    }

    pub(super) fn vouch(&mut self, cmd: &Vouch) -> Result<(), SetManifestError> {
        let active = self.in_force()?;
        let Vouch { public_key, signature, request } = cmd;
        let root_key = active.engine.root_key().public_der();
        let owner = self.state.decide_vouch(public_key, signature, &root_key, &active.manifest)?;
        if self.state.vouchers().contains_key(&owner) {
            return Ok(()); // its word stands: nothing is news
        }
        let fact =
            Fact::DeploymentVouched { owner, public_key: public_key.clone(), signature: signature.clone() };
        self.commit(vec![fact], *request, &active.engine)?;
        self.publish(Phase::Active(active));
        tracing::info!(%owner, "an owner vouches for this deployment");
        Ok(())
    }

    pub(super) fn evict(&mut self, cmd: &Evict) -> Result<TransitionHash, SetManifestError> {
        let active = self.in_force()?;
        let Evict { policies, keys, signatures, request } = cmd;
        let approvals = self.state.decide_evict(policies, keys, signatures, &active.manifest)?;
        let transition = active.transition;
        let evicted = self.state.evicted();
        let known = policies.iter().all(|policy| evicted.policies.contains(policy))
            && keys.iter().all(|key| evicted.keys.contains(key));
        if known {
            return Ok(transition);
        }
        let (policies, keys) = (policies.clone(), keys.clone());
        tracing::warn!(?policies, ?keys, "shut out of the mesh by workload owners");
        let fact = Fact::PeersEvicted { policies, keys, transition, approvals };
        self.commit(vec![fact], *request, &active.engine)?;
        self.publish(Phase::Active(active));
        Ok(transition)
    }

    pub(super) fn withdraw(&mut self, cmd: &WithdrawProposal) -> Result<(), SetManifestError> {
        let active = self.in_force()?;
        let owner = self.state.decide_withdraw(&cmd.transition, cmd.caller, &active.manifest)?;
        let fact = Fact::ProposalWithdrawn { transition: cmd.transition, owner };
        self.commit(vec![fact], cmd.request, &active.engine)?;
        self.publish(Phase::Active(active));
        tracing::info!(transition = %cmd.transition, %owner, "proposal withdrawn");
        Ok(())
    }
}

fn fresh_engine() -> Result<SeedEngine, LedgerError> {
    Ok(SeedEngine::new(Seed::generate()?, Salt::generate()?)?)
}

/// The seed for each owner, or its part, and the event that says so.
fn seed_shares(engine: &SeedEngine, manifest: &Manifest) -> Result<(SeedShares, Fact), SetManifestError> {
    let owners = &manifest.seedshare_owner_pub_keys;
    let needed = manifest.seedshare_owners_needed();
    let parts = match needed {
        0 | 1 => Vec::new(),
        _ => split_seed(engine.seed(), needed, owners.len()).map_err(LedgerError::from)?,
    };
    let mut shares = Vec::with_capacity(owners.len());
    for (index, owner) in owners.iter().enumerate() {
        let secret = parts.get(index).map_or(engine.seed().expose(), |part| part.expose());
        let ciphertext = encrypt_seed_share(secret, owner.der())
            .map_err(|error| SetManifestError::SeedshareOwnerKey { index, error })?;
        shares.push(SeedShare { owner: owner.clone(), ciphertext });
    }
    let listed = shares.iter().map(|share| (share.owner.der(), share.ciphertext.as_slice()));
    let document = keys::seed_shares_digest(engine.salt().as_bytes(), listed);
    let fact = Fact::SeedSharesCreated {
        owners: owners.iter().map(manifest::OwnerKey::digest).collect(),
        threshold: u32::try_from(needed).unwrap_or(u32::MAX),
        commitments: parts.iter().map(|part| ShareCommitment(part.commitment(engine.salt()))).collect(),
        document: document.to_vec(),
    };
    Ok((SeedShares { shares, salt: *engine.salt() }, fact))
}
