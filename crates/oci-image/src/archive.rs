//! A tar archive as a set of files: `docker save`, `skopeo copy docker-archive:`, `podman save`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use oci_spec::distribution::Reference;
use serde::Deserialize;

use crate::{
    Digest, ImageError,
    schema::{MAX_MANIFEST_BYTES, parse},
};

/// Most files in an archive.
const MAX_ENTRIES: usize = 100_000;

/// Where each file of a tar begins, and its size.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    files: BTreeMap<String, (u64, u64)>,
}

/// An image of a docker archive: its files in the archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Vec<String>,
}

impl Archive {
    pub(crate) fn open_file(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::io(path))?;
        let mut tar = tar::Archive::new(file);
        let mut files = BTreeMap::new();
        for entry in tar.entries_with_seek().map_err(ImageError::io(path))? {
            let entry = entry.map_err(ImageError::io(path))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            if entry.header().entry_type().is_file() {
                files.insert(name, (entry.raw_file_position(), entry.size()));
            } else if let Some(target) = entry.link_name_bytes() {
                // docker save links layers that several images share.
                let target = String::from_utf8_lossy(&target).trim_start_matches("../").to_owned();
                if let Some(place) = files.get(&target).copied() {
                    files.insert(name, place);
                }
            }
            if files.len() > MAX_ENTRIES {
                return Err(ImageError::malformed(path.display().to_string(), "too many files"));
            }
        }
        Ok(Self { path: path.to_owned(), files })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    pub(crate) fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ImageError> {
        let Some((at, size)) = self.files.get(name) else {
            return Err(ImageError::malformed(
                self.path.display().to_string(),
                format!("has no file {name:?}"),
            ));
        };
        let mut file = File::open(&self.path).map_err(ImageError::io(&self.path))?;
        file.seek(SeekFrom::Start(*at)).map_err(ImageError::io(&self.path))?;
        Ok(Box::new(file.take(*size)))
    }

    /// The image of a docker archive by its name.
    pub(crate) fn find(&self, reference: &Reference) -> Result<Option<DockerImage>, ImageError> {
        let mut bytes = Vec::new();
        let read = self.open("manifest.json")?.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes);
        read.map_err(ImageError::io(&self.path))?;
        let images: Vec<DockerImage> = parse("manifest.json", &bytes)?;
        let same = |tag: &String| {
            tag.parse::<Reference>().is_ok_and(|tag| {
                tag.registry() == reference.registry()
                    && tag.repository() == reference.repository()
                    && tag.tag().unwrap_or("latest") == reference.tag().unwrap_or("latest")
            })
        };
        Ok(images.into_iter().find(|image| image.repo_tags.iter().flatten().any(same)))
    }
}

impl DockerImage {
    /// The configuration's digest is part of its name.
    pub(crate) fn config_digest(&self) -> Result<Digest, ImageError> {
        let name = self.config.rsplit('/').next().unwrap_or_default();
        format!("sha256:{}", name.trim_end_matches(".json")).parse()
    }
}
