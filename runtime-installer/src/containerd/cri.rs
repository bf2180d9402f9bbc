//! Asking containerd over the Container Runtime Interface.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::transport::{Channel, Endpoint};

/// The generated types.
pub mod proto {
    #![allow(
        clippy::allow_attributes_without_reason,
        clippy::all,
        missing_docs,
        unreachable_pub,
        reason = "generated; the .proto file is the documentation"
    )]

    tonic::include_proto!("runtime.v1");
}

use proto::{StatusRequest, VersionRequest, runtime_service_client::RuntimeServiceClient};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What containerd says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Version of containerd.
    pub version: String,
    /// Whether it can run containers.
    pub ready: bool,
    /// Handlers, with the type of runtime that each one starts.
    pub handlers: BTreeMap<String, String>,
}

/// Why containerd gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nobody there, or not in time.
    #[error("containerd does not answer at {socket}: {reason}")]
    Silent {
        /// Its socket.
        socket: String,
        /// What happened.
        reason: String,
    },
    /// An answer without the list of handlers.
    #[error("containerd at {0} does not say which handlers it has")]
    NoHandlers(String),
    /// No executor.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A client for one socket. Each call connects anew: containerd comes and goes.
#[derive(Debug)]
pub struct Cri {
    socket: PathBuf,
    runtime: Runtime,
}

impl Cri {
    /// A client for the socket at `socket`.
    pub fn new(socket: &Path) -> Result<Self, CriError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { socket: socket.to_owned(), runtime })
    }

    /// How containerd is. Answers or fails within 10 seconds.
    pub fn health(&self) -> Result<Health, CriError> {
        self.call(async |mut client| {
            let version = client.version(VersionRequest::default()).await?.into_inner();
            let status = client.status(StatusRequest { verbose: true }).await?.into_inner();
            Ok((version, status))
        })
        .and_then(|(version, status)| {
            let conditions = status.status.map(|status| status.conditions).unwrap_or_default();
            let ready =
                conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status);
            let handlers = handlers(status.info.get("config").map_or("", String::as_str));
            let handlers = handlers.ok_or_else(|| CriError::NoHandlers(self.name()))?;
            Ok(Health { version: version.runtime_version, ready, handlers })
        })
    }

    /// Makes one or a few calls, within a deadline.
    pub fn call<T>(
        &self,
        calls: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, CriError> {
        let silent = |reason: String| CriError::Silent { socket: self.name(), reason };
        self.runtime.block_on(async {
            let connected = tokio::time::timeout(ANSWER, connect(self.socket.clone())).await;
            let channel = connected
                .map_err(|_| silent(format!("no connection in {ANSWER:?}")))?
                .map_err(|error| silent(innermost(&error)))?;
            let client = RuntimeServiceClient::new(channel);
            let answered = tokio::time::timeout(ANSWER, calls(client)).await;
            answered
                .map_err(|_| silent(format!("no answer in {ANSWER:?}")))?
                .map_err(|status| silent(status.message().to_owned()))
        })
    }

    fn name(&self) -> String {
        self.socket.display().to_string()
    }
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://containerd").connect_with_connector(connector).await
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Handlers in the configuration that containerd says it runs with.
fn handlers(config: &str) -> Option<BTreeMap<String, String>> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    let runtimes = config.pointer("/containerd/runtimes")?.as_object()?;
    let kind = |runtime: &serde_json::Value| {
        let kind = runtime.get("runtimeType").and_then(serde_json::Value::as_str);
        kind.unwrap_or_default().to_owned()
    };
    Some(runtimes.iter().map(|(name, runtime)| (name.clone(), kind(runtime))).collect())
}
