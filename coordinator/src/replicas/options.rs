//! Flags of a replica.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use etcd_store::{EtcdOptions, TlsFiles};

/// Longest wait for etcd, all its members asked; a request that needs a write fails after it.
const ETCD_DEADLINE: Duration = Duration::from_secs(6);

/// Several Coordinators on one etcd.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Several replicas")]
pub(crate) struct ReplicaOptions {
    /// Members of the etcd cluster that all replicas share, http:// or https://. Without it this
    /// Coordinator is the only one, and the state directory is its store.
    #[arg(long, env = "CONTRAST_ETCD_ENDPOINTS", value_name = "URL", value_delimiter = ',')]
    pub(crate) etcd_endpoints: Vec<String>,

    /// What every key in etcd begins with; one for each deployment.
    #[arg(long, env = "CONTRAST_ETCD_PREFIX", default_value = "contrast/")]
    pub(crate) etcd_prefix: String,

    /// Authority of etcd's certificates, PEM.
    #[arg(long, env = "CONTRAST_ETCD_CA", value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,

    /// Client certificate for etcd, PEM.
    #[arg(long, env = "CONTRAST_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub(crate) etcd_cert: Option<PathBuf>,

    /// Key of the client certificate, PEM.
    #[arg(long, env = "CONTRAST_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,

    /// etcd user.
    #[arg(long, env = "CONTRAST_ETCD_USER", requires = "etcd_password_file")]
    pub(crate) etcd_user: Option<String>,

    /// File with that user's password.
    #[arg(long, env = "CONTRAST_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    pub(crate) etcd_password_file: Option<PathBuf>,

    /// Mesh addresses of the other replicas, for secrets and signed heads; host:port, this one's own may
    /// be among them. A name with several addresses, such as a headless service, stands for all of them.
    #[arg(long, env = "CONTRAST_PEERS", value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) peers: Vec<String>,

    /// Time between two exchanges of signed heads with each peer, in seconds.
    #[arg(long, env = "CONTRAST_EXCHANGE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) exchange_seconds: u64,

    /// This replica's own mesh address, which is left out among the peers.
    #[arg(skip)]
    pub(crate) own: Option<SocketAddr>,
}

impl ReplicaOptions {
    pub(super) fn exchange_every(&self) -> Duration {
        Duration::from_secs(self.exchange_seconds)
    }

    /// How to reach etcd, if it is to be used.
    pub(super) fn etcd(&self) -> anyhow::Result<Option<EtcdOptions>> {
        if self.etcd_endpoints.is_empty() {
            ensure!(
                self.peers.is_empty(),
                "peers need a store that all replicas share: give --etcd-endpoints"
            );
            return Ok(None);
        }
        let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
        let tls = self.etcd_ca.clone().map(|ca| TlsFiles { ca, identity });
        let is_https = self.etcd_endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        ensure!(!is_https || tls.is_some(), "https:// endpoints need --etcd-ca");
        let user = match (&self.etcd_user, &self.etcd_password_file) {
            (Some(user), Some(file)) => {
                let password = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Some((user.clone(), password.trim_end().to_owned().into()))
            }
            _ => None,
        };
        Ok(Some(EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            prefix: self.etcd_prefix.clone(),
            tls,
            user,
            deadline: ETCD_DEADLINE,
        }))
    }
}
