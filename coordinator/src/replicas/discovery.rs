//! Where the other replicas are: a list of addresses and names, or the ready pods of a Kubernetes
//! service. Discovery is not trusted: whoever is found must prove to be a Coordinator.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use super::{kubernetes::Service, options::ReplicaOptions};

const LOOKUP: Duration = Duration::from_secs(3);
/// Most peers that are talked to.
const MOST: usize = 64;

/// Finds peers.
pub(crate) struct Discovery {
    names: Vec<String>,
    service: Option<Arc<Service>>,
    own: Option<SocketAddr>,
}

impl Discovery {
    pub(crate) fn new(options: &ReplicaOptions) -> anyhow::Result<Self> {
        let service = options.peers_service.as_ref().map(|service| {
            Service::new(service, options.kubernetes_api.as_deref(), &options.kubernetes_credentials)
        });
        let service = service.transpose()?.map(Arc::new);
        Ok(Self { names: options.peers.clone(), service, own: options.own })
    }

    /// Addresses of the peers, each once, without this replica's own.
    pub(super) async fn peers(&self) -> Vec<String> {
        let mut found = BTreeSet::new();
        for name in &self.names {
            match tokio::time::timeout(LOOKUP, tokio::net::lookup_host(name)).await {
                Ok(Ok(addresses)) => found.extend(addresses),
                Ok(Err(error)) => tracing::debug!(%name, %error, "peer not found"),
                Err(_) => tracing::debug!(%name, "no answer about a peer's address in time"),
            }
        }
        if let Some(service) = self.service.clone() {
            match tokio::task::spawn_blocking(move || service.endpoints()).await {
                Ok(Ok(addresses)) => found.extend(addresses),
                Ok(Err(error)) => tracing::warn!(error = %format!("{error:#}"), "no peers from Kubernetes"),
                Err(error) => tracing::error!(%error, "asking Kubernetes for peers"),
            }
        }
        let others = found.into_iter().filter(|address| Some(*address) != self.own);
        others.take(MOST).map(|address| address.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_become_addresses_without_ones_own() {
        let own = "127.0.0.1:7777".parse().ok();
        let names = ["127.0.0.1:7777", "127.0.0.1:7778", "localhost:7778", "nowhere.invalid:1"];
        let discovery = Discovery { names: names.map(str::to_owned).to_vec(), service: None, own };
        let found = discovery.peers().await;
        assert!(found.contains(&"127.0.0.1:7778".to_owned()));
        assert!(!found.contains(&"127.0.0.1:7777".to_owned()));
        assert!(found.iter().filter(|address| *address == "127.0.0.1:7778").count() == 1);
    }
}
