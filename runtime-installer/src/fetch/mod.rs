//! Getting a runtime's files, from wherever they are, into a folder that nobody else uses.
//!
//! Whatever comes is bounded while it is read, then checked against its digest, and only then unpacked or used.

pub mod archive;
mod http;
mod oci;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use runtime_bundle::{BundleFile, Digest, Source};
use sha2::{Digest as _, Sha256};

pub use http::{Http, HttpOptions};
pub use oci::{Challenge, Manifest};

/// Left free on the file system, in bytes.
const RESERVE: u64 = 64 << 20;
const REPORT: Duration = Duration::from_secs(5);

/// Why a file was not had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not the file that the configuration describes.
    #[error(
        "{what}: digest is {found}, {expected} was expected: the source is not what the configuration was made for"
    )]
    WrongDigest {
        /// The source.
        what: String,
        /// Wanted.
        expected: Digest,
        /// Computed.
        found: Digest,
    },
    /// Over the limit.
    #[error("{what}: over {max} bytes, the size that the configuration allows")]
    TooLarge {
        /// The source.
        what: String,
        /// The limit, in bytes.
        max: u64,
    },
    /// It would not fit.
    #[error(
        "{what}: {needed} bytes are needed and {free} are free at {folder} on the node: make room, then run again"
    )]
    NoSpace {
        /// The source.
        what: String,
        /// Bytes needed, a reserve included.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Where.
        folder: String,
    },
    /// The other side does not give it.
    #[error("{what}: {reason}")]
    Remote {
        /// The source.
        what: String,
        /// Status or failure.
        reason: String,
        /// Whether another try may help.
        passing: bool,
    },
    /// The archive.
    #[error("{what}: {source}")]
    Archive {
        /// The source.
        what: String,
        /// What is wrong with it.
        source: archive::ArchiveError,
    },
    /// Reading or writing here.
    #[error("{what}: {source}")]
    Io {
        /// The source, or the file written.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl FetchError {
    /// Whether what came was wrong, rather than that nothing came.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::WrongDigest { .. } | Self::TooLarge { .. } | Self::Archive { .. })
    }
}

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

/// Unpacks an archive that was verified.
fn unpack(what: &str, download: &Path, target: &Path, max_bytes: u64) -> Result<(), FetchError> {
    let reader = File::open(download).map_err(|source| FetchError::Io { what: what.to_owned(), source })?;
    archive::unpack(reader, target, max_bytes)
        .map_err(|source| FetchError::Archive { what: what.to_owned(), source })
}

fn beside(target: &Path) -> PathBuf {
    target.with_file_name(".download")
}

/// Writes `reader` to a new file, and demands size and digest. The file is gone if that fails.
fn save(
    what: &str,
    reader: impl Read,
    announced: Option<u64>,
    max: u64,
    expected: Option<Digest>,
    target: &Path,
) -> Result<(), FetchError> {
    if announced.is_some_and(|size| size > max) {
        return Err(FetchError::TooLarge { what: what.to_owned(), max });
    }
    demand_space(what, announced.unwrap_or(0), target)?;
    let saved = copy(what, reader, announced, max, expected, target);
    if saved.is_err() {
        let _ = std::fs::remove_file(target);
    }
    saved
}

fn copy(
    what: &str,
    mut reader: impl Read,
    announced: Option<u64>,
    max: u64,
    expected: Option<Digest>,
    target: &Path,
) -> Result<(), FetchError> {
    let local = |source| FetchError::Io { what: target.display().to_string(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(local)?;
    let (mut hasher, mut buffer, mut size) = (Sha256::new(), vec![0; 256 << 10], 0_u64);
    let mut reported = Instant::now();
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(FetchError::Remote {
                    what: what.to_owned(),
                    reason: error.to_string(),
                    passing: true,
                });
            }
        };
        size += u64::try_from(read).unwrap_or(u64::MAX);
        if size > max {
            return Err(FetchError::TooLarge { what: what.to_owned(), max });
        }
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(local)?;
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            tracing::info!(what, bytes = size, of = announced, "fetching");
        }
    }
    if announced.is_some_and(|announced| announced != size) {
        let reason = format!("ended after {size} of {} bytes", announced.unwrap_or(0));
        return Err(FetchError::Remote { what: what.to_owned(), reason, passing: true });
    }
    let found = Digest::from_bytes(hasher.finalize().into());
    match expected {
        Some(expected) if expected != found => {
            return Err(FetchError::WrongDigest { what: what.to_owned(), expected, found });
        }
        _ => {}
    }
    file.sync_all().map_err(local)?;
    tracing::info!(what, bytes = size, "fetched");
    Ok(())
}

fn demand_space(what: &str, bytes: u64, target: &Path) -> Result<(), FetchError> {
    let folder = target.parent().unwrap_or(Path::new("/"));
    let io = |errno: rustix::io::Errno| FetchError::Io {
        what: folder.display().to_string(),
        source: errno.into(),
    };
    let statistics = rustix::fs::statvfs(folder).map_err(io)?;
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    // Small file systems, as in tests, keep a tenth instead.
    let reserve = RESERVE.min(statistics.f_blocks.saturating_mul(statistics.f_frsize) / 10);
    let needed = bytes.saturating_add(reserve);
    if needed > free {
        let (what, folder) = (what.to_owned(), folder.display().to_string());
        return Err(FetchError::NoSpace { what, needed, free, folder });
    }
    Ok(())
}
