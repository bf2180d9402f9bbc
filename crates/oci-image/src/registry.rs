//! Images in a registry, as `docker` would get them: with its mirrors, its certificates and its configuration.

use std::{io::Read, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_spec::distribution::Reference;
use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider},
};
use zeroize::Zeroizing;

use crate::{
    Digest, ImageError, Login, PullClient, PullError, Repository,
    schema::{Descriptor, MAX_MANIFEST_BYTES},
};

/// Time to connect, and between two pieces of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How registries are reached. Credentials come from docker's configuration (`$DOCKER_CONFIG`,
/// `~/.docker/config.json`) and its credential helpers.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Registries to ask instead of others: host and mirror.
    pub mirrors: Vec<(String, String)>,
    /// Registries without TLS. Digests are verified all the same.
    pub plain_http: Vec<String>,
    /// PEM files with further roots for TLS.
    pub root_certificates: Vec<PathBuf>,
}

/// A client for all registries. It blocks.
pub(crate) struct Registry {
    client: PullClient,
    options: RegistryOptions,
}

impl Registry {
    pub(crate) fn new(options: &RegistryOptions) -> Result<Self, ImageError> {
        let system = rustls_native_certs::load_native_certs();
        let mut roots: Vec<Certificate<'static>> =
            system.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect();
        for path in &options.root_certificates {
            let pem = std::fs::read(path).map_err(ImageError::io(path))?;
            let before = roots.len();
            for item in ureq::tls::parse_pem(&pem) {
                let item = item.map_err(|error| ImageError::malformed(path.display().to_string(), error))?;
                if let PemItem::Certificate(certificate) = item {
                    roots.push(certificate);
                }
            }
            if roots.len() == before {
                return Err(ImageError::malformed(path.display().to_string(), "holds no certificate (PEM)"));
            }
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .build();
        let agent = |https_only| -> Agent {
            Agent::config_builder()
                .tls_config(tls.clone())
                .https_only(https_only)
                .http_status_as_error(false)
                .timeout_connect(Some(PATIENCE))
                .timeout_recv_response(Some(PATIENCE))
                .timeout_per_read(Some(PATIENCE))
                .user_agent(concat!("contrast/", env!("CARGO_PKG_VERSION")))
                .build()
                .into()
        };
        Ok(Self { client: PullClient::new(agent(true), agent(false)), options: options.clone() })
    }

    /// The place that is asked for an image.
    fn place(&self, reference: &Reference) -> Reference {
        let mut place = reference.clone();
        let mirrors = &self.options.mirrors;
        if let Some((_, mirror)) = mirrors.iter().find(|(host, _)| host == reference.registry()) {
            place.set_mirror_registry(mirror.clone());
        }
        place
    }

    fn repository<'a>(&self, place: &'a Reference) -> Repository<'a> {
        let registry = place.resolve_registry();
        let is_plain = self.options.plain_http.iter().any(|host| host == registry);
        Repository { registry, name: place.repository(), is_plain }
    }

    /// A manifest, whose digest is the one asked for or, if none was, that of its bytes.
    pub(crate) fn manifest(&self, reference: &Reference) -> Result<(Digest, Vec<u8>), ImageError> {
        let place = self.place(reference);
        let repository = self.repository(&place);
        let login = login(repository.registry)?;
        let name = place.digest().or(place.tag()).unwrap_or("latest");
        let body = self.client.manifest(repository, name, login.as_ref());
        let body = body.map_err(|error| explain(&place, &error))?;
        let bytes = body.into_with_config().limit(MAX_MANIFEST_BYTES).read_to_vec();
        let bytes = bytes.map_err(|error| ImageError::malformed(reference.whole(), error))?;
        match reference.digest() {
            Some(digest) => {
                let digest: Digest = digest.parse()?;
                Ok((digest, digest.check(&format!("manifest of {}", reference.whole()), bytes)?))
            }
            None => Ok((Digest::of(&bytes), bytes)),
        }
    }

    /// A blob. The caller compares the digest.
    pub(crate) fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
    ) -> Result<Box<dyn Read + Send>, ImageError> {
        let place = self.place(reference);
        let repository = self.repository(&place);
        let login = login(repository.registry)?;
        let body = self.client.blob(repository, &blob.digest.to_string(), login.as_ref());
        let body = body.map_err(|error| explain(&place, &error))?;
        Ok(Box::new(body.into_with_config().limit(u64::MAX).reader()))
    }
}

/// The login for a registry. A helper is a program, so this may take long.
fn login(registry: &str) -> Result<Option<Login>, ImageError> {
    // Docker keeps its own registry under the name of its first API.
    let key = if registry == "index.docker.io" || registry == "docker.io" {
        "https://index.docker.io/v1/"
    } else {
        registry
    };
    match docker_credential::get_credential(key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            let both = Zeroizing::new(format!("{user}:{password}"));
            Ok(Some(Login::Basic(Zeroizing::new(BASE64_STANDARD.encode(both.as_bytes())))))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Login::Token(Zeroizing::new(token)))),
        Err(
            CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::ConfigReadError,
        ) => Ok(None),
        Err(error) => Err(ImageError::Registry {
            registry: registry.to_owned(),
            message: format!("docker's credentials for it cannot be read: {error}"),
        }),
    }
}

fn explain(place: &Reference, error: &PullError) -> ImageError {
    ImageError::Registry {
        registry: place.resolve_registry().to_owned(),
        message: format!("{}: {error}{}", place.whole(), hint(error)),
    }
}

/// What to do. By the kind of the error: texts hold names and addresses, and port 36401 is no status 401.
fn hint(error: &PullError) -> &'static str {
    match error {
        PullError::Status { status: 401 | 403, .. } => {
            "; log in with `docker login`, or check the credential helper in docker's configuration"
        }
        PullError::Status { status: 404, .. } => "; check the name, or give the image with --images",
        // Of rustls' error only the text comes through.
        PullError::Unanswered { source, .. } if source.to_string().contains("invalid peer certificate") => {
            "; give its root with --registry-ca"
        }
        _ => "",
    }
}
