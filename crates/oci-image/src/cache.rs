//! What was learned of blobs and layers, by digest, in a folder.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use crate::{Digest, ImageError, LayerFacts};

/// A folder. Several programs may use it at once: files are renamed into place.
#[derive(Debug, Clone)]
pub(crate) struct Cache(PathBuf);

impl Cache {
    pub(crate) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// A manifest or configuration; one that was changed on the disk is as good as none.
    pub(crate) fn blob(&self, digest: Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path("blobs", digest)).ok()?;
        digest.check("cache", bytes).ok()
    }

    pub(crate) fn put_blob(&self, digest: Digest, bytes: &[u8]) -> Result<(), ImageError> {
        self.put(&self.path("blobs", digest), bytes)
    }

    pub(crate) fn layer(&self, digest: Digest) -> Option<LayerFacts> {
        serde_json::from_slice(&fs::read(self.path("layers", digest)).ok()?).ok()
    }

    pub(crate) fn put_layer(&self, digest: Digest, facts: &LayerFacts) -> Result<(), ImageError> {
        self.put(&self.path("layers", digest), &serde_json::to_vec(facts).unwrap_or_default())
    }

    fn path(&self, kind: &str, digest: Digest) -> PathBuf {
        self.0.join(kind).join(digest.hex())
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let folder = path.parent().unwrap_or(&self.0);
        fs::create_dir_all(folder).map_err(ImageError::io(folder))?;
        let temporary = folder.join(format!(
            ".{}-{}",
            std::process::id(),
            path.file_name().unwrap_or_default().display()
        ));
        let write = || {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(bytes)?;
            fs::rename(&temporary, path)
        };
        write().map_err(ImageError::io(path))
    }
}
