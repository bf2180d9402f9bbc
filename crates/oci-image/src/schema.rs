//! The documents of an image (OCI image specification; docker's forms have the same fields).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Digest, ImageError};

/// Largest manifest or index, in bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest configuration, in bytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// What an image says about its process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User, or user and group.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value` entries.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// What is run.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Where it is run.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// Directories that become anonymous volumes.
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
}

/// Null means the default.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Debug, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) config: Option<ImageConfig>,
    pub(crate) rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<Digest>,
}

/// Names content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    /// What it must hash to.
    pub digest: Digest,
    /// In bytes; zero where it is not said.
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    /// Such as the name of the file that the content is.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
}

/// A manifest, or an index of manifests.
#[derive(Debug, Deserialize)]
pub struct ManifestFile {
    #[serde(default)]
    pub(crate) config: Option<Descriptor>,
    /// Of a manifest.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Of an index.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// Most layers of an image.
const MAX_LAYERS: usize = 128;

/// A document's bytes, read.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::malformed(what, error))
}

impl ManifestFile {
    /// Reads a manifest whose digest was compared.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let manifest: Self = parse(what, bytes)?;
        match manifest.layers.len() {
            0..=MAX_LAYERS => Ok(manifest),
            found => {
                Err(ImageError::malformed(what, format!("{found} layers, at most {MAX_LAYERS} are read")))
            }
        }
    }

    /// The manifest for the guest's platform, if this is an index.
    pub fn for_guest(&self, what: &str) -> Result<&Descriptor, ImageError> {
        let fits = |descriptor: &&Descriptor| {
            descriptor
                .platform
                .as_ref()
                .is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64")
        };
        let mut fitting = self.manifests.iter().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(ImageError::malformed(what, "the index has no image for linux/amd64")),
            // Which one the guest would run could not be said.
            (Some(_), Some(_)) => Err(ImageError::malformed(
                what,
                "the index has several images for linux/amd64; name one by digest",
            )),
        }
    }
}
