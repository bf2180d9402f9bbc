//! MeshAPI: certificates for workloads, secrets for peers (docs/spec/control-plane.md, section 1.3).

use tonic::{Request, Response, Status};
use wire::mesh::{
    NewMeshCertRequest, NewMeshCertResponse, RecoverRequest, RecoverResponse, Voucher,
    mesh_api_server::{MeshApi as Service, MeshApiServer},
};

use super::peer::workload;
use crate::desk::{Desk, Failure};

/// Largest request, in bytes: empty, or a certification request.
const MAX_REQUEST_BYTES: usize = 8 << 10;

pub(crate) struct MeshApi(Desk);

impl MeshApi {
    pub(crate) fn service(desk: Desk) -> MeshApiServer<Self> {
        MeshApiServer::new(Self(desk)).max_decoding_message_size(MAX_REQUEST_BYTES)
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
        let certified_key = match request.get_ref().certification_request.as_slice() {
            [] => None,
            csr => Some(keys::key_of_csr(csr).map_err(Failure::malformed)?),
        };
        let issued = self.0.issue(&workload, certified_key).await?;
        Ok(Response::new(NewMeshCertResponse {
            mesh_ca_cert: issued.mesh_pem.into(),
            cert_chain: issued.chain_pem.into(),
            root_ca_cert: issued.root_pem.into(),
            workload_secret: issued.secret.map(|secret| secret.expose().to_vec()).unwrap_or_default(),
            vouchers: (issued.vouchers.into_iter())
                .map(|voucher| Voucher { public_key: voucher.public_key, signature: voucher.signature })
                .collect(),
            mesh_peers: issued.peers,
        }))
    }

    #[tracing::instrument(skip_all, fields(request))]
    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let secrets = self.0.hand_over_unless_forked(workload(&request)?.as_ref()).await?;
        Ok(Response::new(RecoverResponse {
            seed: secrets.seed.expose().to_vec(),
            salt: secrets.salt.as_bytes().to_vec(),
            mesh_ca_key: secrets.mesh_key_pem.into(),
            latest_manifest: secrets.manifest,
        }))
    }
}
