//! Directories of format 2, where sled held the contents itself: each segment and blob in parts of at most
//! 8 KiB, under its key and the number of the part.

use std::{fs, io, path::Path};

use super::places::{IndexError, drop_files, guarded, remove_leftovers};
use crate::{
    BlobHash, StoreError, StreamId,
    content::{Content, Name},
};

/// Copies everything into the content, which becomes nothing but that. What can be computed from it is left.
pub(super) fn take_over(directory: &Path, content: &Content) -> Result<(), StoreError> {
    let sled = directory.join("sled");
    tracing::info!(sled = %sled.display(), "the event log is moved into one file");
    let copied = copy(&sled, content).or_else(|trouble| match trouble {
        IndexError::Damaged(why) => {
            tracing::warn!(sled = %sled.display(), why, "sled's snapshot is dropped and its log read");
            remove_snapshots(&sled).map_err(IndexError::Io)?;
            copy(&sled, content)
        }
        other => Err(other),
    });
    copied.map_err(|trouble| trouble.into_error(&sled))
}

/// Removes the old files, if there are any; the FORMAT file says that they are not needed.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let sled = directory.join("sled");
    if sled.exists() { drop_files(&sled) } else { Ok(()) }
}

fn copy(sled: &Path, content: &Content) -> Result<(), IndexError> {
    remove_leftovers(sled).map_err(IndexError::Io)?;
    guarded(|| {
        let db = sled::Config::new().path(sled).cache_capacity(16 << 20).flush_every_ms(None).open()?;
        let mut end = 0;
        let mut write = |name: Option<Name>, body: &[u8]| {
            let Some(name) = name else { return Err(IndexError::Damaged("a key of unknown shape".into())) };
            end = content.write(end, name, body)?.end();
            Ok(())
        };
        for tree in ["segments", "blobs"] {
            let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
            for entry in &db.open_tree(tree)? {
                let (key, part) = entry?;
                let key = key.get(..key.len().saturating_sub(4)).unwrap_or_default();
                match &mut last {
                    Some((name, body)) if name == key => body.extend_from_slice(&part),
                    last => {
                        if let Some((name, body)) = last.replace((key.to_vec(), part.to_vec())) {
                            write(name_of(tree, &name), &body)?;
                        }
                    }
                }
            }
            if let Some((name, body)) = last {
                write(name_of(tree, &name), &body)?;
            }
        }
        content.flush()?;
        Ok(())
    })
}

fn name_of(tree: &str, key: &[u8]) -> Option<Name> {
    if tree == "blobs" {
        return Some(Name::Blob(BlobHash::from_bytes(key.try_into().ok()?)));
    }
    let (stream, index) = key.split_last_chunk()?;
    let stream = match stream {
        [0] => StreamId::Control,
        [1, id @ ..] => StreamId::Replica(id.try_into().ok()?),
        _ => return None,
    };
    Some(Name::Segment(stream, u64::from_be_bytes(*index)))
}

fn remove_snapshots(sled: &Path) -> io::Result<()> {
    for entry in fs::read_dir(sled)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with("snap.")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
