//! The embedded engine: sled.

use std::{fs, path::Path};

use crate::{BlobHash, EventStore, StoreError, StreamId};

/// What the directory's FORMAT file says.
const FORMAT: &str = "contrast-event-log 1";
/// sled keeps at most this much in memory, in bytes.
const CACHE_BYTES: u64 = 16 << 20;

/// An event store in a directory of its own.
pub struct SledStore {
    db: sled::Db,
    segments: sled::Tree,
    blobs: sled::Tree,
}

impl SledStore {
    /// Opens the directory, making it if it is not there. One process at a time.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.display().to_string();
        let io = |error: std::io::Error| StoreError::Fault(format!("{path}: {error}"));
        fs::create_dir_all(directory).map_err(io)?;
        check_format(directory, &path)?;
        let open = || {
            let db = sled::Config::new()
                .path(directory.join("sled"))
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None) // every append flushes itself
                .open()?;
            Ok(Self { segments: db.open_tree("segments")?, blobs: db.open_tree("blobs")?, db })
        };
        open().map_err(|error: sled::Error| match error {
            sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => {
                StoreError::InUse(path.clone())
            }
            other => fault(other),
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.db.flush().map(drop).map_err(fault)
    }
}

fn check_format(directory: &Path, path: &str) -> Result<(), StoreError> {
    let file = directory.join("FORMAT");
    let io = |error: std::io::Error| StoreError::Fault(format!("{}: {error}", file.display()));
    let fresh = fs::read_dir(directory).map_err(io)?.next().is_none();
    if fresh {
        return fs::write(&file, format!("{FORMAT}\n")).map_err(io);
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    if found.trim() == FORMAT {
        return Ok(());
    }
    let found = found.trim().chars().take(80).collect();
    Err(StoreError::Format { path: path.to_owned(), found, expected: FORMAT })
}

#[expect(clippy::needless_pass_by_value, reason = "shape of map_err")]
fn fault(error: sled::Error) -> StoreError {
    StoreError::Fault(error.to_string())
}

fn stream_prefix(stream: &StreamId) -> Vec<u8> {
    match stream {
        StreamId::Control => vec![0],
        StreamId::Replica(id) => [&[1], id.as_bytes().as_slice()].concat(),
    }
}

fn segment_key(stream: &StreamId, index: u64) -> Vec<u8> {
    [stream_prefix(stream).as_slice(), &index.to_be_bytes()].concat()
}

impl EventStore for SledStore {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        if let Some(before) = index.checked_sub(1)
            && !self.segments.contains_key(segment_key(stream, before)).map_err(fault)?
        {
            return Err(StoreError::Gap { stream: *stream, index, next: before });
        }
        self.segments
            .compare_and_swap(segment_key(stream, index), None::<&[u8]>, Some(segment))
            .map_err(fault)?
            .map_err(|_| StoreError::IndexTaken { stream: *stream, index })?;
        self.flush()
    }

    fn read(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut left = max_bytes;
        let mut page = Vec::new();
        for entry in self.segments.range(segment_key(stream, index)..=segment_key(stream, u64::MAX)) {
            let (key, value) = entry.map_err(fault)?;
            if !page.is_empty() && value.len() > left {
                break;
            }
            left = left.saturating_sub(value.len());
            let index = key.last_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            let index = index.ok_or_else(|| StoreError::Fault("a segment without an index".into()))?;
            page.push((index, value.to_vec()));
        }
        Ok(page)
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        let hash = BlobHash::of(bytes);
        if !self.blobs.contains_key(hash.as_bytes()).map_err(fault)? {
            self.blobs.insert(hash.as_bytes(), bytes).map_err(fault)?;
        }
        Ok(hash)
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(bytes) = self.blobs.get(hash.as_bytes()).map_err(fault)? else { return Ok(None) };
        if BlobHash::of(&bytes) == *hash {
            Ok(Some(bytes.to_vec()))
        } else {
            Err(StoreError::BlobChanged(*hash))
        }
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        let mut streams = Vec::new();
        let mut from = vec![0];
        while let Some((key, _)) = self.segments.range(from..).next().transpose().map_err(fault)? {
            let stream = match key.split_at(key.len().saturating_sub(8)).0 {
                [0] => StreamId::Control,
                [1, id @ ..] => StreamId::Replica(
                    id.try_into().map_err(|error| StoreError::Fault(format!("stream key: {error}")))?,
                ),
                _ => return Err(StoreError::Fault("a stream key of unknown shape".into())),
            };
            streams.push(stream);
            from = segment_key(&stream, u64::MAX);
            from.push(0); // the smallest key after the stream's last possible one
        }
        Ok(streams)
    }
}
