//! The service mesh: wraps a pod's traffic in mutual TLS (docs/spec/data-plane.md, section 2).
//!
//! Order matters: the packet filter first, so that nothing passes; then the initializer, if it runs here; then
//! the certificate; then the sockets. If this program ends, the packet filter stays, finds no socket, and drops what comes.

mod access_log;
mod admin;
mod capacity;
mod egress;
mod gate;
mod identity;
mod ingress;
mod initializer;
mod metrics;
mod peer;
mod renewal;
mod tunnel;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use mesh_config::{Egress, Ingress, Peers, PortMode};
use packet_filter::{Redirection, UnlistedPorts};
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch, task::JoinSet};

use crate::{
    access_log::AccessLog,
    gate::{Gate, Limits},
    identity::Sources,
    ingress::{ClientAuth, OwnPorts},
    initializer::{Ended, Initializer},
    metrics::Metrics,
    peer::Trust,
    renewal::Renewal,
};

#[global_allocator]
static ALLOCATOR: program::memory::Wiping = program::memory::Wiping;

/// How often `wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Wraps this pod's traffic in mutual TLS with the certificate that the initializer got.
///
/// Incoming TCP is redirected and needs a client certificate of the mesh, whatever its port; all else
/// that comes in is dropped. Outgoing TCP is wrapped where an egress entry leads. Needs CAP_NET_ADMIN.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Outgoing traffic that no egress entry covers, and UDP, is not wrapped.\n\n\
        Example:\n  service-mesh --ingress 'web#8080#false##metrics#9100#true' \\\n    \
        --egress 'billing#127.137.0.1:8081#billing:8080' --admin-port 9901"
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// TOML file with any of these options, named as the flags are without the dashes in front.
    #[arg(long, env = "CONTRAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ports that differ: NAME#PORT#MODE, joined by ##. Mode `false`: TLS without client certificates;
    /// `true`: neither redirected nor wrapped; `mutual`: as unlisted ports, for --unlisted-ports deny. DISABLED: no port
    /// is, and whatever comes in is unprotected.
    #[arg(long, env = "CONTRAST_INGRESS_PROXY_CONFIG", default_value = "", hide_default_value = true)]
    ingress: Ingress,
    /// Remote services: NAME#LISTEN_IP:PORT#REMOTE_HOST:PORT, joined by ##.
    #[arg(long, env = "CONTRAST_EGRESS_PROXY_CONFIG", default_value = "", hide_default_value = true)]
    egress: Egress,
    /// Who may be at the other end: PORT_OR_EGRESS_NAME#PEER,PEER, joined by ##. Peers are names, URIs or
    /// addresses of the manifest. Without an entry: any workload of the deployment.
    #[arg(long, env = "CONTRAST_MESH_PEERS", default_value = "", hide_default_value = true)]
    peers: Peers,
    /// What happens to TCP ports that --ingress does not list.
    #[arg(long, env = "CONTRAST_UNLISTED_PORTS", value_enum, default_value_t = Unlisted::MutualTls)]
    unlisted_ports: Unlisted,
    /// UDP ports to let in, unprotected.
    #[arg(long, env = "CONTRAST_PLAIN_UDP_PORTS", value_delimiter = ',')]
    plain_udp_ports: Vec<u16>,
    /// Port of the admin interface (/ready, /metrics); none without it.
    #[arg(long, env = "CONTRAST_ADMIN_PORT")]
    admin_port: Option<u16>,
    /// Write a line of JSON to standard output for each connection that ended or was refused.
    #[arg(long, env = "CONTRAST_ACCESS_LOG")]
    access_log: bool,
    /// Whom to believe: certificates of the manifest in force, or of the whole deployment.
    #[arg(long, env = "CONTRAST_MESH_TRUST", value_enum, default_value_t = Trust::MeshCa)]
    trust: Trust,
    /// Where the initializer wrote.
    #[arg(long, env = "CONTRAST_DIRECTORY", default_value = "/contrast")]
    directory: PathBuf,
    /// Port of the socket for connections with client certificates.
    #[arg(long, env = "CONTRAST_MUTUAL_TLS_PORT", default_value_t = 15006)]
    mutual_tls_port: u16,
    /// Port of the socket for connections without.
    #[arg(long, env = "CONTRAST_SERVER_TLS_PORT", default_value_t = 15007)]
    server_tls_port: u16,
    /// Start this initializer once the packet filter stands, and keep it. Without it, another container runs it.
    #[arg(long, env = "CONTRAST_INITIALIZER", value_name = "FILE")]
    initializer: Option<PathBuf>,
    /// Connections at once; more wait. What the pod's memory and descriptors carry if not given.
    #[arg(long, env = "CONTRAST_MAX_CONNECTIONS")]
    max_connections: Option<usize>,
    /// Handshakes at once; more wait.
    #[arg(long, env = "CONTRAST_MAX_HANDSHAKES", default_value_t = 1024)]
    max_handshakes: usize,
    /// Connections at once from one address (IPv6: from one /64); more are reset. The application is one, too. Four
    /// fifths of all if not given.
    #[arg(long, env = "CONTRAST_MAX_CONNECTIONS_PER_SOURCE")]
    max_connections_per_source: Option<usize>,
    /// Handshakes at once from one address; more wait.
    #[arg(long, env = "CONTRAST_MAX_HANDSHAKES_PER_SOURCE", default_value_t = 256)]
    max_handshakes_per_source: usize,
    /// Longest handshake, in seconds.
    #[arg(long, env = "CONTRAST_HANDSHAKE_SECONDS", default_value_t = 10)]
    handshake_seconds: u64,
    /// How long connections may go on after SIGTERM, in seconds.
    #[arg(long, env = "CONTRAST_DRAIN_SECONDS", default_value_t = 20)]
    drain_seconds: u64,
    #[command(flatten)]
    log: program::LogOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Drop everything incoming until the mesh takes over; for the guest's start.
    Deny,
    /// Return when the mesh of this container is up; it shares the mesh's environment.
    Wait {
        /// Fail after so long. Kubernetes cannot end a pod while it runs this.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Unlisted {
    /// Served with mutual TLS.
    MutualTls,
    /// Dropped.
    Deny,
}

fn main() -> ExitCode {
    let args: Args = program::parse(None);
    args.log.init();
    program::keep_secrets();
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(error.downcast_ref::<Ended>().map_or(1, Ended::exit_code))
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(Command::Deny) => {
            packet_filter::deny_incoming()?;
            tracing::info!("everything incoming is dropped until the service mesh runs");
            return Ok(());
        }
        Some(Command::Wait { seconds }) => return wait(args.mutual_tls_port, Duration::from_secs(seconds)),
        None => {}
    }
    // First of all, and nothing that follows undoes it.
    packet_filter::redirect(&redirection(&args)).context("nothing may pass unprotected, so nothing runs")?;
    tracing::info!("incoming TCP is redirected; the rest is dropped");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")?.block_on(run(args))
}

/// The mesh opens its sockets when it has a certificate, this one last.
fn wait(port: u16, limit: Duration) -> anyhow::Result<()> {
    let began = std::time::Instant::now();
    while std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(began.elapsed() < limit, "the mesh is not up after {limit:?}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn redirection(args: &Args) -> Redirection {
    let ports = |mode| args.ingress.ports(mode).collect::<BTreeSet<u16>>();
    Redirection {
        mutual_tls: args.mutual_tls_port,
        server_tls: args.server_tls_port,
        without_client_certificate: ports(PortMode::ServerTls),
        plain: ports(PortMode::Plain),
        unlisted: match args.unlisted_ports {
            _ if args.ingress.disabled => UnlistedPorts::Plain,
            Unlisted::MutualTls => UnlistedPorts::MutualTls,
            Unlisted::Deny => UnlistedPorts::Deny,
        },
        with_client_certificate: ports(PortMode::MutualTls),
        plain_udp: args.plain_udp_ports.iter().copied().collect(),
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let mut stop = std::pin::pin!(async move {
        tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
    });
    args.peers.check(&args.egress).context("--peers")?;
    if args.ingress.disabled {
        tracing::warn!("incoming TCP is not protected: the ingress configuration says DISABLED");
    }
    let (sender, mut identity) = watch::channel(None);
    let metrics = Arc::new(Metrics::default());
    let (_still_running, never) = watch::channel(false); // tasks end by being aborted
    let mut tasks = JoinSet::new();
    if let Some(port) = args.admin_port {
        let socket = TcpListener::bind(("::", port)).await;
        let socket = match socket {
            Ok(socket) => socket,
            Err(_) => {
                TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("admin port {port}"))?
            }
        };
        tasks.spawn(admin::serve(socket, identity.clone(), Arc::clone(&metrics), never.clone()));
    }
    let sources = Sources { directory: args.directory.clone(), trust: args.trust, peers: args.peers };
    tasks.spawn(identity::watch(sources, sender));
    tracing::info!(directory = %args.directory.display(), "waiting for the initializer's certificate");
    let mut initializer = args.initializer.as_deref().map(Initializer::start).transpose()?;
    let ended = async {
        match &mut initializer {
            Some(initializer) => initializer.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        first = identity.wait_for(Option::is_some) => drop(first?),
        ended = ended => return Err(ended),
        () = &mut stop => return Ok(()),
    }
    if let Some(initializer) = initializer {
        tasks.spawn(initializer.keep());
    }

    let connections = capacity::connections(args.max_connections);
    let limits = Limits {
        connections,
        handshakes: args.max_handshakes,
        connections_per_source: args.max_connections_per_source.unwrap_or((connections / 5 * 4).max(1)),
        handshakes_per_source: args.max_handshakes_per_source,
        handshake: Duration::from_secs(args.handshake_seconds),
        connect: Duration::from_secs(args.handshake_seconds),
    };
    let access_log = if args.access_log { AccessLog::to_standard_output() } else { AccessLog::default() };
    let gate = Arc::new(Gate::new(limits, metrics, identity, Renewal::new(&args.directory), access_log));
    let own = OwnPorts([args.mutual_tls_port, args.server_tls_port]);
    for entry in args.egress.0 {
        tasks.spawn(egress::Egress::listen(entry).await?.serve(Arc::clone(&gate)));
    }
    let sockets = [(args.server_tls_port, ClientAuth::None), (args.mutual_tls_port, ClientAuth::Required)];
    for (port, clients) in sockets {
        for listener in ingress::listen(port)? {
            tasks.spawn(ingress::serve(listener, clients, own, Arc::clone(&gate)));
        }
    }
    tracing::info!("the mesh is up");
    tokio::select! {
        ended = tasks.join_next() => anyhow::bail!("a part of the mesh ended: {ended:?}"),
        () = stop => {}
    }
    tasks.abort_all(); // closes the sockets
    let drain = Duration::from_secs(args.drain_seconds);
    tracing::info!("stopping; connections may go on for {drain:?}");
    let _ = tokio::time::timeout(drain, gate.drained()).await;
    Ok(())
}
