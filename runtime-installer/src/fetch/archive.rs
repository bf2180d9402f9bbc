//! Unpacking archives as if they were hostile, though their digest was checked: whoever made the configuration may
//! have been deceived.
//!
//! Only files, folders and symlinks that stay inside are accepted; every other kind of entry is an error that names it.
//! Nothing is written through a symlink, over another entry, or outside the folder.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, BufRead as _, BufReader, Read},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use runtime_bundle::RuntimePath;
use tar::{Archive, Entry, EntryType};

/// Most bytes of an archive that are listed.
const MAX_LISTED: u64 = 1 << 20;
/// Most bytes of headers and padding, beyond as much as there are contents.
const MAX_HEADERS: u64 = 128 << 20;
const MAX_ENTRIES: usize = 100_000;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A path that leads out of the folder, or nowhere.
    #[error("entry {0:?} leads out of the folder it is unpacked into")]
    Outside(String),
    /// A symlink that leads out.
    #[error("symlink {path:?} leads to {target:?}, out of the folder it is unpacked into")]
    LinkOutside {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A kind of entry that a runtime does not need.
    #[error("entry {path:?} is a {kind}; only files, folders and symlinks are unpacked")]
    Kind {
        /// The entry.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// An entry below something that is no folder, or in the place of another one.
    #[error("entry {0:?} is in the way of another entry")]
    Conflict(String),
    /// Too much.
    #[error("over {0} bytes unpacked")]
    TooLarge(u64),
    /// Too many.
    #[error("over {MAX_ENTRIES} entries")]
    TooMany,
    /// Not an archive, or cut off; or the disk.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Unpacks a tar archive (plain, gzip or zstd) into `folder`, at most `max_bytes` of file contents.
pub fn unpack(reader: impl Read, folder: &Path, max_bytes: u64) -> Result<(), ArchiveError> {
    fs::create_dir_all(folder)?;
    let mut left = max_bytes;
    let mut folders = BTreeSet::new();
    for (count, entry) in Archive::new(bounded(reader, max_bytes)?).entries()?.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(ArchiveError::TooMany);
        }
        let mut entry = entry?;
        let Some(path) = path_of(&entry)? else { continue };
        make_parents(folder, &path, &mut folders)?;
        let target = folder.join(path.as_str());
        match entry.header().entry_type() {
            EntryType::Directory => make_folder(&target, path.as_str(), &mut folders)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                left = left.checked_sub(entry.size()).ok_or(ArchiveError::TooLarge(max_bytes))?;
                write(&mut entry, &target, &path)?;
            }
            EntryType::Symlink => link(&entry, &target, &path)?,
            other => return Err(ArchiveError::Kind { path: path.as_str().to_owned(), kind: kind(other) }),
        }
    }
    Ok(())
}

/// Writes the regular file `wanted` of an archive to `target`; false if it is not there.
pub fn extract_one(
    reader: impl Read,
    wanted: &str,
    target: &Path,
    max_bytes: u64,
) -> Result<bool, ArchiveError> {
    for (count, entry) in Archive::new(bounded(reader, max_bytes)?).entries()?.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(ArchiveError::TooMany);
        }
        let mut entry = entry?;
        let Ok(Some(path)) = path_of(&entry) else { continue };
        if path.as_str() != wanted {
            continue;
        }
        if entry.header().entry_type() != EntryType::Regular {
            let kind = kind(entry.header().entry_type());
            return Err(ArchiveError::Kind { path: wanted.to_owned(), kind });
        }
        if entry.size() > max_bytes {
            return Err(ArchiveError::TooLarge(max_bytes));
        }
        write(&mut entry, target, &path)?;
        return Ok(true);
    }
    Ok(false)
}

/// Paths of an archive's entries, unless one is refused: what [`unpack`] reads, without writing anything.
pub fn list(bytes: &[u8]) -> Result<Vec<String>, ArchiveError> {
    let mut paths = Vec::new();
    // Compressed bytes may stand for far more than there are.
    let bounded = plain(bytes)?.take(MAX_LISTED);
    for entry in Archive::new(bounded).entries()? {
        let entry = entry?;
        entry.header().mode()?;
        paths.extend(path_of(&entry)?.map(|path| path.as_str().to_owned()));
    }
    Ok(paths)
}

/// Headers and padding come on top of the contents, but not without end.
fn bounded<'a>(reader: impl Read + 'a, max_bytes: u64) -> io::Result<impl Read + 'a> {
    Ok(plain(reader)?.take(max_bytes.saturating_mul(2).saturating_add(MAX_HEADERS)))
}

/// Undoes the compression, which the first bytes tell.
fn plain<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::new(reader);
    let start = reader.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(reader);
        Box::new(decoder.map_err(|error| io::Error::other(error.to_string()))?)
    } else {
        Box::new(reader)
    })
}

/// The path of an entry; `None` for the archive's own root.
fn path_of(entry: &Entry<'_, impl Read>) -> Result<Option<RuntimePath>, ArchiveError> {
    let bytes = entry.path_bytes();
    let text = String::from_utf8_lossy(&bytes);
    let outside = || ArchiveError::Outside(text.chars().take(200).collect());
    if text.starts_with('/') || text.contains('\u{fffd}') {
        return Err(outside());
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() {
        return Ok(None);
    }
    RuntimePath::relative(&parts.join("/")).map(Some).map_err(|_| outside())
}

fn make_parents(folder: &Path, path: &RuntimePath, made: &mut BTreeSet<PathBuf>) -> Result<(), ArchiveError> {
    let mut above: Vec<&Path> = Path::new(path.as_str()).ancestors().skip(1).collect();
    above.pop(); // the empty path
    for part in above.into_iter().rev() {
        make_folder(&folder.join(part), path.as_str(), made)?;
    }
    Ok(())
}

/// Makes a folder that this archive made already, or that is new. Never follows a symlink.
fn make_folder(target: &Path, path: &str, made: &mut BTreeSet<PathBuf>) -> Result<(), ArchiveError> {
    if !made.insert(target.to_owned()) {
        return Ok(());
    }
    match fs::create_dir(target) {
        Ok(()) => Ok(fs::set_permissions(target, fs::Permissions::from_mode(0o755))?),
        // Another layer of the same image may have made it.
        Err(_) if fs::symlink_metadata(target).is_ok_and(|found| found.is_dir()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(ArchiveError::Conflict(path.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

fn write(entry: &mut Entry<'_, impl Read>, target: &Path, path: &RuntimePath) -> Result<(), ArchiveError> {
    // Never set-id, never writable but by root.
    let mode = 0o644 | (entry.header().mode()? & 0o111);
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(ArchiveError::Conflict(path.as_str().to_owned()));
        }
        other => other?,
    };
    io::copy(entry, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(file.sync_all()?)
}

fn link(entry: &Entry<'_, impl Read>, target: &Path, path: &RuntimePath) -> Result<(), ArchiveError> {
    let bytes = entry.link_name_bytes().unwrap_or_default();
    let to = String::from_utf8_lossy(&bytes).into_owned();
    let outside = || ArchiveError::LinkOutside { path: path.as_str().to_owned(), target: to.clone() };
    if to.is_empty() || to.starts_with('/') || to.contains(['\0', '\u{fffd}']) {
        return Err(outside());
    }
    // Steps up come first, where the folders above are known to be folders: a step up after a name could start from
    // wherever another symlink of that name leads.
    let (mut above, mut down) = (path.as_str().split('/').count() - 1, false);
    for part in to.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part != ".." {
            down = true;
        } else if down || above == 0 {
            return Err(outside());
        } else {
            above -= 1;
        }
    }
    match std::os::unix::fs::symlink(&to, target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(ArchiveError::Conflict(path.as_str().to_owned()))
        }
        other => Ok(other?),
    }
}

fn kind(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Link => "hard link",
        EntryType::Char => "character device",
        EntryType::Block => "block device",
        EntryType::Fifo => "named pipe",
        EntryType::Directory => "folder",
        EntryType::Symlink => "symlink",
        _ => "kind of entry that is not known",
    }
}

#[cfg(test)]
mod tests;
