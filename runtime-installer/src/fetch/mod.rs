//! Getting a runtime's files, from wherever they are, into a folder that nobody else uses.
//!
//! Whatever comes is bounded while it is read, then checked against its digest, and only then unpacked or used.

pub mod archive;
mod error;
mod http;
mod oci;
mod save;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use runtime_bundle::{BundleFile, Digest, Source};
use sha2::{Digest as _, Sha256};

pub use error::FetchError;
pub use http::{Http, HttpOptions};
use save::{beside, save, unpack};

/// Where files come from.
#[derive(Debug)]
pub struct Fetcher {
    /// Folder that relative paths start from.
    pub folder: PathBuf,
    /// Connections.
    pub http: Http,
}

impl Fetcher {
    /// Gets `file` to `target`, which must not exist; its folder must be on the file system that it stays on.
    pub fn fetch(&self, file: &BundleFile, target: &Path) -> Result<(), FetchError> {
        match &file.source {
            Source::Oci { registry, repository, digest, path } => {
                let image = oci::Image { http: &self.http, registry, repository, digest };
                image.fetch(path.as_deref(), file, target)
            }
            Source::Http(url) => {
                let download = if file.unpack { beside(target) } else { target.to_owned() };
                self.http.download(url, file.max_bytes, file.integrity, &download)?;
                self.place(url, file, &download, target)
            }
            Source::Path(path) => {
                let from = self.folder.join(path);
                let what = from.display().to_string();
                let io = |source| FetchError::Io { what: what.clone(), source };
                let reader = File::open(&from).map_err(io)?;
                let size = reader.metadata().map_err(io)?.len();
                let download = if file.unpack { beside(target) } else { target.to_owned() };
                save(&what, reader, Some(size), file.max_bytes, file.integrity, &download)?;
                self.place(&what, file, &download, target)
            }
        }
    }

    /// SHA-256 of a local file.
    pub fn local_digest(&self, path: &str) -> Result<Digest, FetchError> {
        let from = self.folder.join(path);
        let io = |source| FetchError::Io { what: from.display().to_string(), source };
        let mut hasher = Sha256::new();
        let mut reader = File::open(&from).map_err(io)?;
        io::copy(&mut reader, &mut hasher).map_err(io)?;
        Ok(Digest::from_bytes(hasher.finalize().into()))
    }

    fn place(&self, what: &str, file: &BundleFile, download: &Path, target: &Path) -> Result<(), FetchError> {
        if !file.unpack {
            return Ok(());
        }
        let unpacked = unpack(what, download, target, file.max_bytes);
        let _ = std::fs::remove_file(download);
        unpacked
    }
}
