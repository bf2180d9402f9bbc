//! Flags, environment and file, in this order of precedence.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, ValueEnum};
use manifest::PolicyHash;

/// Attests workloads against a manifest, issues their certificates and secrets, keeps the history.
#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version,
    after_help = "Examples:\n  \
        coordinator --state-dir /var/lib/contrast --simulated-machine ./machine --policy-hash 1f3c...\n  \
        CONTRAST_LOG_FORMAT=json coordinator --state-dir ./state --user-listen 127.0.0.1:0 ...\n\n\
        SIGTERM and SIGINT stop accepting, finish what is under way (20 s), then exit."
)]
pub(crate) struct Config {
    /// TOML file with any of these options, named as the flags are without their dashes in front.
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

    /// Make evidence as this simulated machine. Not hardware: protects nothing.
    #[arg(long, env = "CONTRAST_SIMULATED_MACHINE", value_name = "DIR")]
    pub(crate) simulated_machine: PathBuf,

    /// SHA-256 of this Coordinator's own policy document, its HOSTDATA on the simulated machine.
    #[arg(long, env = "CONTRAST_POLICY_HASH", value_name = "HEX")]
    pub(crate) policy_hash: PolicyHash,

    /// Handshakes under way at once, on each listener.
    #[arg(long, env = "CONTRAST_MAX_HANDSHAKES", default_value_t = 256)]
    pub(crate) max_handshakes: usize,

    /// Connections at once, on each listener.
    #[arg(long, env = "CONTRAST_MAX_CONNECTIONS", default_value_t = 4096)]
    pub(crate) max_connections: usize,

    /// Longest handshake, evidence included, in seconds.
    #[arg(long, env = "CONTRAST_HANDSHAKE_SECONDS", default_value_t = 30)]
    pub(crate) handshake_seconds: u64,

    /// What to log: a level, or tracing directives such as `info,actors=debug`.
    #[arg(long, env = "CONTRAST_LOG_LEVEL", default_value = "info")]
    pub(crate) log_level: String,

    /// How to log.
    #[arg(long, env = "CONTRAST_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

impl Config {
    /// Reads the command line and, if it or the environment names one, the file. A file's option
    /// counts where neither flag nor variable gives it.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let mut arguments: Vec<OsString> = std::env::args_os().collect();
        let named = arguments.iter().position(|argument| argument == "--config");
        let path = named.and_then(|at| arguments.get(at + 1).cloned());
        if let Some(path) = path.or_else(|| std::env::var_os("CONTRAST_CONFIG")) {
            let path = PathBuf::from(path);
            let place = path.display().to_string();
            let text = std::fs::read_to_string(&path).with_context(|| format!("--config {place}"))?;
            let options: toml::Table = toml::from_str(&text).with_context(|| place.clone())?;
            let given = |flag: &OsString| {
                let text = flag.to_string_lossy().into_owned();
                arguments.iter().any(|a| a == flag || a.to_string_lossy().starts_with(&format!("{text}=")))
            };
            let mut from_file = Vec::new();
            for (name, value) in options {
                let command = Self::command();
                let argument = command.get_arguments().find(|a| a.get_long() == Some(name.as_str()));
                let argument = argument.with_context(|| format!("{place}: unknown option {name:?}"))?;
                let flag = OsString::from(format!("--{name}"));
                let in_environment = argument.get_env().is_some_and(|key| std::env::var_os(key).is_some());
                if !given(&flag) && !in_environment {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    from_file.extend([flag, value.into()]);
                }
            }
            arguments.extend(from_file);
        }
        Ok(Self::parse_from(arguments))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}
