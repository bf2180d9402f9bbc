//! Writing what comes to a new file: bounded while it is read, then held against its digest.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use runtime_bundle::Digest;
use sha2::{Digest as _, Sha256};

use super::{archive, error::FetchError};

/// Left free on the file system, in bytes.
const RESERVE: u64 = 64 << 20;
/// Between two lines of the log.
const REPORT: Duration = Duration::from_secs(5);

/// Unpacks an archive that was verified.
pub(super) fn unpack(what: &str, download: &Path, target: &Path, max_bytes: u64) -> Result<(), FetchError> {
    let reader = File::open(download).map_err(|source| FetchError::Io { what: what.to_owned(), source })?;
    archive::unpack(reader, target, max_bytes)
        .map_err(|source| FetchError::Archive { what: what.to_owned(), source })
}

pub(super) fn beside(target: &Path) -> PathBuf {
    target.with_file_name(".download")
}

/// Writes `reader` to a new file, and demands size and digest. The file is gone if that fails.
pub(super) fn save(
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
