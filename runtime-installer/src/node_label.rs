//! The node's label that a runtime's RuntimeClass selects: pods come only where the runtime is ready.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use program::KubernetesApi;
use runtime_bundle::HandlerName;
use serde_json::json;

const TIME_LIMIT: Duration = Duration::from_secs(30);
const TRIES: u32 = 3;

/// The Kubernetes API as a pod reaches it.
#[derive(Debug)]
pub struct Node {
    api: KubernetesApi,
    path: String,
}

/// How to reach it.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Name of this node; without it nothing is labelled.
    pub name: Option<String>,
    /// Host of the API.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// Folder with `token` and `ca.crt`.
    pub service_account: PathBuf,
}

impl Node {
    /// The node of this pod; `None` outside a cluster.
    pub fn open(options: &NodeOptions) -> Option<Self> {
        let (Some(name), Some(host)) = (&options.name, &options.host) else { return None };
        let address = KubernetesApi::address(host, options.port);
        let api = KubernetesApi::new(&address, &options.service_account, TIME_LIMIT);
        Some(Self { api, path: format!("/api/v1/nodes/{name}") })
    }

    /// Sets or removes the label.
    pub fn label(&self, handler: &HandlerName, ready: bool) -> anyhow::Result<()> {
        let value = if ready { json!("ready") } else { serde_json::Value::Null };
        let patch = json!({ "metadata": { "labels": { runtime_bundle::node_label(handler): value } } });
        let mut tried = 1;
        loop {
            match self.api.merge_patch(&self.path, &patch.to_string()) {
                Err(error) if error.may_pass() && tried < TRIES => {
                    let pause = Duration::from_secs(1 << (tried - 1));
                    tracing::warn!(%error, ?pause, "trying again");
                    std::thread::sleep(pause);
                    tried += 1;
                }
                outcome => {
                    return outcome.map(drop).context(
                        "cannot label the node; the installer's service account needs the right to patch nodes",
                    );
                }
            }
        }
    }
}
