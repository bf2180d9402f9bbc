//! How this pod asks its Coordinator for a certificate.
//!
//! Upstream's initializer takes whoever answers. With a manifest at hand we do not: a workload then never takes a secret
//! or a CA from anybody else, even for the moment until somebody notices.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use atls::ConnectionKey;
use coordinator_client::{CallError, Caller, Deadlines, Trust, Unjudged, with_port};
use endorsements::Endorsements;
use manifest::Manifest;
use program::now;
use tonic::{Code, Status};
use wire::mesh::{NewMeshCertRequest, NewMeshCertResponse, mesh_api_client::MeshApiClient};

use crate::{
    refusal::{self, Remembering},
    refused::Refused,
};

/// Longest attempt, from the first packet to the certificate.
const ATTEMPT: Duration = Duration::from_secs(60);
const DEADLINES: Deadlines =
    Deadlines { dial: Duration::from_secs(10), handshake: Duration::from_secs(30), request: ATTEMPT };
/// The port of a Coordinator's mesh API, where an address names none.
const MESH_PORT: u16 = 7777;

/// Where the Coordinator is, and by what it is judged.
pub(crate) struct Coordinator {
    address: String,
    caller: Caller,
    sent: Arc<Remembering>,
    trust: Option<Trust>,
}

impl Coordinator {
    /// The Coordinator at an address; with a manifest, only one that it describes.
    pub(crate) fn new(
        address: &str,
        key: Arc<ConnectionKey>,
        issuer: Remembering,
        manifest: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let sent = Arc::new(issuer);
        let caller = Caller { key, issuer: Some(Arc::<Remembering>::clone(&sent)), deadlines: DEADLINES };
        let trust = manifest.map(trust).transpose()?;
        Ok(Self { address: with_port(address, MESH_PORT), caller, sent, trust })
    }

    /// Its host, as an IPv6 address in brackets.
    pub(crate) fn host(&self) -> &str {
        self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host)
    }

    /// Asks once.
    pub(crate) async fn new_certificate(&self) -> anyhow::Result<NewMeshCertResponse> {
        let answer = tokio::time::timeout(ATTEMPT, self.ask()).await;
        answer.unwrap_or_else(|_| {
            anyhow::bail!("the Coordinator at {} gave no answer within {ATTEMPT:?}", self.address)
        })
    }

    async fn ask(&self) -> anyhow::Result<NewMeshCertResponse> {
        let unjudged = Unjudged::connect(&self.address, &self.caller, now()).await.map_err(failed)?;
        let channel = match &self.trust {
            Some(trust) => unjudged.judge(trust, now()).await.map_err(failed)?.channel(),
            None => unjudged.unjudged().await.map_err(failed)?,
        };
        let answer = MeshApiClient::new(channel).new_mesh_cert(NewMeshCertRequest::default()).await;
        let answer = answer.map_err(|status| {
            refusal::explain(&status, &self.sent);
            describe(&status)
        });
        Ok(answer?.into_inner())
    }
}

/// The Coordinator sends its endorsements along, and a pod has no way to the vendors. What it was shown once stays known,
/// so a host cannot show it an older revocation list when the certificate is renewed.
fn trust(path: &Path) -> anyhow::Result<Trust> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = Manifest::parse(&bytes).with_context(|| path.display().to_string())?;
    Ok(Trust { manifest: Arc::new(manifest), endorsements: Arc::new(Endorsements::none()) })
}

/// A Coordinator that is refused keeps its exit code.
fn failed(error: CallError) -> anyhow::Error {
    match error.is_refusal() {
        true => Refused(error.to_string()).into(),
        false => error.into(),
    }
}

fn describe(status: &Status) -> anyhow::Error {
    match status.code() {
        Code::PermissionDenied => {
            Refused(format!("the Coordinator refused this pod: {}", status.message())).into()
        }
        _ => anyhow::anyhow!("the Coordinator did not issue a certificate: {}", status.message()),
    }
}
