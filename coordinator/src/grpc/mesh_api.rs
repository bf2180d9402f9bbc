//! MeshAPI: certificates for workloads, secrets for peers (spec control-plane.md 1.3).

use std::sync::Arc;

use actors::{HandOver, IssueMeshCert};
use tonic::{Request, Response, Status};
use wire::mesh::{
    NewMeshCertRequest, NewMeshCertResponse, RecoverRequest, RecoverResponse,
    mesh_api_server::{MeshApi as Service, MeshApiServer},
};

use super::{
    status::Failure,
    user_api::{malformed, request_id},
};
use crate::{
    listener::{Peer, Refused, Workload},
    metrics::Metrics,
    wiring::Actors,
};

/// Largest request, in bytes: empty, or a certification request.
const MAX_REQUEST_BYTES: usize = 8 << 10;

pub(crate) struct MeshApi(Actors);

impl MeshApi {
    pub(crate) fn service(actors: Actors) -> MeshApiServer<Self> {
        MeshApiServer::new(Self(actors)).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

pub(crate) fn workload<T>(request: &Request<T>) -> Result<Arc<Workload>, Failure> {
    match request.extensions().get::<Peer>() {
        Some(Peer::Workload(workload)) => Ok(Arc::clone(workload)),
        Some(Peer::Refused(refused)) => Err(Failure::Evidence(Refused::clone(refused))),
        Some(Peer::Busy(busy)) => Err(Failure::Ask(*busy)),
        Some(Peer::User(_)) | None => Err(Failure::Fault("a connection without a verdict".into())),
    }
}

#[tonic::async_trait]
impl Service for MeshApi {
    #[tracing::instrument(skip_all, fields(request))]
    async fn new_mesh_cert(
        &self,
        request: Request<NewMeshCertRequest>,
    ) -> Result<Response<NewMeshCertResponse>, Status> {
        let workload = workload(&request)?;
        let active = Arc::clone(&workload.active);
        self.0.check_in_force(&active)?;
        let command = IssueMeshCert {
            active: Arc::clone(&active),
            claims: workload.claims.clone(),
            evidence: workload.evidence.clone(),
            spki_der: workload.spki_der.clone(),
            certified_key: match request.get_ref().certification_request.as_slice() {
                [] => None,
                csr => Some(keys::key_of_csr(csr).map_err(malformed)?),
            },
            lifetime: self.0.certificate_lifetime,
            nonce: workload.nonce.clone(),
            hpke_key: None,
            request: request_id()?,
        };
        let started = std::time::Instant::now();
        let reply = self.0.authority.ask(command).await.map_err(Failure::Ask)?;
        let outcome = if reply.is_ok() { "issued" } else { "failed" };
        Metrics::took(&self.0.metrics.issuing, outcome, started.elapsed());
        let identity = reply.map_err(Failure::Issue)?;
        // Durable, but not handed out if the manifest has been replaced, or may have been too long ago by now.
        self.0.check_in_force(&active)?;
        let (serial, policy) = (identity.certificate.serial, workload.claims.policy_hash());
        tracing::info!(%serial, %policy, platform = %workload.claims.platform(), "certificate issued");
        let public = active.ca.public();
        Ok(Response::new(NewMeshCertResponse {
            mesh_ca_cert: public.mesh_pem.clone().into(),
            cert_chain: [identity.certificate.pem.as_str(), &public.intermediate_pem].concat().into(),
            root_ca_cert: public.root_pem.clone().into(),
            workload_secret: identity.secret.map(|secret| secret.expose().to_vec()).unwrap_or_default(),
        }))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let workload = workload(&request)?;
        let active = Arc::clone(&workload.active);
        self.0.check_in_force(&active)?;
        let command =
            HandOver { active: Arc::clone(&active), claims: workload.claims.clone(), request: request_id()? };
        let reply = self.0.recovery.ask(command).await.map_err(Failure::Ask)?;
        let secrets = reply.map_err(Failure::HandOver)?;
        self.0.check_in_force(&active)?;
        Ok(Response::new(RecoverResponse {
            seed: secrets.seed.expose().to_vec(),
            salt: secrets.salt.as_bytes().to_vec(),
            mesh_ca_key: secrets.mesh_key_pem.into(),
            latest_manifest: secrets.manifest,
        }))
    }
}
