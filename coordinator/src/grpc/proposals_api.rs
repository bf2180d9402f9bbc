//! Proposals: manifest changes that several workload owners must sign.

use actors::ProposalReply;
use manifest::{KeyDigest, PolicyHash, TransitionHash};
use tonic::{Request, Response, Status};
use wire::proposals::{
    ApproveRequest, EvictRequest, EvictResponse, ListRequest, ListResponse, Proposal, ProposalStatus,
    ProposeRequest, VouchRequest, VouchResponse, WithdrawRequest, WithdrawResponse,
    proposals_server::{Proposals as Service, ProposalsServer},
};

use super::peer::caller;
use crate::{
    budget::MOST_BYTES,
    desk::{Desk, Failure},
};

pub(crate) struct ProposalsApi(Desk);

impl ProposalsApi {
    pub(crate) fn service(desk: Desk) -> ProposalsServer<Self> {
        ProposalsServer::new(Self(desk)).max_decoding_message_size(MOST_BYTES)
    }
}

fn transition(bytes: &[u8]) -> Result<TransitionHash, Failure> {
    TransitionHash::try_from(bytes).map_err(Failure::malformed)
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
        Ok(Response::new(status(self.0.propose(&manifest, policies, signature).await?)))
    }

    #[tracing::instrument(skip_all)]
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let waiting = self.0.proposals().await?;
        let proposals = waiting.proposals.into_iter().map(|proposal| Proposal {
            transition: proposal.transition.as_bytes().to_vec(),
            manifest: proposal.manifest,
            policies: proposal.policies,
            signed: bytes(proposal.signed),
            at: proposal.at.as_millis(),
        });
        let (proposals, needed) = (proposals.collect(), number(waiting.needed));
        Ok(Response::new(ListResponse { proposals, needed }))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn approve(&self, request: Request<ApproveRequest>) -> Result<Response<ProposalStatus>, Status> {
        let ApproveRequest { transition: name, signature } = request.into_inner();
        Ok(Response::new(status(self.0.approve(transition(&name)?, signature).await?)))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn vouch(&self, request: Request<VouchRequest>) -> Result<Response<VouchResponse>, Status> {
        let VouchRequest { public_key, signature } = request.into_inner();
        self.0.vouch(public_key, signature).await?;
        Ok(Response::new(VouchResponse {}))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn evict(&self, request: Request<EvictRequest>) -> Result<Response<EvictResponse>, Status> {
        let EvictRequest { policies, keys, signatures } = request.into_inner();
        let policies = policies.iter().map(|bytes| PolicyHash::try_from(bytes.as_slice()));
        let policies = policies.collect::<Result<_, _>>().map_err(Failure::malformed)?;
        let keys = keys.iter().map(|bytes| KeyDigest::try_from(bytes.as_slice()));
        let keys = keys.collect::<Result<_, _>>().map_err(Failure::malformed)?;
        self.0.evict(policies, keys, signatures).await?;
        Ok(Response::new(EvictResponse {}))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn withdraw(
        &self,
        request: Request<WithdrawRequest>,
    ) -> Result<Response<WithdrawResponse>, Status> {
        let caller = caller(&request);
        self.0.withdraw(transition(&request.get_ref().transition)?, caller).await?;
        Ok(Response::new(WithdrawResponse {}))
    }
}
