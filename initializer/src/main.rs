//! The initializer: attests to the Coordinator and writes what the workload needs
//! (spec control-plane.md section 11).
//!
//! It does not verify the Coordinator: the workload's certificate is worth what the data owner
//! verified, and a false Coordinator can only hand out certificates that nobody trusts.

mod files;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use atls::{ClientConfig, ConnectionKey};
use attestation::{Issuer, simulated::SimulatedMachine};
use clap::Parser;
use hyper_util::rt::TokioIo;
use manifest::{PolicyHash, Timestamp};
use tokio::{net::TcpStream, signal::unix::SignalKind, sync::Mutex};
use tonic::{Code, Status, transport::Endpoint};
use wire::mesh::{NewMeshCertRequest, NewMeshCertResponse, mesh_api_client::MeshApiClient};

const RETRY: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Attests this pod to the Coordinator and writes its certificate chain, key, CAs and secret.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Files written below --directory:\n  \
        tls-config/certChain.pem, key.pem, mesh-ca.pem, coordinator-root-ca.pem\n  \
        secrets/workload-secret-seed (hex)\n  done\n\n\
        Example:\n  initializer --coordinator coordinator:7777 --directory /contrast"
)]
struct Args {
    /// TOML file with any of these options, named as the flags are without the dashes in front.
    #[arg(long, env = "CONTRAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The Coordinator, as host or host:port (port 7777 if none).
    #[arg(long, env = "COORDINATOR_HOST")]
    coordinator: String,
    /// Where to write.
    #[arg(long, env = "CONTRAST_DIRECTORY", default_value = "/contrast")]
    directory: PathBuf,
    /// Make evidence as this simulated machine. Not hardware: protects nothing.
    #[arg(long, env = "CONTRAST_SIMULATED_MACHINE")]
    simulated_machine: PathBuf,
    /// SHA-256 of this pod's policy document, its HOSTDATA on the simulated machine.
    #[arg(long, env = "CONTRAST_POLICY_HASH")]
    policy_hash: PolicyHash,
    /// Give up at the first refusal instead of trying again every 5 seconds.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    log: program::LogOptions,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Args = program::parse(None);
    args.log.init();
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = initialize(&args) => outcome,
        _ = terminate.recv() => anyhow::bail!("SIGTERM before the Coordinator accepted this pod"),
    }
}

async fn initialize(args: &Args) -> anyhow::Result<()> {
    let machine = SimulatedMachine::open(&args.simulated_machine)?;
    let issuer: Arc<dyn Issuer> = Arc::new(machine.guest(args.policy_hash));
    let key = Arc::new(ConnectionKey::generate()?);
    let address = match args.coordinator.contains(':') {
        true => args.coordinator.clone(),
        false => format!("{}:7777", args.coordinator),
    };
    loop {
        let config = ClientConfig {
            key: Arc::clone(&key),
            issuer: Some(Arc::clone(&issuer)),
            handshake_timeout: HANDSHAKE,
        };
        let error = match request(&address, config).await {
            Ok(identity) => {
                files::write(&args.directory, &key, &identity)?;
                tracing::info!(directory = %args.directory.display(), "certificate and secret written");
                return Ok(());
            }
            Err(error) => error,
        };
        if args.once {
            return Err(error);
        }
        tracing::warn!("{error:#}; next try in {RETRY:?}");
        tokio::time::sleep(RETRY).await;
    }
}

async fn request(address: &str, config: ClientConfig) -> anyhow::Result<NewMeshCertResponse> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot reach the Coordinator at {address}"))?;
    stream.set_nodelay(true)?; // or the handshake waits 40 ms for a delayed acknowledgement
    let (stream, _unverified) = atls::connect(stream, &config, now())
        .await
        .with_context(|| format!("the Coordinator at {address} did not accept the connection"))?;
    let once = Mutex::new(Some(TokioIo::new(stream)));
    let once = Arc::new(once);
    let connector = tower::service_fn(move |_| {
        let once = Arc::clone(&once);
        async move { once.lock().await.take().ok_or_else(|| std::io::Error::other("connection closed")) }
    });
    let channel = Endpoint::from_static("http://coordinator").connect_with_connector(connector).await?;
    let answer = MeshApiClient::new(channel).new_mesh_cert(NewMeshCertRequest::default()).await;
    Ok(answer.map_err(|status| anyhow::anyhow!(describe(&status)))?.into_inner())
}

fn describe(status: &Status) -> String {
    match status.code() {
        Code::PermissionDenied => format!("the Coordinator refused this pod: {}", status.message()),
        _ => format!("the Coordinator did not issue a certificate: {}", status.message()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the program's edge, where time enters")]
fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
