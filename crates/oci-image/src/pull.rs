//! Getting manifests and blobs out of a registry (OCI distribution 1.1, and the token flow of registries). Blocks.
//!
//! Content is named by digests that the caller compares, so neither the registry nor its certificate is trusted with it.
//! A password is another matter: it goes to the registry that it is for and to the realm of tokens that belongs to this
//! registry, to nobody else, and only over TLS.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use serde::Deserialize;
use ureq::{Agent, Body, http::Response};
use zeroize::Zeroizing;

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// A client for every registry.
pub struct PullClient {
    secure: Agent,
    plain: Agent,
    /// Tokens that registries gave, by host and repository.
    tokens: Mutex<HashMap<(String, String), Zeroizing<String>>>,
}

impl fmt::Debug for PullClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullClient(..)")
    }
}

/// One repository of a registry.
#[derive(Clone, Copy, Debug)]
pub struct Repository<'a> {
    /// host or host:port.
    pub registry: &'a str,
    /// Its name there.
    pub name: &'a str,
    /// Ask without TLS.
    pub is_plain: bool,
}

/// What proves to a registry who asks. Prints nothing.
pub enum Login {
    /// User and password, as base64 of `user:password`.
    Basic(Zeroizing<String>),
    /// A token that the registry takes as it is.
    Token(Zeroizing<String>),
}

/// Why a registry gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No answer.
    #[error("{url}: {source}")]
    Unanswered {
        /// What was asked.
        url: String,
        /// Why.
        source: ureq::Error,
    },
    /// A refusal.
    #[error("{url}: the server answers {status}")]
    Status {
        /// What was asked.
        url: String,
        /// HTTP's.
        status: u16,
    },
    /// Tokens come from somebody who is not to know the password.
    #[error(
        "{registry} wants its password sent to {realm}: that is not the registry's own, or not over TLS, so it was not sent"
    )]
    ForeignRealm {
        /// The registry.
        registry: String,
        /// Where.
        realm: String,
    },
    /// The password would be readable on the way.
    #[error("{0} wants a password and speaks no TLS: it was not sent")]
    NoTls(String),
    /// An answer that is none.
    #[error("{url}: no token in the answer: {source}")]
    NoToken {
        /// What was asked.
        url: String,
        /// Why.
        source: ureq::Error,
    },
}

/// How a registry wants to be asked: the `WWW-Authenticate` header of its refusal.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// With user and password.
    Basic,
    /// With a token.
    Bearer {
        /// Where tokens are.
        realm: String,
        /// For which service.
        service: String,
        /// For what.
        scope: String,
    },
}

impl Challenge {
    /// Reads a challenge.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (String::new(), String::new(), String::new());
        while let Some((key, value)) = rest.split_once("=\"") {
            let (value, after) = value.split_once('"')?;
            match key.trim_start_matches([',', ' ']) {
                "realm" => value.clone_into(&mut realm),
                "service" => value.clone_into(&mut service),
                "scope" => value.clone_into(&mut scope),
                _ => {}
            }
            rest = after;
        }
        (!realm.is_empty()).then_some(Self::Bearer { realm, service, scope })
    }
}

impl PullClient {
    /// A client over two of HTTP's, of which `secure` follows no redirect to http and `plain` is for registries without
    /// TLS. Neither may take a status for an error.
    pub fn new(secure: Agent, plain: Agent) -> Self {
        Self { secure, plain, tokens: Mutex::default() }
    }

    /// A manifest, by tag or digest.
    pub fn manifest(
        &self,
        repository: Repository<'_>,
        reference: &str,
        login: Option<&Login>,
    ) -> Result<Body, PullError> {
        self.get(repository, &format!("manifests/{reference}"), login)
    }

    /// A blob, by digest.
    pub fn blob(
        &self,
        repository: Repository<'_>,
        digest: &str,
        login: Option<&Login>,
    ) -> Result<Body, PullError> {
        self.get(repository, &format!("blobs/{digest}"), login)
    }

    /// Asks, and asks once more in the way that the registry wants.
    fn get(&self, repository: Repository<'_>, what: &str, login: Option<&Login>) -> Result<Body, PullError> {
        let Repository { registry, name, is_plain } = repository;
        let scheme = if is_plain { "http" } else { "https" };
        let url = format!("{scheme}://{registry}/v2/{name}/{what}");
        let key = (registry.to_owned(), name.to_owned());
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let answer = self.ask(&url, known.map(bearer))?;
        let challenge = match answer.status().as_u16() {
            401 => answer.headers().get("www-authenticate").and_then(|header| header.to_str().ok()),
            _ => return good(url, answer),
        };
        let authorization = match (challenge.and_then(Challenge::parse), login) {
            (_, Some(_)) if is_plain && !is_loopback(registry) => {
                return Err(PullError::NoTls(registry.to_owned()));
            }
            (Some(_), Some(Login::Token(token))) => bearer(token.clone()),
            (Some(Challenge::Basic), Some(Login::Basic(basic))) => basic_header(basic),
            (Some(Challenge::Bearer { realm, service, scope }), login) => {
                let basic = match login {
                    Some(Login::Basic(basic)) if is_own_realm(registry, &realm) => Some(basic),
                    Some(Login::Basic(_)) => {
                        return Err(PullError::ForeignRealm { registry: registry.to_owned(), realm });
                    }
                    _ => None,
                };
                let token = self.token(&realm, &service, &scope, basic)?;
                self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token.clone());
                bearer(token)
            }
            (None, _) | (Some(Challenge::Basic), None) => return good(url, answer),
        };
        let answer = self.ask(&url, Some(authorization))?;
        good(url, answer)
    }

    fn ask(&self, url: &str, authorization: Option<Zeroizing<String>>) -> Result<Response<Body>, PullError> {
        let mut request = self.agent(url).get(url).header("Accept", ACCEPT);
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization.as_str());
        }
        request.call().map_err(|source| PullError::Unanswered { url: url.to_owned(), source })
    }

    fn token(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        basic: Option<&Zeroizing<String>>,
    ) -> Result<Zeroizing<String>, PullError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(alias = "access_token")]
            token: Zeroizing<String>,
        }
        let mut request = self.agent(realm).get(realm);
        for (name, value) in [("service", service), ("scope", scope)] {
            if !value.is_empty() {
                request = request.query(name, value);
            }
        }
        if let Some(basic) = basic {
            request = request.header("Authorization", basic_header(basic).as_str());
        }
        let url = realm.to_owned();
        let answer = request.call().map_err(|source| PullError::Unanswered { url: url.clone(), source })?;
        let body = good(url.clone(), answer)?;
        let answer: Result<Answer, _> = body.into_with_config().limit(MAX_TOKEN_BYTES).read_json();
        Ok(answer.map_err(|source| PullError::NoToken { url, source })?.token)
    }

    fn agent(&self, url: &str) -> &Agent {
        if url.starts_with("https://") { &self.secure } else { &self.plain }
    }
}

fn bearer(token: Zeroizing<String>) -> Zeroizing<String> {
    Zeroizing::new(format!("Bearer {}", token.as_str()))
}

fn basic_header(basic: &Zeroizing<String>) -> Zeroizing<String> {
    Zeroizing::new(format!("Basic {}", basic.as_str()))
}

fn good(url: String, answer: Response<Body>) -> Result<Body, PullError> {
    match answer.status() {
        status if status.is_success() => Ok(answer.into_body()),
        status => Err(PullError::Status { url, status: status.as_u16() }),
    }
}

/// Whether a registry is on this machine, where nobody is on the way.
pub fn is_loopback(registry: &str) -> bool {
    let host = host_of(registry);
    let is_loopback = |address: std::net::IpAddr| address.is_loopback();
    host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(is_loopback)
}

fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether a registry's password may go to a realm: over TLS, and to the registry itself or to its domain, as that of
/// registry-1.docker.io goes to auth.docker.io. A domain has two labels at least.
fn is_own_realm(registry: &str, realm: &str) -> bool {
    let Ok(uri) = realm.parse::<ureq::http::Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let (own, host) = (host_of(registry).to_ascii_lowercase(), authority.host().to_ascii_lowercase());
    if authority.as_str().contains('@') || !(scheme == "https" || (scheme == "http" && is_loopback(&host))) {
        return false;
    }
    let is_name = own.parse::<std::net::IpAddr>().is_err() && !own.starts_with('[');
    let domain =
        own.split_once('.').map(|(_, domain)| domain).filter(|domain| is_name && domain.contains('.'));
    let is_in =
        |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    host == own || domain.is_some_and(is_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_to_its_registry_and_to_nobody_else() {
        for (registry, realm) in [
            ("ghcr.io", "https://ghcr.io/token"),
            ("registry.example:5000", "https://registry.example/token"),
            ("registry-1.docker.io", "https://auth.docker.io/token"),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/token"),
        ] {
            assert!(is_own_realm(registry, realm), "{registry} {realm}");
        }
        for (registry, realm) in [
            ("ghcr.io", "http://ghcr.io/token"),
            ("ghcr.io", "https://evil.io/token"),
            ("ghcr.io", "https://ghcr.io.evil.example/token"),
            ("ghcr.io", "https://ghcr.io@evil.example/token"),
            ("registry-1.docker.io", "https://auth.docker.io.evil.example/"),
            ("registry-1.docker.io", "https://evildocker.io/token"),
            ("registry.example", "https://other.example/token"),
            ("192.0.2.7:5000", "https://10.0.2.7/token"),
            ("ghcr.io", "no address"),
        ] {
            assert!(!is_own_realm(registry, realm), "{registry} {realm}");
        }
    }

    #[test]
    fn challenges_are_read() {
        let header = r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:shop/web:pull""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: "registry".into(),
            scope: "repository:shop/web:pull".into(),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        assert_eq!(Challenge::parse(r#"Basic realm="registry""#), Some(Challenge::Basic));
        for nothing in ["", "Bearer ", "Bearer realm=\"", "Digest realm=\"x\"", "Bearer service=\"x\""] {
            assert_eq!(Challenge::parse(nothing), None, "{nothing}");
        }
    }
}
