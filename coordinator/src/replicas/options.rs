//! Flags of a replica.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::ensure;
use etcd_store::{EtcdArgs, EtcdOptions};

/// Several Coordinators on one etcd. Without etcd this Coordinator is the only one, and the state
/// directory is its store.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Several replicas")]
pub(crate) struct ReplicaOptions {
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,

    /// Mesh addresses of the other replicas, for secrets and signed heads; host:port, this one's own may
    /// be among them. A name with several addresses, such as a headless service, stands for all of them.
    #[arg(long, env = "CONTRAST_PEERS", value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) peers: Vec<String>,

    /// Kubernetes service whose endpoints are the other replicas; asks the API server with the pod's service
    /// account, which must be allowed to list endpointslices in that namespace; in the pod's own one if none is
    /// given. Instead of, or beside, --peers.
    #[arg(long, env = "CONTRAST_PEERS_SERVICE", value_name = "[NAMESPACE/]NAME")]
    pub(crate) peers_service: Option<String>,

    /// Address of the Kubernetes API server, https://; without it, the one that the pod's environment names.
    #[arg(long, env = "CONTRAST_KUBERNETES_API", value_name = "URL", requires = "peers_service")]
    pub(crate) kubernetes_api: Option<String>,

    /// Directory with the token, the ca.crt and the namespace of the service account.
    #[arg(
        long,
        env = "CONTRAST_KUBERNETES_CREDENTIALS",
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    pub(crate) kubernetes_credentials: PathBuf,

    /// Time between two exchanges of signed heads with each peer, in seconds.
    #[arg(long, env = "CONTRAST_EXCHANGE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) exchange_seconds: u64,

    /// Size of what etcd holds, in MiB, above which segments and evidence that every replica has a copy of are
    /// deleted there; below half of etcd's quota, which is 2048 unless etcd was told otherwise. "never" where the
    /// state directories do not outlive the pods.
    #[arg(long, env = "CONTRAST_ETCD_TRIM_ABOVE", value_name = "MIB", default_value = "1024", value_parser = trim_above)]
    pub(crate) etcd_trim_above: u64,

    /// This replica's own mesh address, which is left out among the peers.
    #[arg(skip)]
    pub(crate) own: Option<SocketAddr>,
}

fn trim_above(text: &str) -> Result<u64, String> {
    match text {
        "never" => Ok(u64::MAX),
        _ => text.parse().map_err(|_| "a number of MiB or \"never\" is wanted".into()),
    }
}

impl ReplicaOptions {
    pub(super) fn exchange_every(&self) -> Duration {
        Duration::from_secs(self.exchange_seconds)
    }

    /// How to reach etcd, if it is to be used.
    pub(super) fn etcd(&self) -> anyhow::Result<Option<EtcdOptions>> {
        let options = self.etcd.options()?;
        ensure!(
            options.is_some() || (self.peers.is_empty() && self.peers_service.is_none()),
            "peers need a store that all replicas share: give --etcd-endpoints"
        );
        Ok(options)
    }
}
