//! UserAPI: manifests, history, recovery (docs/spec/control-plane.md, section 1.2).

use actors::RecoverReply;
use keys::Salt;
use manifest::TransitionHash;
use tonic::{Request, Response, Status};
use wire::user::{
    Acceptance, GetManifestsRequest, GetManifestsResponse, LatestTransition, OlderHead, RecoverRequest,
    RecoverResponse, SeedShare, SeedShareDocument, SetManifestRequest, SetManifestResponse, Voucher,
    user_api_server::{UserApi as Service, UserApiServer},
};
use zeroize::Zeroizing;

use super::peer::caller;
use crate::{
    budget::{Budget, MOST_BYTES, Right},
    desk::{Desk, Failure, NewManifest, Recovery},
};

pub(crate) struct UserApi(Desk, Budget);

impl UserApi {
    pub(crate) fn service(desk: Desk, budget: Budget) -> UserApiServer<Self> {
        UserApiServer::new(Self(desk, budget)).max_decoding_message_size(MOST_BYTES)
    }
}

#[tonic::async_trait]
impl Service for UserApi {
    #[tracing::instrument(skip_all, fields(request))]
    async fn set_manifest(
        &self,
        request: Request<SetManifestRequest>,
    ) -> Result<Response<SetManifestResponse>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        let previous = match message.previous_transition_hash.as_slice() {
            [] => None,
            bytes => Some(TransitionHash::try_from(bytes).map_err(Failure::malformed)?),
        };
        let signatures = std::iter::once(message.signature).chain(message.more_signatures);
        let new = NewManifest {
            manifest: message.manifest,
            policies: message.policies,
            previous,
            caller,
            signatures: signatures.filter(|signature| !signature.is_empty()).collect(),
        };
        let reply = self.0.set_manifest(new).await?;
        let document = |shares: actors::SeedShares| SeedShareDocument {
            salt: shares.salt.as_bytes().to_vec(),
            seed_shares: shares
                .shares
                .into_iter()
                .map(|share| SeedShare {
                    public_key: share.owner.to_string(),
                    encrypted_seed: share.ciphertext,
                })
                .collect(),
        };
        Ok(Response::new(SetManifestResponse {
            root_ca: reply.root_pem.into(),
            mesh_ca: reply.mesh_pem.into(),
            seed_shares_doc: reply.shares.map(document),
        }))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn get_manifests(
        &self,
        request: Request<GetManifestsRequest>,
    ) -> Result<Response<GetManifestsResponse>, Status> {
        let active = self.0.in_force().map_err(Failure::from)?;
        let right = request.extensions().get::<Right>().copied();
        let right = right.ok_or_else(|| Failure::Fault("a request that nobody took in".into()))?;
        let held = self.1.reserve_answer(right, active.history_bytes())?;
        let mut answer = Response::new(GetManifestsResponse {
            manifests: active.manifests.iter().map(|bytes| bytes.to_vec()).collect(),
            policies: active.policies.iter().map(|bytes| bytes.to_vec()).collect(),
            root_ca: active.ca.public().root_pem.clone().into(),
            mesh_ca: active.ca.public().mesh_pem.clone().into(),
            latest_transition: Some(LatestTransition {
                transition_hash: active.transition.as_bytes().to_vec(),
                signature: active.signature.clone(),
            }),
            vouchers: (self.0.vouchers().into_iter())
                .map(|voucher| Voucher { public_key: voucher.public_key, signature: voucher.signature })
                .collect(),
            older_heads: self.0.older_heads().into_iter().map(older_head).collect(),
        });
        answer.extensions_mut().insert(held);
        Ok(answer)
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        let recovery = Recovery {
            seed: Zeroizing::new(message.seed),
            salt: Salt::from_bytes(&message.salt).map_err(Failure::malformed)?,
            caller,
            checkpoint: message.checkpoint,
            acceptance: message
                .accept_older_head
                .map(|Acceptance { public_key, signature }| actors::Acceptance { public_key, signature }),
            message: None,
        };
        Ok(Response::new(match self.0.recover(recovery).await? {
            RecoverReply::Recovered(_) => RecoverResponse::default(),
            RecoverReply::Waiting { received, needed } => RecoverResponse {
                shares_received: u32::try_from(received).unwrap_or(u32::MAX),
                shares_needed: u32::try_from(needed).unwrap_or(u32::MAX),
            },
        }))
    }
}

fn older_head(head: actors::OlderHead) -> OlderHead {
    let actors::OlderHead { at, public_key, signature, given_up, accepted } = head;
    OlderHead {
        acceptance: Some(Acceptance { public_key, signature }),
        given_up_size: given_up.size,
        given_up_root: given_up.root.to_vec(),
        accepted_size: accepted.size,
        accepted_root: accepted.root.to_vec(),
        at: at.as_millis(),
    }
}
