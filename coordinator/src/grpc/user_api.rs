//! UserAPI: manifests, history, recovery (spec control-plane.md 1.2).

use actors::{Phase, Recover, RecoverReply, SetManifest};
use atls::{KeyAlgorithm, PeerCertificate};
use keys::Salt;
use manifest::{KeyDigest, Manifest, RequestId, TransitionHash};
use tonic::{Request, Response, Status};
use wire::user::{
    GetManifestsRequest, GetManifestsResponse, LatestTransition, RecoverRequest, RecoverResponse, SeedShare,
    SeedShareDocument, SetManifestRequest, SetManifestResponse,
    user_api_server::{UserApi as Service, UserApiServer},
};
use zeroize::Zeroizing;

use super::status::Failure;
use crate::{listener::Peer, wiring::Actors};

/// Largest request, in bytes: a manifest and its policies.
pub(super) const MAX_REQUEST_BYTES: usize = 16 << 20;

pub(crate) struct UserApi(Actors);

impl UserApi {
    pub(crate) fn service(actors: Actors) -> UserApiServer<Self> {
        UserApiServer::new(Self(actors)).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

/// The caller's key in the form in which manifests list it: PKIX DER for EC, PKCS#1 DER for RSA.
pub(super) fn caller<T>(request: &Request<T>) -> Option<KeyDigest> {
    let Some(Peer::User(Some(certificate))) = request.extensions().get::<Peer>() else { return None };
    let PeerCertificate { spki_der, key_bits, key_algorithm, .. } = certificate.as_ref();
    match key_algorithm {
        KeyAlgorithm::Ec => Some(KeyDigest::of(spki_der)),
        KeyAlgorithm::Rsa => Some(KeyDigest::of(key_bits)),
        KeyAlgorithm::Other => None,
    }
}

/// A new request's name, in the events it causes and in the span of its log lines.
pub(crate) fn request_id() -> Result<RequestId, Failure> {
    let id = keys::random().map(RequestId::from_bytes).map_err(|error| Failure::Fault(error.to_string()))?;
    tracing::Span::current().record("request", tracing::field::display(id));
    Ok(id)
}

/// Reads a manifest; names that mean nothing here are worth a line in the log.
pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, Failure> {
    let manifest = Manifest::parse(bytes).map_err(malformed)?;
    if !manifest.unknown().is_empty() {
        tracing::warn!(unknown = %manifest.unknown().join(", "), "the manifest has fields that mean nothing here");
    }
    Ok(manifest)
}

pub(crate) fn malformed(error: impl ToString) -> Failure {
    Failure::Malformed(error.to_string())
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
            bytes => Some(TransitionHash::try_from(bytes).map_err(malformed)?),
        };
        let command = SetManifest {
            manifest: parse(&message.manifest)?,
            policies: message.policies,
            previous,
            caller,
            signatures: std::iter::once(message.signature)
                .chain(message.more_signatures)
                .filter(|signature| !signature.is_empty())
                .collect(),
            request: request_id()?,
        };
        let reply = self.0.ledger.ask(command).await.map_err(Failure::Ask)?;
        let reply = reply.map_err(Failure::SetManifest)?;
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
        _: Request<GetManifestsRequest>,
    ) -> Result<Response<GetManifestsResponse>, Status> {
        let phase = self.0.snapshot.borrow().phase.clone();
        let active = match phase {
            Phase::Active(active) => active,
            Phase::Uninitialised => return Err(Failure::NoManifest.into()),
            Phase::NeedsRecovery => return Err(Failure::NeedsRecovery.into()),
        };
        Ok(Response::new(GetManifestsResponse {
            manifests: active.manifests.iter().map(|bytes| bytes.to_vec()).collect(),
            policies: active.policies.iter().map(|bytes| bytes.to_vec()).collect(),
            root_ca: active.ca.public().root_pem.clone().into(),
            mesh_ca: active.ca.public().mesh_pem.clone().into(),
            latest_transition: Some(LatestTransition {
                transition_hash: active.transition.as_bytes().to_vec(),
                signature: active.signature.clone(),
            }),
        }))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        let command = Recover {
            seed: Zeroizing::new(message.seed),
            salt: Salt::from_bytes(&message.salt).map_err(malformed)?,
            caller,
            checkpoint: message.checkpoint,
            request: request_id()?,
        };
        let reply = self.0.ledger.ask(command).await.map_err(Failure::Ask)?;
        Ok(Response::new(match reply.map_err(Failure::Recover)? {
            RecoverReply::Recovered(_) => RecoverResponse::default(),
            RecoverReply::Waiting { received, needed } => RecoverResponse {
                shares_received: u32::try_from(received).unwrap_or(u32::MAX),
                shares_needed: u32::try_from(needed).unwrap_or(u32::MAX),
            },
        }))
    }
}
