//! Proposals: manifest changes that several workload owners must sign.

use actors::{Active, ApproveProposal, Phase, ProposalReply, ProposeManifest, WithdrawProposal};
use manifest::{KeyDigest, TransitionHash};
use std::sync::Arc;
use storage_schema::{BlobHash, EventStore as _};
use tonic::{Request, Response, Status};
use wire::proposals::{
    ApproveRequest, ListRequest, ListResponse, Proposal, ProposalStatus, ProposeRequest, WithdrawRequest,
    WithdrawResponse,
    proposals_server::{Proposals as Service, ProposalsServer},
};

use super::{
    status::Failure,
    user_api::{MAX_REQUEST_BYTES, caller, malformed, parse, request_id},
};
use crate::wiring::Actors;

pub(crate) struct ProposalsApi(Actors);

impl ProposalsApi {
    pub(crate) fn service(actors: Actors) -> ProposalsServer<Self> {
        ProposalsServer::new(Self(actors)).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn in_force(&self) -> Result<(Arc<Active>, Arc<actors::State>), Failure> {
        let snapshot = self.0.snapshot.borrow().clone();
        match snapshot.phase {
            Phase::Active(active) => Ok((active, snapshot.state)),
            Phase::Uninitialised => Err(Failure::NoManifest),
            Phase::NeedsRecovery => Err(Failure::NeedsRecovery),
        }
    }
}

fn transition(bytes: &[u8]) -> Result<TransitionHash, Failure> {
    TransitionHash::try_from(bytes).map_err(malformed)
}

fn bytes(owners: impl IntoIterator<Item = KeyDigest>) -> Vec<Vec<u8>> {
    owners.into_iter().map(|owner| owner.as_bytes().to_vec()).collect()
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn status(reply: ProposalReply) -> ProposalStatus {
    match reply {
        ProposalReply::Pending { transition, signed, needed } => ProposalStatus {
            transition: transition.as_bytes().to_vec(),
            signed: bytes(signed),
            needed: number(needed),
            ..ProposalStatus::default()
        },
        ProposalReply::Set(reply) => ProposalStatus {
            transition: reply.transition.as_bytes().to_vec(),
            set: true,
            root_ca: reply.root_pem.into(),
            mesh_ca: reply.mesh_pem.into(),
            ..ProposalStatus::default()
        },
    }
}

#[tonic::async_trait]
impl Service for ProposalsApi {
    #[tracing::instrument(skip_all, fields(request))]
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposalStatus>, Status> {
        let ProposeRequest { manifest, policies, signature } = request.into_inner();
        let command =
            ProposeManifest { manifest: parse(&manifest)?, policies, signature, request: request_id()? };
        let reply = self.0.ledger.ask(command).await.map_err(Failure::Ask)?;
        Ok(Response::new(status(reply.map_err(Failure::SetManifest)?)))
    }

    #[tracing::instrument(skip_all)]
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (active, state) = self.in_force()?;
        let store = Arc::clone(&self.0.store);
        let read = move || {
            let blob = |hash: &[u8; 32]| {
                let found =
                    store.get_blob(&BlobHash::from_bytes(*hash)).map_err(|error| error.to_string())?;
                found.ok_or_else(|| "a document of a proposal is missing".to_owned())
            };
            let proposal = |(transition, proposal): (&TransitionHash, &actors::Proposal)| {
                let policies = proposal.policies.iter().map(|hash| blob(hash.as_bytes()));
                Ok::<_, String>(Proposal {
                    transition: transition.as_bytes().to_vec(),
                    manifest: blob(proposal.manifest.as_bytes())?,
                    policies: policies.collect::<Result<_, _>>()?,
                    signed: bytes(proposal.approvals.keys().copied()),
                    at: proposal.at.as_millis(),
                })
            };
            state.proposals().iter().map(proposal).collect::<Result<Vec<_>, _>>()
        };
        let proposals = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Failure::Fault(error.to_string()))?
            .map_err(Failure::Fault)?;
        let needed = number(active.manifest.workload_owners_needed());
        Ok(Response::new(ListResponse { proposals, needed }))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn approve(&self, request: Request<ApproveRequest>) -> Result<Response<ProposalStatus>, Status> {
        let ApproveRequest { transition: name, signature } = request.into_inner();
        let command = ApproveProposal { transition: transition(&name)?, signature, request: request_id()? };
        let reply = self.0.ledger.ask(command).await.map_err(Failure::Ask)?;
        Ok(Response::new(status(reply.map_err(Failure::SetManifest)?)))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn withdraw(
        &self,
        request: Request<WithdrawRequest>,
    ) -> Result<Response<WithdrawResponse>, Status> {
        let caller = caller(&request);
        let command = WithdrawProposal {
            transition: transition(&request.get_ref().transition)?,
            caller,
            request: request_id()?,
        };
        let reply = self.0.ledger.ask(command).await.map_err(Failure::Ask)?;
        reply.map_err(Failure::SetManifest)?;
        Ok(Response::new(WithdrawResponse {}))
    }
}
