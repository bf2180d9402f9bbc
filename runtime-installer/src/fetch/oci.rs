//! Files out of OCI images and artifacts (OCI distribution 1.1: pull, and the token flow of registries).
//!
//! Every manifest and layer is named by a digest that starts from the configuration, so neither the registry nor its
//! certificate is trusted.

use std::{fs::File, path::Path};

use oci_image::{Descriptor, Login, ManifestFile, PullError, Repository};
use runtime_bundle::{BundleFile, Digest};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    archive,
    error::FetchError,
    http::{self, Http},
    save::{beside, save, unpack},
};

const MAX_MANIFEST: u64 = 4 << 20;
const TITLE: &str = "org.opencontainers.image.title";

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
            let digest = digest_of(layer);
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
            let digest = digest_of(layer);
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
        let fitting = manifest.for_guest("the index").map_err(|error| self.malformed(&error.to_string()))?;
        Ok(self.manifest(digest_of(fitting))?.layers)
    }

    fn manifest(&self, digest: Digest) -> Result<ManifestFile, FetchError> {
        let what = self.name();
        let bytes = http::again(|| {
            let body = self.http.pull.manifest(self.repository(), &oci_name(digest), self.login().as_ref());
            let body = body.map_err(|error| self.unfetched(&error))?;
            let bytes = body.into_with_config().limit(MAX_MANIFEST).read_to_vec();
            bytes.map_err(|error| FetchError::Remote {
                what: what.clone(),
                reason: error.to_string(),
                passing: true,
            })
        })?;
        let found = Digest::from_bytes(Sha256::digest(&bytes).into());
        if found != digest {
            return Err(FetchError::WrongDigest { what, expected: digest, found });
        }
        ManifestFile::parse("the manifest", &bytes).map_err(|error| self.malformed(&error.to_string()))
    }

    fn blob(&self, what: &str, layer: &Descriptor, digest: Digest, target: &Path) -> Result<(), FetchError> {
        http::again(|| {
            let body = self.http.pull.blob(self.repository(), &oci_name(digest), self.login().as_ref());
            let body = body.map_err(|error| self.unfetched(&error))?;
            let reader = body.into_with_config().limit(u64::MAX).reader();
            save(what, reader, Some(layer.size), layer.size, Some(digest), target)
        })
    }

    fn repository(&self) -> Repository<'_> {
        let is_plain = oci_image::is_loopback(self.registry);
        Repository { registry: self.registry, name: self.repository, is_plain }
    }

    fn login(&self) -> Option<Login> {
        let basic = self.http.credentials(self.registry)?;
        Some(Login::Basic(Zeroizing::new(basic.to_owned())))
    }

    fn unfetched(&self, error: &PullError) -> FetchError {
        let passing = match error {
            PullError::Unanswered { source, .. } => http::may_pass(source),
            PullError::Status { status, .. } => *status >= 500 || *status == 429,
            PullError::ForeignRealm { .. } | PullError::NoTls(_) | PullError::NoToken { .. } => false,
        };
        FetchError::Remote { what: self.name(), reason: error.to_string(), passing }
    }

    fn name(&self) -> String {
        format!("oci://{}/{}@sha256:{}", self.registry, self.repository, self.digest.hex())
    }

    fn malformed(&self, reason: &str) -> FetchError {
        FetchError::Remote { what: self.name(), reason: reason.to_owned(), passing: false }
    }
}

fn oci_name(digest: Digest) -> String {
    format!("sha256:{}", digest.hex())
}

fn digest_of(descriptor: &Descriptor) -> Digest {
    Digest::from_bytes(descriptor.digest.bytes())
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
