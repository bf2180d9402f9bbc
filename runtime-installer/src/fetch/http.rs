//! Downloads over HTTP. TLS is a second line here: what counts is the digest.

use std::{path::Path, sync::Arc, time::Duration};

use oci_image::PullClient;
use runtime_bundle::Digest;
use ureq::{
    Agent,
    http::Response,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider},
};

use super::{error::FetchError, save::save};

const TRIES: u32 = 3;
const CONNECT: Duration = Duration::from_secs(10);
/// Longest silence of a server.
const SILENCE: Duration = Duration::from_secs(30);

/// How to reach servers.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
    /// PEM file with the certificates to trust, instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Longest time for one file.
    pub time_limit: Duration,
    /// Docker's `config.json` with credentials for registries.
    pub registry_auth: Option<std::path::PathBuf>,
}

/// Clients for both schemes. A redirect from https to http is not followed. `HTTPS_PROXY` and its like are.
#[derive(Debug)]
pub struct Http {
    secure: Agent,
    plain: Agent,
    credentials: serde_json::Value,
    /// For registries.
    pub(super) pull: PullClient,
}

impl Http {
    /// Reads certificates and credentials.
    pub fn new(options: &HttpOptions) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let certificates: Vec<Certificate<'static>> = match &options.ca_file {
            Some(path) => {
                let pem = read(path)?;
                let items = ureq::tls::parse_pem(&pem).collect::<Result<Vec<_>, _>>();
                let items = items.with_context(|| format!("{} is not PEM", path.display()))?;
                let certificate = |item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                };
                items.into_iter().filter_map(certificate).collect()
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                found.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect()
            }
        };
        let credentials = match &options.registry_auth {
            Some(path) => serde_json::from_slice(&read(path)?)
                .with_context(|| format!("{} is no Docker configuration", path.display()))?,
            None => serde_json::Value::Null,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::Specific(Arc::new(certificates)))
            .build();
        let agent = |https_only| -> Agent {
            Agent::config_builder()
                .tls_config(tls.clone())
                .https_only(https_only)
                .http_status_as_error(false)
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(SILENCE))
                .timeout_per_read(Some(SILENCE))
                .timeout_global(Some(options.time_limit))
                .user_agent(concat!("contrast-runtime-installer/", env!("CARGO_PKG_VERSION")))
                .build()
                .into()
        };
        let (secure, plain) = (agent(true), agent(false));
        let pull = PullClient::new(secure.clone(), plain.clone());
        Ok(Self { secure, plain, credentials, pull })
    }

    /// The client for a URL.
    fn agent(&self, url: &str) -> &Agent {
        if url.starts_with("https://") { &self.secure } else { &self.plain }
    }

    /// `Basic` credentials for a registry, as they stand in Docker's configuration.
    pub(super) fn credentials(&self, registry: &str) -> Option<&str> {
        self.credentials.get("auths")?.get(registry)?.get("auth")?.as_str()
    }

    /// Gets a URL into a new file.
    pub(super) fn download(
        &self,
        url: &str,
        max: u64,
        expected: Option<Digest>,
        target: &Path,
    ) -> Result<(), FetchError> {
        again(|| {
            let answer = self.agent(url).get(url).call();
            let response = demand_ok(url, answer)?;
            let announced = response.body().content_length();
            let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
            save(url, reader, announced, max, expected, target)
        })
    }
}

/// Up to three times, when another time may help.
pub(super) fn again<T>(mut get: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
    let mut tried = 1;
    loop {
        match get() {
            Err(error @ FetchError::Remote { passing: true, .. }) if tried < TRIES => {
                let pause = Duration::from_secs(1 << (tried - 1));
                tracing::warn!(%error, ?pause, "trying again");
                std::thread::sleep(pause);
                tried += 1;
            }
            other => return other,
        }
    }
}

/// Whether another time may help.
pub(super) fn may_pass(error: &ureq::Error) -> bool {
    !matches!(error, ureq::Error::RequireHttpsOnly(_) | ureq::Error::BadUri(_) | ureq::Error::Rustls(_))
}

/// The response, if it is a good one.
fn demand_ok(
    url: &str,
    answer: Result<Response<ureq::Body>, ureq::Error>,
) -> Result<Response<ureq::Body>, FetchError> {
    let remote = |reason: String, passing| FetchError::Remote { what: url.to_owned(), reason, passing };
    let response = answer.map_err(|error| {
        let passing = may_pass(&error);
        remote(error.to_string(), passing)
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(remote(format!("the server answers {status}"), status.is_server_error() || status.as_u16() == 429))
}
