//! The Kubernetes API, as a pod asks it with its service account. Blocks.
//!
//! The token goes to the server whose certificate leads to the account's own CA, to nobody else: no proxy is asked, no
//! redirect followed. Token and CA are read each time, because Kubernetes renews both.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ureq::{
    Agent, Body,
    http::Response,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider},
};

/// Longest answer that is read, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// The API server, and the account that speaks to it.
#[derive(Debug)]
pub struct KubernetesApi {
    url: String,
    account: PathBuf,
    patience: Duration,
}

/// Why the API gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The account is not there.
    #[error("{}: {source}", path.display())]
    Account {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The account's CA is none.
    #[error("{}: no certificate (PEM) is in it", .0.display())]
    NoCa(PathBuf),
    /// No answer, or a refusal.
    #[error("asking {url}: {source}")]
    Api {
        /// What was asked.
        url: String,
        /// Why.
        source: ureq::Error,
    },
}

impl KubernetesError {
    /// Whether another time may help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Account { .. } | Self::NoCa(_) => false,
            Self::Api { source: ureq::Error::StatusCode(status), .. } => *status >= 500 || *status == 429,
            Self::Api { source, .. } => !matches!(source, ureq::Error::BadUri(_) | ureq::Error::Rustls(_)),
        }
    }
}

impl KubernetesApi {
    /// The API at an `https://` address. `account` is the folder with `token` and `ca.crt`.
    pub fn new(url: &str, account: &Path, patience: Duration) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), account: account.to_owned(), patience }
    }

    /// The API server's address as every pod has it in its environment.
    pub fn address_in_pod() -> Option<String> {
        let value = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self::address(&value("KUBERNETES_SERVICE_HOST")?, value("KUBERNETES_SERVICE_PORT")?))
    }

    /// The address of an API server.
    pub fn address(host: &str, port: impl fmt::Display) -> String {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("https://{host}:{port}")
    }

    /// Gets an object or a list.
    pub fn get(&self, path: &str) -> Result<Vec<u8>, KubernetesError> {
        let (agent, authorization) = self.agent()?;
        let url = self.at(path);
        let answer = agent.get(&url).header("Authorization", authorization).call();
        self.read(url, answer)
    }

    /// Changes an object by a JSON merge patch.
    pub fn merge_patch(&self, path: &str, patch: &str) -> Result<Vec<u8>, KubernetesError> {
        let (agent, authorization) = self.agent()?;
        let url = self.at(path);
        let request = agent.patch(&url).header("Authorization", authorization);
        let answer = request.header("Content-Type", "application/merge-patch+json").send(patch);
        self.read(url, answer)
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn read(
        &self,
        url: String,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Vec<u8>, KubernetesError> {
        let read =
            |answer: Response<Body>| answer.into_body().into_with_config().limit(MOST_BYTES).read_to_vec();
        answer.and_then(read).map_err(|source| KubernetesError::Api { url, source })
    }

    fn agent(&self) -> Result<(Agent, String), KubernetesError> {
        let file = |name: &str| {
            let path = self.account.join(name);
            std::fs::read(&path).map_err(|source| KubernetesError::Account { path, source })
        };
        let (token, ca) = (file("token")?, file("ca.crt")?);
        let certificate = |item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        };
        let roots: Vec<Certificate<'static>> = ureq::tls::parse_pem(&ca).filter_map(certificate).collect();
        if roots.is_empty() {
            return Err(KubernetesError::NoCa(self.account.join("ca.crt")));
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .root_certs(RootCerts::from(roots))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .timeout_global(Some(self.patience))
            .build();
        Ok((agent.into(), format!("Bearer {}", String::from_utf8_lossy(&token).trim_end())))
    }
}
