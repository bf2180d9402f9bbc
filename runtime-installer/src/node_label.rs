//! The node's label that a runtime's RuntimeClass selects: pods come only where the runtime is ready.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use runtime_bundle::HandlerName;
use serde_json::json;

use crate::fetch::{Http, HttpOptions};

const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// The Kubernetes API as a pod reaches it.
#[derive(Debug)]
pub struct Node {
    url: String,
    token: String,
    http: Http,
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
    /// Reads the service account; `None` outside a cluster.
    pub fn open(options: &NodeOptions) -> anyhow::Result<Option<Self>> {
        let (Some(name), Some(host)) = (&options.name, &options.host) else { return Ok(None) };
        let token = options.service_account.join("token");
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let http = Http::new(&HttpOptions {
            ca_file: Some(options.service_account.join("ca.crt")),
            time_limit: TIME_LIMIT,
            registry_auth: None,
        })?;
        let url = format!("https://{host}:{}/api/v1/nodes/{name}", options.port);
        Ok(Some(Self { url, token: read(&token)?.trim().to_owned(), http }))
    }

    /// Sets or removes the label.
    pub fn label(&self, handler: &HandlerName, ready: bool) -> anyhow::Result<()> {
        let value = if ready { json!("ready") } else { serde_json::Value::Null };
        let patch = json!({ "metadata": { "labels": { runtime_bundle::node_label(handler): value } } });
        self.http
            .patch(&self.url, &self.token, "application/merge-patch+json", patch.to_string().as_bytes())
            .context("cannot label the node; the installer's service account needs the right to patch nodes")
    }
}
