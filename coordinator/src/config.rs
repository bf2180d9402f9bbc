//! Flags, environment and file, in this order of precedence.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use manifest::OwnerKey;

/// Attests workloads against a manifest, issues their certificates and secrets, keeps the history.
#[derive(Clone, Debug, Parser)]
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

    /// Where HTTP clients connect, maybe through a proxy (plain HTTP; the attestation is in the answers).
    /// `off` for none. By default port 1314 beside the user API if the user API is on its standard port, else `off`.
    #[arg(long, env = "CONTRAST_HTTP_LISTEN", value_name = "ADDRESS", value_parser = listen)]
    pub(crate) http_listen: Option<Listen>,

    /// Where workloads use the transit engine (TLS with mesh certificates on both sides). `off` for none.
    /// By default port 8200 beside the user API if the user API is on its standard port, else `off`.
    #[arg(long, env = "CONTRAST_TRANSIT_LISTEN", value_name = "ADDRESS", value_parser = listen)]
    pub(crate) transit_listen: Option<Listen>,

    /// Serve metrics at /metrics beside the probes. As a variable: any value.
    #[arg(long, env = "CONTRAST_METRICS", num_args = 0..=1, default_missing_value = "on", value_name = "ANY")]
    pub(crate) metrics: Option<String>,

    /// Where probes connect (plain HTTP).
    #[arg(long, env = "CONTRAST_PROBE_LISTEN", default_value = "0.0.0.0:9102")]
    pub(crate) probe_listen: SocketAddr,

    /// Lifetime of workload certificates, in seconds; a year if not given. Workloads with short ones need
    /// an initializer that renews them.
    #[arg(long, env = "CONTRAST_CERTIFICATE_SECONDS", value_parser = clap::value_parser!(u64).range(60..=315_360_000))]
    pub(crate) certificate_seconds: Option<u64>,

    /// Accept manifests that believe unsigned evidence (`ReferenceValues.insecure`). Proves nothing.
    #[arg(long, env = "CONTRAST_ALLOW_INSECURE")]
    pub(crate) allow_insecure: bool,

    /// Accept the first manifest only with a detached signature by this key (EC, PKIX DER, as hex). Put it
    /// into the Coordinator's pod spec: its policy covers it, so data owners see that it was there.
    #[arg(long, env = "CONTRAST_BOOTSTRAP_KEY", value_name = "HEX", value_parser = bootstrap_key)]
    pub(crate) bootstrap_key: Option<OwnerKey>,

    /// Handshakes under way at once, on each listener.
    #[arg(long, env = "CONTRAST_MAX_HANDSHAKES", default_value_t = 256)]
    pub(crate) max_handshakes: usize,

    /// Handshakes under way at once from one address (IPv6: from one /64), on each listener.
    #[arg(long, env = "CONTRAST_MAX_HANDSHAKES_PER_SOURCE", default_value_t = 64)]
    pub(crate) max_handshakes_per_source: usize,

    /// Connections at once, on each listener.
    #[arg(long, env = "CONTRAST_MAX_CONNECTIONS", default_value_t = 512)]
    pub(crate) max_connections: usize,

    /// Connections at once from one address (IPv6: from one /64), on each listener; a proxy is one.
    #[arg(long, env = "CONTRAST_MAX_CONNECTIONS_PER_SOURCE", default_value_t = 256)]
    pub(crate) max_connections_per_source: usize,

    /// Longest handshake, evidence included, in seconds; its first message must come within 5.
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
    pub(crate) replicas: crate::replicas::ReplicaOptions,

    #[command(flatten)]
    pub(crate) log: program::LogOptions,
}

/// An address, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen(Option<SocketAddr>);

fn listen(text: &str) -> Result<Listen, String> {
    match text {
        "off" => Ok(Listen(None)),
        address => address
            .parse()
            .map(|address| Listen(Some(address)))
            .map_err(|_| "expected an address with a port, such as 0.0.0.0:1314, or off".to_owned()),
    }
}

impl Config {
    /// The address of a listener that is only there by default beside a standard user API: several
    /// Coordinators on one machine must not fight for its port.
    pub(crate) fn beside_user_api(&self, given: Option<Listen>, port: u16) -> Option<SocketAddr> {
        let standard =
            || (self.user_listen.port() == 1313).then(|| SocketAddr::new(self.user_listen.ip(), port));
        given.map_or_else(standard, |Listen(address)| address)
    }
}

fn bootstrap_key(text: &str) -> Result<OwnerKey, String> {
    let der = hex::decode(text.trim()).map_err(|error| error.to_string())?;
    keys::check_workload_owner_key(&der).map_err(|error| error.to_string())?;
    Ok(OwnerKey::from_der(der))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// `contrast coordinator --env` takes only variables of this list. With `UPDATE_VARIABLES` set it is written instead.
    #[test]
    fn the_list_of_variables_has_every_option() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/resources/coordinator-variables.txt");
        let command = Config::command();
        let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
        let mut names: Vec<String> = names.map(|name| format!("{name}\n")).collect();
        names.sort();
        if std::env::var_os("UPDATE_VARIABLES").is_some() {
            std::fs::write(path, names.concat()).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            names.concat(),
            "run this test with UPDATE_VARIABLES=1"
        );
    }
}
