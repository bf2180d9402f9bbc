//! The device that the host attached the document to.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use crate::envelope::{self, EnvelopeError};

/// Disks among which agents look for it: virtio's and SCSI's.
const DISKS: [&str; 2] = ["vd", "sd"];

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The folder cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No disk holds one.
    #[error("no disk in {} begins with \"initdata\": was the pod started without its policy? looked at {looked_at}", .folder.display())]
    None {
        /// The folder.
        folder: PathBuf,
        /// Names of the disks.
        looked_at: String,
    },
    /// Which one counts would be the host's to say.
    #[error("{} and {} both begin with \"initdata\": one is wanted", .0.display(), .1.display())]
    Two(PathBuf, PathBuf),
    /// One holds something else.
    #[error("{}: {source}", .path.display())]
    Envelope {
        /// The disk.
        path: PathBuf,
        /// What is wrong.
        source: EnvelopeError,
    },
}

/// The one disk in the folder (`/dev`) that holds a document, and the document's bytes.
pub fn find(folder: &Path) -> Result<(PathBuf, Vec<u8>), DeviceError> {
    let (mut found, mut looked_at) = (None, Vec::new());
    for path in disks(folder).map_err(|source| DeviceError::Folder { path: folder.to_owned(), source })? {
        looked_at.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let read = File::open(&path).map_err(EnvelopeError::Io).and_then(envelope::read);
        let Some(document) = read.map_err(|source| DeviceError::Envelope { path: path.clone(), source })?
        else {
            continue;
        };
        match found {
            None => found = Some((path, document)),
            Some((first, _)) => return Err(DeviceError::Two(first, path)),
        }
    }
    found.ok_or_else(|| {
        let looked_at = if looked_at.is_empty() { "none".to_owned() } else { looked_at.join(", ") };
        DeviceError::None { folder: folder.to_owned(), looked_at }
    })
}

fn disks(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let named = DISKS.iter().any(|prefix| entry.file_name().to_string_lossy().starts_with(prefix));
        // Plain files are images of disks.
        if named && (kind.is_block_device() || kind.is_file()) {
            disks.push(entry.path());
        }
    }
    disks.sort();
    Ok(disks)
}
