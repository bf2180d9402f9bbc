//! The initializer: attests to the Coordinator and writes what the workload needs
//! (docs/spec/control-plane.md, section 11).
//!
//! It keeps to the deployment that it met first (`deployment.rs`), and where the pod's policy names workload owners, it
//! takes only one that they vouch for. With neither owners nor a manifest, as upstream's, it takes the first that
//! answers: then a host can have it join a deployment of the host's own at the pod's start.

mod coordinator;
mod deployment;
mod files;
mod peers;
mod refusal;
mod refused;
mod sidecar;
mod volume;
mod waiting;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use atls::ConnectionKey;
use clap::{Parser, Subcommand};
use continuity::Owners;
use coordinator::Coordinator;
use manifest::{KeyDigest, Timestamp};
use program::now;
use refusal::Remembering;
use refused::Refused;
use tokio::{signal::unix::SignalKind, sync::watch};
use waiting::{GaveUp, Patience};
use wire::mesh::NewMeshCertResponse;
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

#[global_allocator]
static ALLOCATOR: program::memory::Wiping = program::memory::Wiping;

/// Pauses between attempts double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often `wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Attests this pod to the Coordinator and writes its certificate chain, key, CAs and secret.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Files written below --directory:\n  \
        tls-config/certChain.pem, key.pem, mesh-ca.pem, coordinator-root-ca.pem\n  \
        secrets/workload-secret-seed (hex)\n\
        Exit codes: 0 done, 1 the Coordinator or this pod was refused, 2 broken, 3 no certificate within\n  \
        --report-after-seconds or --give-up-after-seconds.\n\n\
        Examples:\n  initializer --coordinator coordinator:7777\n  \
        initializer --coordinator coordinator --sidecar --volume /dev/csi0:/state\n  \
        initializer cryptsetup -d /dev/csi0 -m /state"
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// TOML file with any of these options, named as the flags are without the dashes in front.
    #[arg(long, env = "CONTRAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The Coordinator, as host or host:port (port 7777 if none).
    #[arg(long, env = "COORDINATOR_HOST", required = true)]
    coordinator: Option<String>, // subcommands need none
    /// The Coordinator's HTTP API, as host:port, from which a side-car hears whose certificates count in the mesh. The same
    /// host with port 1314 if not given.
    #[arg(long, env = "CONTRAST_COORDINATOR_HTTP", value_name = "HOST:PORT")]
    coordinator_http: Option<String>,
    /// Where to write; /contrast if not given.
    #[arg(long, env = "CONTRAST_DIRECTORY")]
    directory: Option<PathBuf>,
    /// Empty file that says that all is there. /done by default, or `done` in --directory if that is given.
    #[arg(long, env = "CONTRAST_READY_FILE", value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Verify the Coordinator by this manifest before anything of its answer is used. Give it with the
    /// image or the pod's policy: a file that the host can change proves nothing.
    #[arg(long, env = "CONTRAST_VERIFY_COORDINATOR", value_name = "MANIFEST")]
    verify_coordinator: Option<PathBuf>,
    /// SHA-256 of the public keys of workload owners (PKIX DER, hex), joined by commas: only a deployment that they
    /// vouch for is taken. `contrast generate` writes them into the pod, whose policy then pins them.
    #[arg(long, env = "CONTRAST_WORKLOAD_OWNERS", value_delimiter = ',', value_name = "DIGESTS")]
    workload_owners: Vec<KeyDigest>,
    /// How many of them must vouch.
    #[arg(long, env = "CONTRAST_WORKLOAD_OWNERS_NEEDED", default_value_t = 1)]
    workload_owners_needed: usize,
    /// Stay, and renew the certificate before it expires and when the service mesh asks.
    #[arg(long, env = "CONTRAST_SIDECAR")]
    sidecar: bool,
    /// Open this encrypted volume, DEVICE:MOUNT, and stay to keep it mounted.
    #[arg(long, env = "CONTRAST_VOLUME", value_name = "DEVICE:MOUNT")]
    volume: Option<volume::Volume>,
    /// Device of an encrypted volume at /state, as upstream names it.
    #[arg(long, env = "CRYPTSETUP_DEVICE", value_name = "DEVICE", conflicts_with = "volume")]
    cryptsetup_device: Option<PathBuf>,
    #[command(flatten)]
    volume_rules: volume::Rules,
    /// There is no service mesh: let incoming traffic in, which the guest denies from its start.
    #[arg(long, env = "CONTRAST_LIFT_DEFAULT_DENY")]
    lift_default_deny: bool,
    /// Give up at the first refusal instead of trying again, every 5 seconds in the end.
    #[arg(long)]
    once: bool,
    /// Give up after so many seconds without a certificate, so that Kubernetes shows why (--termination-log) and starts
    /// this again; but go on waiting while the reason is the one that was shown last. Never if not given.
    #[arg(long, env = "CONTRAST_REPORT_AFTER_SECONDS", value_name = "SECONDS")]
    report_after_seconds: Option<u64>,
    /// Give up after so many seconds without a certificate, whatever the reason: for containers that Kubernetes waits for
    /// in a way that it cannot break off.
    #[arg(
        long,
        env = "CONTRAST_GIVE_UP_AFTER_SECONDS",
        value_name = "SECONDS",
        conflicts_with_all = ["once", "report_after_seconds"]
    )]
    give_up_after_seconds: Option<u64>,
    /// File whose text Kubernetes shows when the container has ended; written if it is there.
    #[arg(
        long,
        env = "CONTRAST_TERMINATION_LOG",
        value_name = "FILE",
        default_value = "/dev/termination-log"
    )]
    termination_log: PathBuf,
    #[command(flatten)]
    evidence: program::EvidenceOptions,
    #[command(flatten)]
    log: program::LogOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open an encrypted volume and stay to keep it mounted.
    Cryptsetup {
        /// The block device.
        #[arg(long, short)]
        device: PathBuf,
        /// Where to mount it.
        #[arg(long, short)]
        mount_point: PathBuf,
        /// The workload secret that another initializer wrote.
        #[arg(long, default_value = "/contrast/secrets/workload-secret-seed", value_name = "FILE")]
        secret_file: PathBuf,
        #[command(flatten)]
        rules: volume::Rules,
        /// Empty file that says that the volume is there.
        #[arg(long, env = "CONTRAST_READY_FILE", default_value = "/done", value_name = "FILE")]
        ready_file: PathBuf,
    },
    /// Exit with 0 if all is there, else with 1: a probe, for images that hold nothing but this program.
    Ready {
        /// Empty file that says so.
        #[arg(long, env = "CONTRAST_READY_FILE", default_value = "/done", value_name = "FILE")]
        ready_file: PathBuf,
    },
    /// Return when all is there: for Kubernetes to run when the side-car has started (postStart), so that it starts no
    /// other container before.
    Wait {
        /// Fail after so long. Kubernetes cannot end a pod while it runs this.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// Empty file that says that all is there.
        #[arg(long, env = "CONTRAST_READY_FILE", default_value = "/done", value_name = "FILE")]
        ready_file: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Args = program::parse(None);
    args.log.init();
    program::keep_secrets();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error {
        error if error.is::<Refused>() => 1,
        error if error.is::<GaveUp>() => 3,
        _ => 2,
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let mut stop = std::pin::pin!(async move {
        tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
    });
    if let Some(Command::Ready { ready_file }) = &args.command {
        let absent = || Refused(format!("{} is not there yet", ready_file.display())).into();
        return if ready_file.exists() { Ok(()) } else { Err(absent()) };
    }
    if let Some(Command::Wait { seconds, ready_file }) = &args.command {
        let there = async {
            while !ready_file.exists() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let limit = Duration::from_secs(*seconds);
        let late = || Refused(format!("{} is not there after {limit:?}", ready_file.display())).into();
        return tokio::time::timeout(limit, there).await.map_err(|_| late());
    }
    if let Some(Command::Cryptsetup { device, mount_point, secret_file, rules, ready_file }) = args.command {
        let volume = volume::Volume { device, mount_point, rules };
        volume::check_tools()?;
        volume.open(&secret_file).await?;
        files::put(&ready_file, 0o644, b"")?;
        stop.await;
        return volume.close().await;
    }
    if args.lift_default_deny {
        packet_filter::lift_deny().context("cannot lift the guest's default deny")?;
    }
    let directory = args.directory.clone().unwrap_or_else(|| "/contrast".into());
    let ready_file = match (&args.ready_file, &args.directory) {
        (Some(file), _) => file.clone(),
        (None, Some(directory)) => directory.join("done"),
        (None, None) => "/done".into(),
    };
    let rules = args.volume_rules.clone();
    let at_state =
        |device| volume::Volume { device, mount_point: "/state".into(), rules: volume::Rules::default() };
    let volume = args.volume.clone().or_else(|| args.cryptsetup_device.clone().map(at_state));
    let volume = volume.map(|volume| volume::Volume { rules, ..volume });
    if volume.is_some() {
        volume::check_tools()?;
    }

    let patience = match (args.once, args.give_up_after_seconds, args.report_after_seconds) {
        (true, ..) => Patience::Once,
        (false, Some(seconds), _) => Patience::For(Duration::from_secs(seconds)),
        (false, None, Some(seconds)) => Patience::UntilToReport(Duration::from_secs(seconds)),
        (false, None, None) => Patience::Endless,
    };
    let pod = Pod::new(&args, directory)?;
    let mut identity = tokio::select! {
        identity = pod.initialize(patience) => identity?,
        () = &mut stop => anyhow::bail!("told to stop before the Coordinator accepted this pod"),
    };
    if let Some(volume) = &volume {
        volume.open(&pod.directory.join("secrets/workload-secret-seed")).await?;
    }
    files::put(&ready_file, 0o644, b"")?;
    if args.sidecar {
        let (sender, heard) = watch::channel(identity.heard.clone());
        let sender = Arc::new(sender);
        let (own_mesh_ca, own) = watch::channel(identity.mesh_ca.clone());
        let address = pod.peers_address.clone();
        let following = peers::follow(
            address,
            pod.directory.clone(),
            identity.root_key.clone(),
            own,
            Arc::clone(&sender),
        );
        let following = tokio::spawn(following);
        loop {
            let renewal = async {
                let (validity, received) = (identity.validity, identity.received);
                let reason = tokio::select! {
                    reason = sidecar::time_to_renew(&pod.directory, validity, received, now) => reason,
                    () = peers::superseded(heard.clone(), &identity.mesh_ca) => "there is a new mesh CA",
                };
                tracing::info!("renewing the certificate: {reason}");
                pod.initialize(Patience::Endless).await
            };
            tokio::select! {
                renewed = renewal => {
                    identity = renewed?;
                    own_mesh_ca.send_replace(identity.mesh_ca.clone());
                    // Where nobody answers questions, this is all that is heard.
                    sender.send_replace(identity.heard.clone());
                }
                () = &mut stop => break,
            }
        }
        following.abort();
    } else if volume.is_some() {
        stop.await;
    }
    match volume {
        Some(volume) => volume.close().await,
        None => Ok(()),
    }
}

/// What an answer of the Coordinator brought.
struct Identity {
    validity: sidecar::Validity,
    /// When it came.
    received: Timestamp,
    /// The root's public key, SubjectPublicKeyInfo DER.
    root_key: Vec<u8>,
    /// The mesh CA, DER.
    mesh_ca: Vec<u8>,
    heard: peers::Heard,
}

/// What stays the same from one request to the next.
struct Pod {
    coordinator: Coordinator,
    /// Where lists of mesh peers come from.
    peers_address: String,
    directory: PathBuf,
    key: Arc<ConnectionKey>,
    report: waiting::Report,
    owners: Owners,
}

impl Pod {
    fn new(args: &Args, directory: PathBuf) -> anyhow::Result<Self> {
        let issuer = Remembering::new(args.evidence.issuer()?);
        let address = args.coordinator.as_deref().context("--coordinator is missing")?;
        let key = Arc::new(ConnectionKey::generate()?);
        let manifest = args.verify_coordinator.as_deref();
        let coordinator = Coordinator::new(address, Arc::clone(&key), issuer, manifest)?;
        let peers_address =
            (args.coordinator_http.clone()).unwrap_or_else(|| format!("{}:1314", coordinator.host()));
        let report = waiting::Report::new(args.termination_log.clone(), &directory);
        let owners = Owners { keys: args.workload_owners.clone(), needed: args.workload_owners_needed };
        Ok(Self { coordinator, peers_address, directory, key, report, owners })
    }

    /// Asks until the Coordinator issues a certificate, and writes the files.
    async fn initialize(&self, patience: Patience) -> anyhow::Result<Identity> {
        let began = tokio::time::Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            sidecar::hear(&self.directory).await;
            let answer = self.coordinator.new_certificate().await;
            let error = match answer.and_then(|answer| self.take(answer)) {
                Ok(identity) => {
                    self.report.done();
                    return Ok(identity);
                }
                Err(error) => error,
            };
            if self.report.enough(patience, &error, began.elapsed()) {
                // A refusal keeps its own exit code, and so does the failure of a single attempt.
                let as_it_is = error.is::<Refused>() || patience == Patience::Once;
                return Err(if as_it_is { error } else { error.context(GaveUp) });
            }
            tracing::warn!("{error:#}; next try in {pause:?}");
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }
}

impl Pod {
    /// Writes the files, if the answer is of this pod's deployment.
    fn take(&self, mut answer: NewMeshCertResponse) -> anyhow::Result<Identity> {
        let secret = Zeroizing::new(std::mem::take(&mut answer.workload_secret));
        let validity = sidecar::Validity::of(&answer.cert_chain)?;
        let (_, mesh_ca) = parse_x509_pem(&answer.mesh_ca_cert).context("the mesh CA is not PEM")?;
        let shown =
            deployment::accept(&self.directory, &self.owners, &self.key.spki_der(), &answer, &secret)?;
        // A Coordinator of upstream gives none.
        let heard = match answer.mesh_peers.as_slice() {
            [] => peers::Heard::default(),
            bytes => peers::Heard::from(&peers::take(&self.directory, &shown.root_key, bytes)?),
        };
        files::write(&self.directory, &self.key, &answer, &secret)?;
        tracing::info!(directory = %self.directory.display(), "certificate and secret written");
        let (root_key, mesh_ca) = (shown.root_key, mesh_ca.contents);
        Ok(Identity { validity, received: now(), root_key, mesh_ca, heard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_generate_writes_into_pods_is_understood() {
        let helper = ["initializer", "cryptsetup", "-d", "/dev/state", "-m", "/data"];
        assert!(matches!(Args::parse_from(helper).command, Some(Command::Cryptsetup { .. })));
        let of_a_set = [helper.as_slice(), &["--stateful-set", "db", "--adopt-volume"]].concat();
        assert!(matches!(Args::parse_from(of_a_set).command, Some(Command::Cryptsetup { .. })));
        assert!(Args::try_parse_from(["initializer"]).is_err(), "the Coordinator is needed");
    }

    #[tokio::test]
    async fn ready_says_whether_the_file_is_there() {
        // This program is there, and nothing is below it.
        let there = std::env::current_exe().unwrap();
        let absent = there.join("done");
        let ready = |file: &std::path::Path| {
            run(Args::parse_from(["initializer", "ready", "--ready-file", file.to_str().unwrap()]))
        };
        assert!(ready(&absent).await.unwrap_err().is::<Refused>());
        ready(&there).await.unwrap();
    }
}
