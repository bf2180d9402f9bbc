//! Where each record of the content is, and what can be computed from the records: sled.
//!
//! All of this can be made anew from the content. So sled's files need not survive: what a crash left
//! behind is removed, and files that sled cannot read are dropped and made again.

use std::{
    fs,
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    BlobHash, StoreError, StreamId,
    content::{self, Name, Place},
};

/// sled keeps at most this much in memory, in bytes as on disk, which are several times as many in memory;
/// and some pages of each of its 256 shards on top.
const CACHE_BYTES: u64 = 4 << 20;
/// Largest value that sled gets, in bytes: it keeps at least one page in each shard, a page may hold many
/// values, and above 512 KiB it writes values to files of their own and waits for ever in the next flush if the
/// disk is full at that moment.
const PART_BYTES: usize = 8 << 10;
/// What must be free for a failure of sled to be taken for damage and not for a full disk.
const ROOM: usize = 64 << 10;
/// Key of the place where the records end that are in here.
const END: &[u8] = b"end";
/// The tree of blobs as earlier versions kept it: by hash alone.
const BLOBS_BY_HASH: &str = "blobs";
/// Blobs are found by the window of the content in which they begin, and then by hash. Hashes come in no order: with one
/// order for all of them each new blob would be put between old ones, on a page that sled has to read first, and the
/// longer the log, the slower. 64 MiB are the evidence of some 7000 certificates, whose places take half a MiB.
const WINDOW_BITS: u32 = 26;
/// A blob that is put again is looked for in so many of the newest windows. One from before is written again, which costs
/// its bytes and nothing else.
const WINDOWS_OF_COPIES: u64 = 4;

/// The open files of sled.
pub(super) struct Places {
    db: sled::Db,
    segments: sled::Tree,
    blobs: sled::Tree,
    derived: sled::Tree,
    /// The window of the blob that was found last: whoever reads a log finds the next one there or in the one after.
    last_found: AtomicU64,
}

/// Why sled did not do what it was asked.
#[derive(Debug)]
pub(super) enum IndexError {
    /// Another one has the files open.
    Busy,
    /// They cannot be read or written just now.
    Io(io::Error),
    /// They make no sense.
    Damaged(String),
    /// Not sled's doing.
    Store(StoreError),
}

impl From<StoreError> for IndexError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<sled::Error> for IndexError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => Self::Busy,
            // sled reports a file that ends too early like one that cannot be read.
            sled::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Damaged(error.to_string())
            }
            sled::Error::Io(error) => Self::Io(error),
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// Runs `work` on sled, which asserts where its files make no sense.
pub(super) fn guarded<R>(work: impl FnOnce() -> Result<R, IndexError>) -> Result<R, IndexError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        Err(IndexError::Damaged(text.to_owned()))
    })
}

impl Places {
    /// Opens sled's files in `directory`, which may be new.
    pub(super) fn open(directory: &Path) -> Result<Self, IndexError> {
        remove_leftovers(directory).map_err(IndexError::Io)?;
        let opened = guarded(|| {
            let db = sled::Config::new()
                .path(directory)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None) // the store says when
                .open()?;
            if db.tree_names().iter().any(|name| *name == BLOBS_BY_HASH) {
                return Err(IndexError::Damaged("it is of an earlier version".into()));
            }
            let [segments, blobs, derived] =
                ["segments", "blobs in windows", "derived"].map(|name| db.open_tree(name));
            Ok(Self {
                segments: segments?,
                blobs: blobs?,
                derived: derived?,
                db,
                last_found: AtomicU64::new(0),
            })
        });
        match opened {
            Err(IndexError::Damaged(text)) => {
                has_room(directory).map_err(IndexError::Io)?;
                Err(IndexError::Damaged(text))
            }
            outcome => outcome,
        }
    }

    /// Makes durable what was put so far.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        self.db.flush()?;
        Ok(())
    }

    /// Where the records end that are in here.
    pub(super) fn end(&self) -> Result<u64, IndexError> {
        let Some(bytes) = self.db.get(END)? else { return Ok(0) };
        let end = bytes.as_ref().try_into().map(u64::from_be_bytes);
        end.map_err(|_| IndexError::Damaged("the place of the last record has another length".into()))
    }

    /// Takes note of a record.
    pub(super) fn note(&self, name: Name, place: Place) -> Result<(), IndexError> {
        match name {
            Name::Segment(stream, index) => {
                self.segments.insert(segment_key(&stream, index), &place.to_bytes())?;
            }
            Name::Blob(hash) => {
                self.blobs.insert(blob_key(place.begin() >> WINDOW_BITS, &hash), &place.to_bytes())?;
            }
        }
        Ok(())
    }

    /// Says that every record before `end` is in here.
    pub(super) fn set_end(&self, end: u64) -> Result<(), IndexError> {
        self.db.insert(END, &end.to_be_bytes())?;
        Ok(())
    }

    /// Number of segments of a stream, if none is missing in between.
    pub(super) fn count(&self, stream: &StreamId) -> Result<u64, IndexError> {
        let range = segment_key(stream, 0)..=segment_key(stream, u64::MAX);
        match self.segments.range(range).next_back().transpose()? {
            Some((key, _)) => Ok(split_key(&key)?.1 + 1),
            None => Ok(0),
        }
    }

    /// The segments of a stream from `index` on: index and place.
    pub(super) fn segments(
        &self,
        stream: &StreamId,
        index: u64,
    ) -> impl Iterator<Item = Result<(u64, Place), IndexError>> {
        let range = segment_key(stream, index)..=segment_key(stream, u64::MAX);
        self.segments.range(range).map(|entry| {
            let (key, place) = entry?;
            Ok((split_key(&key)?.1, place_of(&place)?))
        })
    }

    /// Where a blob is, at first near the one before; of one that was written more than once any copy.
    pub(super) fn blob(&self, hash: &BlobHash) -> Result<Option<Place>, IndexError> {
        let near = self.last_found.load(Ordering::Relaxed);
        for window in [near, near + 1] {
            if let Some(place) = self.blob_in(window, hash)? {
                return Ok(Some(place));
            }
        }
        self.newest_blob(hash)
    }

    pub(super) fn newest_blob(&self, hash: &BlobHash) -> Result<Option<Place>, IndexError> {
        self.blob_since(0, hash)
    }

    /// Where a blob is, if it was written lately.
    pub(super) fn recent_blob(&self, hash: &BlobHash) -> Result<Option<Place>, IndexError> {
        self.blob_since(self.newest_window()?.saturating_sub(WINDOWS_OF_COPIES - 1), hash)
    }

    fn blob_since(&self, oldest: u64, hash: &BlobHash) -> Result<Option<Place>, IndexError> {
        for window in (oldest..=self.newest_window()?).rev() {
            if let Some(place) = self.blob_in(window, hash)? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    fn blob_in(&self, window: u64, hash: &BlobHash) -> Result<Option<Place>, IndexError> {
        let Some(place) = self.blobs.get(blob_key(window, hash))? else { return Ok(None) };
        self.last_found.store(window, Ordering::Relaxed);
        place_of(&place).map(Some)
    }

    fn newest_window(&self) -> Result<u64, IndexError> {
        let Some((key, _)) = self.blobs.last()? else { return Ok(0) };
        let window = key.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        window.ok_or_else(|| IndexError::Damaged("a blob under a key of unknown shape".into()))
    }

    pub(super) fn streams(&self) -> Result<Vec<StreamId>, IndexError> {
        let mut streams = Vec::new();
        let mut from = vec![0];
        while let Some((key, _)) = self.segments.range(from..).next().transpose()? {
            let stream = split_key(&key)?.0;
            streams.push(stream);
            from = segment_key(&stream, u64::MAX);
            from.push(0); // the smallest key after the stream's last possible one
        }
        Ok(streams)
    }

    /// Keeps a value, in parts if it is large, replacing what was there.
    pub(super) fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), IndexError> {
        // Batches are slow, and most values have one part that replaces at most one.
        let key = |part| derived_key(name, part);
        let old = if value.len() < PART_BYTES {
            self.derived.insert(key(0), value)?
        } else {
            self.derived.get(key(0))?
        };
        let had_more = old.is_some_and(|old| old.len() == PART_BYTES);
        if value.len() >= PART_BYTES || had_more {
            let mut parts = sled::Batch::default();
            let mut next = 0;
            for part in value.chunks(PART_BYTES).chain(value.is_empty().then_some(&[][..])) {
                parts.insert(key(next), part);
                next += 1;
            }
            while had_more && self.derived.contains_key(key(next))? {
                parts.remove(key(next));
                next += 1;
            }
            self.derived.apply_batch(parts)?;
        }
        Ok(())
    }

    pub(super) fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let Some(first) = self.derived.get(derived_key(name, 0))? else { return Ok(None) };
        let mut value = first.to_vec();
        if value.len() == PART_BYTES {
            for part in self.derived.range(derived_key(name, 1)..=derived_key(name, u32::MAX)) {
                value.extend_from_slice(&part?.1);
            }
        }
        Ok(Some(value))
    }
}

/// Removes sled's files; they are made anew from the content.
pub(super) fn drop_files(directory: &Path) -> io::Result<()> {
    // Renamed first: threads of a sled that was just closed may still hold the files.
    let aside = directory.with_extension("damaged");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::rename(directory, &aside)?;
    fs::remove_dir_all(&aside)
}

/// Removes what sled leaves when it is ended, or the disk gets full, while it writes a snapshot; with such a
/// file it does not open.
pub(super) fn remove_leftovers(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating")) {
            tracing::info!(file = %entry.path().display(), "an unfinished file of sled was removed");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Tries whether the disk takes anything.
pub(super) fn has_room(directory: &Path) -> io::Result<()> {
    let path = directory.with_extension("room");
    let tried = fs::File::create(&path).and_then(|mut file| {
        file.write_all(&[0; ROOM])?;
        file.sync_data()
    });
    // Left over, it would only be written again the next time.
    let _ = fs::remove_file(&path);
    tried.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn place_of(bytes: &[u8]) -> Result<Place, IndexError> {
    Place::from_bytes(bytes).ok_or_else(|| IndexError::Damaged("a place of unknown shape".into()))
}

fn blob_key(window: u64, hash: &BlobHash) -> Vec<u8> {
    [window.to_be_bytes().as_slice(), hash.as_bytes()].concat()
}

fn segment_key(stream: &StreamId, index: u64) -> Vec<u8> {
    let index = index.to_be_bytes();
    match stream {
        StreamId::Control => [[0].as_slice(), &index].concat(),
        StreamId::Replica(id) => [[1].as_slice(), id.as_bytes(), &index].concat(),
    }
}

/// Splits a key of [`segment_key`].
fn split_key(key: &[u8]) -> Result<(StreamId, u64), IndexError> {
    let split = || {
        let (prefix, index) = key.split_last_chunk()?;
        let stream = match prefix {
            [0] => StreamId::Control,
            [1, id @ ..] => StreamId::Replica(id.try_into().ok()?),
            _ => return None,
        };
        Some((stream, u64::from_be_bytes(*index)))
    };
    split().ok_or_else(|| IndexError::Damaged("a segment under a key of unknown shape".into()))
}

/// Names hold no NUL, so none is the beginning of another one's key.
fn derived_key(name: &[u8], part: u32) -> Vec<u8> {
    [name, &[0], &part.to_be_bytes()].concat()
}

impl IndexError {
    /// For whoever asked the store.
    pub(super) fn into_error(self, directory: &Path) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Busy => StoreError::InUse(directory.display().to_string()),
            Self::Io(error) => content::fault(directory, &error),
            Self::Damaged(text) => {
                StoreError::Fault(format!("{}: sled cannot read its files: {text}", directory.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(window: u64) -> Place {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&(window << WINDOW_BITS).to_be_bytes());
        Place::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn blobs_are_found_in_every_window_and_copies_in_the_newest() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::open(directory.path()).unwrap();
        let [early, late, twice] = [b"early", b"late.", b"twice"].map(|bytes| BlobHash::of(bytes));
        for (hash, window) in [(early, 0), (twice, 1), (late, 900), (twice, 900)] {
            places.note(Name::Blob(hash), place(window)).unwrap();
        }
        for (hash, window) in [(late, 900), (early, 0), (late, 900), (early, 0)] {
            assert_eq!(places.blob(&hash).unwrap(), Some(place(window)));
        }
        assert_eq!(places.blob(&BlobHash::of(b"never")).unwrap(), None);
        assert_eq!(places.recent_blob(&early).unwrap(), None, "it would be looked for in every window");
        assert_eq!(places.recent_blob(&late).unwrap(), Some(place(900)));
        assert_eq!(places.newest_blob(&twice).unwrap(), Some(place(900)));
    }

    #[test]
    fn an_index_of_an_earlier_version_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let old = sled::open(directory.path()).unwrap();
        old.open_tree(BLOBS_BY_HASH).unwrap();
        drop(old);
        assert!(matches!(Places::open(directory.path()), Err(IndexError::Damaged(_))));
    }
}
