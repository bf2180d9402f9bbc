//! Images in a registry (OCI distribution specification).

use std::{io::Read, path::PathBuf, time::Duration};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::StreamExt as _;
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use tokio::sync::mpsc;

use crate::{
    Digest, ImageError,
    schema::{Descriptor, MAX_MANIFEST_BYTES},
};

const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Time to connect, and between two pieces of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pieces of a layer that may wait for whoever reads it.
const PIECES: usize = 16;

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

/// A client for all registries.
pub(crate) struct Registry {
    client: Client,
    mirrors: Vec<(String, String)>,
}

impl Registry {
    pub(crate) fn new(options: &RegistryOptions) -> Result<Self, ImageError> {
        let mut roots = Vec::new();
        for path in &options.root_certificates {
            let data = std::fs::read(path).map_err(ImageError::io(path))?;
            roots.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(options.plain_http.clone()),
            extra_root_certificates: roots,
            read_timeout: Some(PATIENCE),
            connect_timeout: Some(PATIENCE),
            user_agent: concat!("contrast/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Ok(Self { client: Client::new(config), mirrors: options.mirrors.clone() })
    }

    /// The place that is asked for an image.
    fn place(&self, reference: &Reference) -> Reference {
        let mut place = reference.clone();
        if let Some((_, mirror)) = self.mirrors.iter().find(|(host, _)| host == reference.registry()) {
            place.set_mirror_registry(mirror.clone());
        }
        place
    }

    /// A manifest, whose digest is the one asked for or, if none was, that of its bytes.
    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<(Digest, Vec<u8>), ImageError> {
        let place = self.place(reference);
        let auth = credentials(place.resolve_registry()).await?;
        let answer = self.client.pull_manifest_raw(&place, &auth, &ACCEPTED).await;
        let (bytes, _) = answer.map_err(|error| explain(&place, &error))?;
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ImageError::malformed(reference.whole(), "manifest is too large"));
        }
        match reference.digest() {
            Some(digest) => {
                let digest: Digest = digest.parse()?;
                Ok((digest, digest.check(&format!("manifest of {}", reference.whole()), bytes.to_vec())?))
            }
            None => Ok((Digest::of(&bytes), bytes.to_vec())),
        }
    }

    /// A blob as a reader for a blocking thread; a task feeds it. The caller compares the digest.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
    ) -> Result<Box<dyn Read + Send>, ImageError> {
        let place = self.place(reference);
        let auth = credentials(place.resolve_registry()).await?;
        self.client
            .auth(&place, &auth, RegistryOperation::Pull)
            .await
            .map_err(|error| explain(&place, &error))?;
        let digest = blob.digest.to_string();
        let stream = self.client.pull_blob_stream(&place, digest.as_str()).await;
        let mut stream = stream.map_err(|error| explain(&place, &error))?;
        let (sender, receiver) = mpsc::channel(PIECES);
        tokio::spawn(async move {
            while let Some(piece) = stream.next().await {
                if sender.send(piece.map(|piece| piece.to_vec())).await.is_err() {
                    return; // the reader has gone
                }
            }
        });
        Ok(Box::new(Pieces { receiver, piece: Vec::new(), at: 0 }))
    }
}

/// Pieces from a channel as a reader.
struct Pieces {
    receiver: mpsc::Receiver<Result<Vec<u8>, std::io::Error>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.piece.len() {
            match self.receiver.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece?, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Credentials for a registry. A helper is a program: it runs on a thread that may block.
async fn credentials(registry: &str) -> Result<RegistryAuth, ImageError> {
    // Docker keeps its own registry under the name of its first API.
    let key = if registry == "index.docker.io" || registry == "docker.io" {
        "https://index.docker.io/v1/"
    } else {
        registry
    };
    let key = key.to_owned();
    let found = tokio::task::spawn_blocking(move || docker_credential::get_credential(&key)).await;
    let fault = |message: String| ImageError::Registry { registry: registry.to_owned(), message };
    match found.map_err(|error| fault(error.to_string()))? {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(token)) => Ok(RegistryAuth::Bearer(token)),
        Err(
            CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::ConfigReadError,
        ) => Ok(RegistryAuth::Anonymous),
        Err(error) => Err(fault(format!("docker's credentials for it cannot be read: {error}"))),
    }
}

fn explain(place: &Reference, error: &OciDistributionError) -> ImageError {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = inner.source();
    }
    ImageError::Registry {
        registry: place.resolve_registry().to_owned(),
        message: format!("{}: {message}{}", place.whole(), hint(error, &message)),
    }
}

/// What to do. By the kind of the error: texts hold names and addresses, and port 36401 is no status 401.
fn hint(error: &OciDistributionError, message: &str) -> &'static str {
    const LOG_IN: &str =
        "; log in with `docker login`, or check the credential helper in docker's configuration";
    const CHECK_NAME: &str = "; check the name, or give the image with --images";
    match error {
        OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::ServerError { code: 401 | 403, .. } => LOG_IN,
        OciDistributionError::ImageManifestNotFoundError(_)
        | OciDistributionError::ServerError { code: 404, .. } => CHECK_NAME,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.first().map_or("", |error| match error.code {
                OciErrorCode::Unauthorized | OciErrorCode::Denied => LOG_IN,
                OciErrorCode::NotFound
                | OciErrorCode::ManifestUnknown
                | OciErrorCode::NameUnknown
                | OciErrorCode::NameInvalid
                | OciErrorCode::BlobUnknown => CHECK_NAME,
                _ => "",
            })
        }
        // Of rustls' error only the text comes through.
        OciDistributionError::RequestError(_) if message.contains("invalid peer certificate") => {
            "; give its root with --registry-ca"
        }
        _ => "",
    }
}
