//! Files out of OCI images and artifacts (OCI distribution 1.1: pull, and the token flow of registries).
//!
//! Every manifest and layer is named by a digest that starts from the configuration, so neither the registry nor its
//! certificate is trusted.

use std::{fs::File, path::Path};

use runtime_bundle::{BundleFile, Digest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::http::Response;

use super::{FetchError, Http, archive, beside, http, save, unpack};

const MAX_MANIFEST: u64 = 4 << 20;
const MAX_TOKEN: u64 = 64 << 10;
const MAX_LAYERS: usize = 128;
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
const TITLE: &str = "org.opencontainers.image.title";

/// A manifest, or an index of them.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    /// For an index: what it lists.
    #[serde(default)]
    manifests: Vec<Descriptor>,
    /// For a manifest: its layers.
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    platform: Option<ImagePlatform>,
}

#[derive(Debug, Deserialize)]
struct ImagePlatform {
    architecture: String,
    os: String,
}

impl Manifest {
    /// Reads a manifest whose digest was checked.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(format!("{} layers, at most {MAX_LAYERS} are read", manifest.layers.len()));
        }
        Ok(manifest)
    }
}

/// How a registry wants to be asked: the `WWW-Authenticate` header of its refusal.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// Where tokens are.
    pub realm: String,
    /// For which service.
    pub service: String,
    /// For what.
    pub scope: String,
}

impl Challenge {
    /// Reads a `Bearer` challenge.
    pub fn parse(header: &str) -> Option<Self> {
        let mut rest = header.trim().strip_prefix("Bearer ")?;
        let mut challenge = Self::default();
        while let Some((key, value)) = rest.split_once("=\"") {
            let (value, after) = value.split_once('"')?;
            match key.trim_start_matches([',', ' ']) {
                "realm" => value.clone_into(&mut challenge.realm),
                "service" => value.clone_into(&mut challenge.service),
                "scope" => value.clone_into(&mut challenge.scope),
                _ => {}
            }
            rest = after;
        }
        (!challenge.realm.is_empty()).then_some(challenge)
    }
}

pub(super) struct Image<'a> {
    pub(super) http: &'a Http,
    pub(super) registry: &'a str,
    pub(super) repository: &'a str,
    pub(super) digest: &'a Digest,
}

impl Image<'_> {
    /// Gets one file of the image, or unpacks all of its layers.
    pub(super) fn fetch(
        &self,
        path: Option<&str>,
        file: &BundleFile,
        target: &Path,
    ) -> Result<(), FetchError> {
        let layers = self.layers()?;
        let download = beside(target);
        for layer in layers.iter().rev() {
            let Some(path) = path else { break };
            let digest =
                oci_digest(&layer.digest).ok_or_else(|| self.malformed("a layer without SHA-256"))?;
            let titled = layer.annotations.get(TITLE).map(String::as_str);
            if titled.is_some_and(|title| title != path) {
                continue;
            }
            let what = format!("{}#{path}", self.name());
            if titled.is_some() && !file.unpack {
                self.blob(&what, layer, digest, target)?;
                return demand_digest(&what, file.integrity, target);
            }
            self.blob(&what, layer, digest, &download)?;
            let found = if titled.is_some() {
                demand_digest(&what, file.integrity, &download)?;
                unpack(&what, &download, target, file.max_bytes).map(|()| true)
            } else {
                self.one(&what, path, file, &download, target)
            };
            let _ = std::fs::remove_file(&download);
            if found? {
                return Ok(());
            }
        }
        match path {
            Some(path) => Err(self.malformed(&format!("there is no file {path:?} in it"))),
            None => self.all(&layers, file, target),
        }
    }

    fn all(&self, layers: &[Descriptor], file: &BundleFile, target: &Path) -> Result<(), FetchError> {
        let download = beside(target);
        for layer in layers {
            let digest =
                oci_digest(&layer.digest).ok_or_else(|| self.malformed("a layer without SHA-256"))?;
            self.blob(&self.name(), layer, digest, &download)?;
            let unpacked = unpack(&self.name(), &download, target, file.max_bytes);
            let _ = std::fs::remove_file(&download);
            unpacked?;
        }
        Ok(())
    }

    fn one(
        &self,
        what: &str,
        path: &str,
        file: &BundleFile,
        layer: &Path,
        target: &Path,
    ) -> Result<bool, FetchError> {
        let archive = |source| FetchError::Archive { what: what.to_owned(), source };
        let io = |source| FetchError::Io { what: what.to_owned(), source };
        let place = if file.unpack { layer.with_file_name(".inner") } else { target.to_owned() };
        let reader = File::open(layer).map_err(io)?;
        if !archive::extract_one(reader, path, &place, file.max_bytes).map_err(archive)? {
            return Ok(false);
        }
        demand_digest(what, file.integrity, &place)?;
        if file.unpack {
            let unpacked = unpack(what, &place, target, file.max_bytes);
            let _ = std::fs::remove_file(&place);
            unpacked?;
        }
        Ok(true)
    }

    fn layers(&self) -> Result<Vec<Descriptor>, FetchError> {
        let manifest = self.manifest(*self.digest)?;
        if manifest.manifests.is_empty() {
            return Ok(manifest.layers);
        }
        let ours = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_none_or(|on| on.os == "linux" && on.architecture == "amd64")
        };
        let found = manifest.manifests.iter().find(ours).and_then(|found| oci_digest(&found.digest));
        let digest = found.ok_or_else(|| self.malformed("no manifest for linux/amd64"))?;
        Ok(self.manifest(digest)?.layers)
    }

    fn manifest(&self, digest: Digest) -> Result<Manifest, FetchError> {
        let what = self.name();
        let url = self.url(&format!("manifests/sha256:{}", digest.hex()));
        let bytes = http::again(|| {
            let response = self.get(&url)?;
            let body = response.into_body().into_with_config().limit(MAX_MANIFEST).read_to_vec();
            body.map_err(|error| FetchError::Remote {
                what: url.clone(),
                reason: error.to_string(),
                passing: true,
            })
        })?;
        let found = Digest::from_bytes(Sha256::digest(&bytes).into());
        if found != digest {
            return Err(FetchError::WrongDigest { what, expected: digest, found });
        }
        Manifest::parse(&bytes).map_err(|reason| self.malformed(&reason))
    }

    fn blob(&self, what: &str, layer: &Descriptor, digest: Digest, target: &Path) -> Result<(), FetchError> {
        let url = self.url(&format!("blobs/sha256:{}", digest.hex()));
        http::again(|| {
            let reader = self.get(&url)?.into_body().into_with_config().limit(u64::MAX).reader();
            save(what, reader, Some(layer.size), layer.size, Some(digest), target)
        })
    }

    /// Asks, and asks once more with a token if the registry wants one.
    fn get(&self, url: &str) -> Result<Response<ureq::Body>, FetchError> {
        let agent = self.http.agent(url);
        let mut request = agent.get(url).header("Accept", ACCEPT);
        let credentials = self.http.credentials(self.registry);
        if let Some(basic) = credentials {
            request = request.header("Authorization", format!("Basic {basic}"));
        }
        let answer = request.call();
        let challenge = match &answer {
            Ok(response) if response.status() == 401 => {
                let header = response.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
                header.and_then(Challenge::parse)
            }
            _ => None,
        };
        let Some(challenge) = challenge else { return http::demand_ok(url, answer) };
        let token = self.token(&challenge, credentials)?;
        let request = agent.get(url).header("Accept", ACCEPT);
        http::demand_ok(url, request.header("Authorization", format!("Bearer {token}")).call())
    }

    fn token(&self, challenge: &Challenge, credentials: Option<&str>) -> Result<String, FetchError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(alias = "access_token")]
            token: String,
        }
        let realm = &challenge.realm;
        let mut request = self.http.agent(realm).get(realm);
        request = request.query("service", &challenge.service).query("scope", &challenge.scope);
        if let Some(basic) = credentials {
            request = request.header("Authorization", format!("Basic {basic}"));
        }
        let response = http::demand_ok(realm, request.call())?;
        let answer: Result<Answer, _> = response.into_body().into_with_config().limit(MAX_TOKEN).read_json();
        let answer = answer.map_err(|error| {
            let reason = format!("no token in the answer: {error}");
            FetchError::Remote { what: realm.clone(), reason, passing: false }
        });
        Ok(answer?.token)
    }

    fn url(&self, rest: &str) -> String {
        let local =
            self.registry.split(':').next().is_some_and(|host| matches!(host, "localhost" | "127.0.0.1"));
        let scheme = if local { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{rest}", self.registry, self.repository)
    }

    fn name(&self) -> String {
        format!("oci://{}/{}@sha256:{}", self.registry, self.repository, self.digest.hex())
    }

    fn malformed(&self, reason: &str) -> FetchError {
        FetchError::Remote { what: self.name(), reason: reason.to_owned(), passing: false }
    }
}

fn oci_digest(text: &str) -> Option<Digest> {
    let mut bytes = [0; 32];
    base16(text.strip_prefix("sha256:")?, &mut bytes)?;
    Some(Digest::from_bytes(bytes))
}

fn base16(text: &str, bytes: &mut [u8; 32]) -> Option<()> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, index) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[index..index + 2], 16).ok()?;
    }
    Some(())
}

fn demand_digest(what: &str, expected: Option<Digest>, path: &Path) -> Result<(), FetchError> {
    let Some(expected) = expected else { return Ok(()) };
    let io = |source| FetchError::Io { what: what.to_owned(), source };
    let mut hasher = Sha256::new();
    std::io::copy(&mut File::open(path).map_err(io)?, &mut hasher).map_err(io)?;
    let found = Digest::from_bytes(hasher.finalize().into());
    if found == expected {
        return Ok(());
    }
    let _ = std::fs::remove_file(path);
    Err(FetchError::WrongDigest { what: what.to_owned(), expected, found })
}
