//! Asking a mirror or the vendors' services. Answers are hints: whoever keeps one verifies it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use attestation::{IntelAnswers, PlatformId, TdxCollateral};
use percent_encoding::percent_decode_str;
use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig, TlsProvider},
};

use crate::store::{MAX_BYTES, Name};

/// Longest wait for one answer, connection included.
const ANSWER: Duration = Duration::from_secs(10);
/// Wait after a first failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Most addresses whose failures are remembered.
const MAX_REMEMBERED: usize = 1024;

/// Where the vendors' services are.
#[derive(Clone, Debug)]
pub struct Services {
    /// AMD's key distribution service.
    pub amd: String,
    /// Intel's provisioning certification service.
    pub intel: String,
    /// Where Intel publishes its root's revocation list.
    pub intel_root: String,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            amd: "https://kdsintf.amd.com".into(),
            intel: "https://api.trustedservices.intel.com".into(),
            intel_root: "https://certificates.trustedservices.intel.com".into(),
        }
    }
}

/// Why nothing was fetched.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, no answer in time, or one that is too large.
    #[error("{url}: {reason}")]
    Failed {
        /// The address.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// It failed before, and is left alone for a while.
    #[error("{url}: failed before ({reason}); next try in {wait:?}")]
    Waiting {
        /// The address.
        url: String,
        /// What went wrong last time.
        reason: String,
        /// How long it is left alone.
        wait: Duration,
    },
    /// An answer that is not what was asked for.
    #[error("{url}: {reason}")]
    Malformed {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No service gives it to strangers.
    #[error("no service hands out providers' certificates (VLEK): the provider's hosts have it")]
    OnlyHosts,
}

/// Asks over HTTP: bounded in size and time, without following redirects, leaving alone for a while
/// what failed. Proxies are taken from the environment (`HTTPS_PROXY`, `NO_PROXY`).
pub struct Fetcher {
    agent: Agent,
    mirror: Option<String>,
    services: Services,
    failures: Mutex<HashMap<String, Failure>>,
}

struct Failure {
    times: u32,
    until: Instant,
    reason: String,
}

struct Answer {
    body: Vec<u8>,
    headers: ureq::http::HeaderMap,
}

impl Fetcher {
    /// `mirror` stands in front of the services: it is asked for the same paths.
    pub fn new(mirror: Option<String>, services: Services) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::WebPki)
            .build();
        let config = Agent::config_builder()
            .timeout_global(Some(ANSWER))
            .max_redirects(0)
            .max_redirects_will_error(true)
            .tls_config(tls)
            .user_agent("contrast")
            .build();
        let mirror = mirror.map(|url| url.trim_end_matches('/').to_owned());
        Self { agent: config.into(), mirror, services, failures: Mutex::default() }
    }

    /// Asks for one endorsement.
    pub(crate) fn fetch(&self, name: &Name) -> Result<Vec<u8>, FetchError> {
        match name {
            Name::Vcek(id) => Ok(self.ask(&self.services.amd, &id.service_path())?.body),
            Name::Vlek(_) => Err(FetchError::OnlyHosts),
            Name::Crl(product) => {
                Ok(self.ask(&self.services.amd, &format!("/vcek/v1/{product:?}/crl"))?.body)
            }
            Name::Collateral(platform) => self.collateral(platform),
        }
    }

    fn collateral(&self, PlatformId { fmspc, ca }: &PlatformId) -> Result<Vec<u8>, FetchError> {
        let intel = &self.services.intel;
        let tcb = format!("/tdx/certification/v4/tcb?fmspc={fmspc}");
        let tcb_info = self.ask(intel, &tcb)?;
        let qe_identity = self.ask(intel, "/tdx/certification/v4/qe/identity")?;
        let crl = format!("/sgx/certification/v4/pckcrl?ca={ca}&encoding=der");
        let pck_crl = self.ask(intel, &crl)?;
        let root_crl = self.ask(&self.services.intel_root, "/IntelSGXRootCA.der")?;
        let malformed = |reason: String| FetchError::Malformed { url: intel.clone() + &tcb, reason };
        let chain = |answer: &Answer, header: &str| {
            let value = answer.headers.get(header).and_then(|value| value.to_str().ok());
            let value = value.ok_or_else(|| malformed(format!("no header {header}")))?;
            Ok(percent_decode_str(value).decode_utf8_lossy().into_owned())
        };
        let collateral = TdxCollateral::from_answers(IntelAnswers {
            tcb_info_issuer_chain: chain(&tcb_info, "TCB-Info-Issuer-Chain")?,
            qe_identity_issuer_chain: chain(&qe_identity, "SGX-Enclave-Identity-Issuer-Chain")?,
            pck_crl_issuer_chain: chain(&pck_crl, "SGX-PCK-CRL-Issuer-Chain")?,
            tcb_info: tcb_info.body,
            qe_identity: qe_identity.body,
            pck_crl: pck_crl.body,
            root_crl: root_crl.body,
        });
        collateral.and_then(|collateral| collateral.to_json()).map_err(|error| malformed(error.to_string()))
    }

    /// The mirror first, then the service itself.
    fn ask(&self, service: &str, path: &str) -> Result<Answer, FetchError> {
        if let Some(mirror) = &self.mirror {
            match self.ask_once(&format!("{mirror}{path}")) {
                Ok(answer) => return Ok(answer),
                Err(error) => tracing::debug!(%error, "mirror"),
            }
        }
        self.ask_once(&format!("{service}{path}"))
    }

    fn ask_once(&self, url: &str) -> Result<Answer, FetchError> {
        self.not_too_soon(url)?;
        let answer = self.agent.get(url).call().and_then(|mut response| {
            let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
            let body = response.body_mut().with_config().limit(limit).read_to_vec()?;
            Ok(Answer { body, headers: response.headers().clone() })
        });
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) => {
                failures.remove(url);
                Ok(answer)
            }
            Err(error) => {
                // Whoever names chips that do not exist must not make the others be forgotten all at once.
                if failures.len() >= MAX_REMEMBERED && !failures.contains_key(url) {
                    let next = failures.iter().min_by_key(|(_, failure)| failure.until);
                    let next = next.map(|(url, _)| url.clone());
                    next.and_then(|url| failures.remove(&url));
                }
                let reason = error.to_string();
                let times = failures.get(url).map_or(0, |failure| failure.times) + 1;
                let pause = FIRST_PAUSE.saturating_mul(1 << times.min(10) >> 1).min(LONGEST_PAUSE);
                let until = Instant::now() + pause;
                failures.insert(url.to_owned(), Failure { times, until, reason: reason.clone() });
                Err(FetchError::Failed { url: url.to_owned(), reason })
            }
        }
    }

    fn not_too_soon(&self, url: &str) -> Result<(), FetchError> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(failure) = failures.get(url) else { return Ok(()) };
        let wait = failure.until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        Err(FetchError::Waiting { url: url.to_owned(), reason: failure.reason.clone(), wait })
    }
}
