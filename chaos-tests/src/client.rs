//! What operators and workloads do, over real attested TLS.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use atls::ConnectionKey;
use attestation::{Issuer, simulated::SimulatedMachine};
use coordinator_client::{Caller, Deadlines, Unjudged};
use manifest::{Manifest, PolicyHash, TransitionHash};
use tonic::{Code, Status, Streaming, transport::Channel};
use wire::{
    history::{Segment, SegmentsRequest, StreamsRequest, history_client::HistoryClient},
    mesh::{NewMeshCertRequest, mesh_api_client::MeshApiClient},
    replica::{StatusRequest, StatusResponse, cluster_client::ClusterClient},
    user::{
        GetManifestsRequest, RecoverRequest, SeedShareDocument, SetManifestRequest,
        user_api_client::UserApiClient,
    },
};

use crate::{now, plan::Plan};

/// Longest a client waits for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a request for a change ended.
#[derive(Debug)]
pub enum SetOutcome {
    /// It is in force; the seed shares come with the first one.
    Done(Option<SeedShareDocument>),
    /// Another change came first: this one was not made.
    Stale(String),
    /// It was refused for another reason, and not made.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

/// What a workload got.
#[derive(Debug)]
pub struct Issued {
    /// Its certificate and the intermediate, PEM.
    pub chain: String,
    /// Self-signed mesh CA certificate, PEM.
    pub mesh_ca: String,
    /// Workload secret.
    pub secret: Vec<u8>,
}

/// A connection to a Coordinator that this program started itself, so that its evidence need not be judged.
async fn channel(port: u16, key: ConnectionKey, issuer: Option<Arc<dyn Issuer>>) -> anyhow::Result<Channel> {
    let deadlines = Deadlines { dial: PATIENCE, handshake: Duration::from_secs(10), request: PATIENCE };
    let caller = Caller { key: Arc::new(key), issuer, deadlines };
    Ok(Unjudged::connect(&format!("127.0.0.1:{port}"), &caller, now()).await?.unjudged().await?)
}

async fn user(port: u16, key: Option<&str>) -> anyhow::Result<Channel> {
    let key = key.map_or_else(ConnectionKey::generate, ConnectionKey::from_pem)?;
    channel(port, key, None).await
}

/// Sets a manifest after `previous`, as the workload owner.
pub async fn set(
    port: u16,
    plan: &Plan,
    manifest: &Manifest,
    previous: Option<TransitionHash>,
) -> SetOutcome {
    let channel = match user(port, Some(&plan.owner_key)).await {
        Ok(channel) => channel,
        Err(error) => return SetOutcome::Refused(format!("not sent: {error:#}")),
    };
    let request = SetManifestRequest {
        manifest: manifest.bytes().to_vec(),
        policies: plan.documents(),
        previous_transition_hash: previous.unwrap_or(TransitionHash::ZERO).as_bytes().to_vec(),
        signature: Vec::new(),
        more_signatures: Vec::new(),
    };
    match UserApiClient::new(channel).set_manifest(request).await {
        Ok(answer) => SetOutcome::Done(answer.into_inner().seed_shares_doc),
        Err(status) => judge(&status),
    }
}

fn judge(status: &Status) -> SetOutcome {
    let text = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition if text.contains("history moved on") => SetOutcome::Stale(text),
        Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::ResourceExhausted => SetOutcome::Refused(text),
        _ => SetOutcome::Unknown(format!("{:?}: {text}", status.code())),
    }
}

/// Every manifest of the history, oldest first, and the transition in force.
pub async fn history(port: u16) -> anyhow::Result<(Vec<Vec<u8>>, TransitionHash, String)> {
    let answer = UserApiClient::new(user(port, None).await?)
        .max_decoding_message_size(256 << 20)
        .get_manifests(GetManifestsRequest {})
        .await
        .map_err(failure)?
        .into_inner();
    let latest = answer.latest_transition.context("no latest transition")?;
    let transition = TransitionHash::try_from(latest.transition_hash.as_slice())?;
    Ok((answer.manifests, transition, String::from_utf8(answer.mesh_ca)?))
}

/// Gives the seed back, as the seedshare owner.
pub async fn recover(port: u16, plan: &Plan, shares: &SeedShareDocument) -> anyhow::Result<()> {
    let share = shares.seed_shares.first().context("no seed share")?;
    let seed = keys::decrypt_seed_share(&share.encrypted_seed, &plan.seedshare_key)?;
    let request = RecoverRequest {
        seed: seed.to_vec(),
        salt: shares.salt.clone(),
        force: false,
        ..RecoverRequest::default()
    };
    let channel = user(port, Some(&plan.seedshare_key)).await?;
    let answer = UserApiClient::new(channel).recover(request).await;
    answer.map(drop).map_err(failure)
}

/// Follows a stream of the event log with a key.
pub async fn follow(port: u16, key: &str, stream: &str) -> anyhow::Result<Streaming<Segment>> {
    let request = SegmentsRequest { stream: stream.to_owned(), from: 0, follow: true };
    let answer = HistoryClient::new(user(port, Some(key)).await?).segments(request).await;
    Ok(answer.map_err(failure)?.into_inner())
}

/// Names of the streams that the owner of a key may read.
pub async fn streams(port: u16, key: &str) -> anyhow::Result<Vec<String>> {
    let answer = HistoryClient::new(user(port, Some(key)).await?).streams(StreamsRequest {}).await;
    Ok(answer.map_err(failure)?.into_inner().streams)
}

/// What a Coordinator says about itself.
pub async fn status(port: u16) -> anyhow::Result<StatusResponse> {
    let answer = ClusterClient::new(user(port, None).await?).status(StatusRequest {}).await;
    Ok(answer.map_err(failure)?.into_inner())
}

/// One connection that is asked over and over.
pub struct Session(ClusterClient<Channel>);

impl Session {
    /// Connects to a replica.
    pub async fn open(port: u16) -> anyhow::Result<Self> {
        Ok(Self(ClusterClient::new(user(port, None).await?)))
    }

    /// Number of the manifest in force there.
    pub async fn generation(&mut self) -> anyhow::Result<u64> {
        let answer = self.0.status(StatusRequest {}).await;
        Ok(answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner().generation)
    }
}

/// A connection of a pod that was judged when it was made.
pub struct Attested(MeshApiClient<Channel>);

impl Attested {
    /// Connects to a replica.
    pub async fn open(port: u16, issuer: &Arc<dyn Issuer>) -> anyhow::Result<Self> {
        let channel = channel(port, ConnectionKey::generate()?, Some(Arc::clone(issuer))).await?;
        Ok(Self(MeshApiClient::new(channel)))
    }

    /// Gets a certificate.
    pub async fn certificate(&mut self) -> anyhow::Result<Issued> {
        let answer = self.0.new_mesh_cert(NewMeshCertRequest::default()).await.map_err(failure)?.into_inner();
        ensure!(!answer.cert_chain.is_empty(), "an empty certificate chain");
        Ok(Issued {
            chain: String::from_utf8(answer.cert_chain)?,
            mesh_ca: String::from_utf8(answer.mesh_ca_cert)?,
            secret: answer.workload_secret,
        })
    }

    /// Gets the secrets of the deployment, as upstream's Coordinators ask for them.
    pub async fn secrets(&mut self) -> anyhow::Result<()> {
        let answer = self.0.recover(wire::mesh::RecoverRequest::default()).await.map_err(failure)?;
        ensure!(!answer.into_inner().seed.is_empty(), "no seed");
        Ok(())
    }
}

fn failure(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}

/// Attests as the workload and gets its certificate.
pub async fn certificate(port: u16, issuer: &Arc<dyn Issuer>) -> anyhow::Result<Issued> {
    Attested::open(port, issuer).await?.certificate().await
}

/// The workload's hardware.
pub fn workload_issuer(plan: &Plan) -> anyhow::Result<Arc<dyn Issuer>> {
    issuer(plan, Plan::workload())
}

/// The hardware of a pod with this policy.
pub fn issuer(plan: &Plan, policy: PolicyHash) -> anyhow::Result<Arc<dyn Issuer>> {
    Ok(Arc::new(SimulatedMachine::open(&plan.machine)?.guest(policy)))
}
