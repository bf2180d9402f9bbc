//! Flags, environment and file, in this order of precedence.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;

/// Attests workloads against a manifest, issues their certificates and secrets, keeps the history.
#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version,
    after_help = "Examples:\n  \
        coordinator --state-dir /var/lib/contrast\n  \
        coordinator --state-dir ./state --simulated-machine ./machine --policy-hash 1f3c...\n  \
        CONTRAST_LOG_FORMAT=json coordinator --state-dir ./state --user-listen 127.0.0.1:0 ...\n\n\
        SIGTERM and SIGINT stop accepting, finish what is under way (20 s), then exit."
)]
pub(crate) struct Config {
    /// TOML file with any of these options, named as the flags are without the dashes in front.
    #[arg(long, env = "CONTRAST_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Directory of the event log.
    #[arg(long, env = "CONTRAST_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,

    /// Where operators and data owners connect (attested TLS).
    #[arg(long, env = "CONTRAST_USER_LISTEN", default_value = "0.0.0.0:1313")]
    pub(crate) user_listen: SocketAddr,

    /// Where workloads connect (attested TLS on both sides).
    #[arg(long, env = "CONTRAST_MESH_LISTEN", default_value = "0.0.0.0:7777")]
    pub(crate) mesh_listen: SocketAddr,

    /// Where probes connect (plain HTTP).
    #[arg(long, env = "CONTRAST_PROBE_LISTEN", default_value = "0.0.0.0:9102")]
    pub(crate) probe_listen: SocketAddr,

    /// Handshakes under way at once, on each listener.
    #[arg(long, env = "CONTRAST_MAX_HANDSHAKES", default_value_t = 256)]
    pub(crate) max_handshakes: usize,

    /// Handshakes under way at once from one address (IPv6: from one /64), on each listener.
    #[arg(long, env = "CONTRAST_MAX_HANDSHAKES_PER_SOURCE", default_value_t = 64)]
    pub(crate) max_handshakes_per_source: usize,

    /// Connections at once, on each listener.
    #[arg(long, env = "CONTRAST_MAX_CONNECTIONS", default_value_t = 4096)]
    pub(crate) max_connections: usize,

    /// Longest handshake, evidence included, in seconds.
    #[arg(long, env = "CONTRAST_HANDSHAKE_SECONDS", default_value_t = 30)]
    pub(crate) handshake_seconds: u64,

    /// Time between two checkpoints of the event log, in seconds.
    #[arg(long, env = "CONTRAST_CHECKPOINT_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) checkpoint_seconds: u64,

    #[command(flatten)]
    pub(crate) evidence: program::EvidenceOptions,

    #[command(flatten)]
    pub(crate) endorsements: endorsements::EndorsementOptions,

    #[command(flatten)]
    pub(crate) log: program::LogOptions,
}
