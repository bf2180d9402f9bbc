//! The embedded engine: sled.
//!
//! sled checks its pages, but after damage it may come up with less than was there. So how many
//! segments of each stream were acknowledged is also written beside it, in `heads/`, and compared
//! when the directory is opened. After a failed write (a full disk) sled refuses everything until
//! it is opened anew; the next call does that.
//!
//! Whatever is larger than [`PART_BYTES`] is kept in parts. For the sake of memory: sled's cache keeps
//! at least one page in each of its 256 shards, and a page may hold many values (see also [`touch`]).
//! And because sled writes values above 512 KiB to files of their own, and waits for ever in the next
//! flush when the disk is full at that moment.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
    time::Duration,
};

use crate::{BlobHash, EventStore, StoreError, StreamId};

/// What the directory's FORMAT file says.
const FORMAT: &str = "contrast-event-log 2";
/// sled keeps at most this much in memory, in bytes.
const CACHE_BYTES: u64 = 16 << 20;

/// How long another process, or a store that was dropped, gets to close the files.
const CLOSING: Duration = Duration::from_secs(1);
/// How long sled's threads get to close the files of this store.
const LET_GO: Duration = Duration::from_secs(5);
const MOMENT: Duration = Duration::from_millis(10);
/// Largest value that sled gets, in bytes.
const PART_BYTES: usize = 8 << 10;

/// An event store in a directory of its own.
pub struct SledStore {
    directory: PathBuf,
    /// Nothing after a fault, until the next call opens it again.
    engine: RwLock<Option<Engine>>,
    heads: Mutex<HashMap<StreamId, File>>,
    /// Held by the one append at a time.
    appending: Mutex<()>,
}

struct Engine {
    db: sled::Db,
    segments: sled::Tree,
    blobs: sled::Tree,
    derived: sled::Tree,
}

impl SledStore {
    /// Opens the directory, making it if it is not there. One process at a time.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let store = Self {
            directory: directory.to_owned(),
            engine: RwLock::new(None),
            heads: Mutex::default(),
            appending: Mutex::default(),
        };
        store.in_directory(fs::create_dir_all(directory))?;
        store.check_format()?;
        store.in_directory(fs::create_dir_all(directory.join("heads")))?;
        let engine = store.open_within(CLOSING)?;
        *store.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(engine);
        Ok(store)
    }

    /// Closes the files and opens them again, which leaves sled's own snapshot of where things are:
    /// the next start then need not read through what was written since this one.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut engine = self.engine.write().unwrap_or_else(PoisonError::into_inner);
        *engine = None;
        *engine = Some(self.open_within(LET_GO)?);
        Ok(())
    }

    /// Opens the files, waiting for whoever is just closing them: a process that ends, or sled's
    /// threads in this one, which need a moment to let go.
    fn open_within(&self, patience: Duration) -> Result<Engine, StoreError> {
        let mut waited = Duration::ZERO;
        loop {
            match self.open_engine() {
                Err(StoreError::InUse(_)) if waited < patience => {
                    std::thread::sleep(MOMENT);
                    waited += MOMENT;
                }
                outcome => return outcome,
            }
        }
    }

    fn path(&self) -> String {
        self.directory.display().to_string()
    }

    fn in_directory<T>(&self, outcome: std::io::Result<T>) -> Result<T, StoreError> {
        outcome.map_err(|error| StoreError::Fault(format!("{}: {error}", self.path())))
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let file = self.directory.join("FORMAT");
        let fresh = self.in_directory(fs::read_dir(&self.directory))?.next().is_none();
        if fresh {
            return self.in_directory(fs::write(&file, format!("{FORMAT}\n")));
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        if found.trim() == FORMAT {
            return Ok(());
        }
        let found = found.trim().chars().take(80).collect();
        Err(StoreError::Format { path: self.path(), found, expected: FORMAT })
    }

    fn open_engine(&self) -> Result<Engine, StoreError> {
        let open = || {
            let db = sled::Config::new()
                .path(self.directory.join("sled"))
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None) // every append flushes itself
                .open()?;
            let [segments, blobs, derived] = ["segments", "blobs", "derived"].map(|name| db.open_tree(name));
            Ok(Engine { segments: segments?, blobs: blobs?, derived: derived?, db })
        };
        // sled asserts where its files make no sense; that is a fault of the files, not of ours.
        let opened = std::panic::catch_unwind(open).map_err(|_| {
            StoreError::Fault(format!("{}: the files of the event store are damaged", self.path()))
        })?;
        let engine = opened.map_err(|error: sled::Error| match error {
            sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => {
                StoreError::InUse(self.path())
            }
            other => StoreError::Fault(format!("{}: {}", self.path(), fault_text(other))),
        })?;
        self.check_heads(&engine).map_err(|error| self.named(error))?;
        Ok(engine)
    }

    /// Compares what is there with what was acknowledged.
    fn check_heads(&self, engine: &Engine) -> Result<(), StoreError> {
        for entry in self.in_directory(fs::read_dir(self.directory.join("heads")))? {
            let entry = self.in_directory(entry)?;
            let name = entry.file_name();
            let Some(stream) = name.to_str().and_then(|name| name.parse::<StreamId>().ok()) else {
                return Err(StoreError::Fault(format!("{}: not a stream", entry.path().display())));
            };
            let bytes = self.in_directory(fs::read(entry.path()))?;
            let Ok(expected) = bytes.as_slice().try_into().map(u64::from_be_bytes) else {
                continue; // made, but never written: nothing was acknowledged by it
            };
            let found = count(engine, &stream)?;
            if found < expected {
                return Err(StoreError::Lost { path: self.path(), stream, expected, found });
            }
        }
        Ok(())
    }

    /// Remembers how many segments were acknowledged. Not flushed: it may lag behind the segments,
    /// which are, but never run ahead of them.
    fn note_head(&self, stream: &StreamId, segments: u64) -> Result<(), StoreError> {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if !heads.contains_key(stream) {
            let path = self.directory.join("heads").join(stream.to_string());
            let file = File::options().create(true).truncate(false).write(true).open(path);
            heads.insert(*stream, self.in_directory(file)?);
        }
        match heads.get(stream) {
            Some(file) => self.in_directory(file.write_all_at(&segments.to_be_bytes(), 0)),
            None => Ok(()),
        }
    }

    /// The error, with the directory.
    fn named(&self, error: StoreError) -> StoreError {
        let path = self.path();
        match error {
            StoreError::Fault(text) if !text.contains(&path) => StoreError::Fault(format!("{path}: {text}")),
            other => other,
        }
    }

    /// Runs `work` on the engine, opening it anew if an earlier call met a fault.
    fn with<R>(&self, work: impl Fn(&Engine) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let outcome = {
            let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
            engine.as_ref().map(&work)
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => {
                let mut engine = self.engine.write().unwrap_or_else(PoisonError::into_inner);
                let engine = match engine.take() {
                    Some(reopened) => engine.insert(reopened),
                    None => engine.insert(self.open_within(LET_GO)?),
                };
                work(engine)
            }
        };
        let Err(StoreError::Fault(text)) = outcome else { return outcome };
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = None;
        Err(self.named(StoreError::Fault(text)))
    }
}

fn fault(error: sled::Error) -> StoreError {
    StoreError::Fault(fault_text(error))
}

fn fault_text(error: sled::Error) -> String {
    match error {
        sled::Error::Corruption { at, .. } => format!("the files of the event store are damaged at {at:?}"),
        sled::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn stream_prefix(stream: &StreamId) -> Vec<u8> {
    match stream {
        StreamId::Control => vec![0],
        StreamId::Replica(id) => [&[1], id.as_bytes().as_slice()].concat(),
    }
}

fn part_key(stream: &StreamId, index: u64, part: u32) -> Vec<u8> {
    [stream_prefix(stream).as_slice(), &index.to_be_bytes(), &part.to_be_bytes()].concat()
}

/// Writes a value in parts, replacing what was there. `key` gives the key of a part.
fn put_parts(tree: &sled::Tree, key: impl Fn(u32) -> Vec<u8>, value: &[u8]) -> Result<(), StoreError> {
    // Batches are slow, and most values have one part that replaces at most one.
    let old = if value.len() < PART_BYTES {
        tree.insert(key(0), value).map_err(fault)?
    } else {
        tree.get(key(0)).map_err(fault)?
    };
    let had_more = old.is_some_and(|old| old.len() == PART_BYTES);
    if value.len() >= PART_BYTES || had_more {
        let mut parts = sled::Batch::default();
        let mut next = 0;
        for part in value.chunks(PART_BYTES).chain(value.is_empty().then_some(&[][..])) {
            parts.insert(key(next), part);
            next += 1;
        }
        while had_more && tree.contains_key(key(next)).map_err(fault)? {
            parts.remove(key(next));
            next += 1;
        }
        tree.apply_batch(parts).map_err(fault)?;
    }
    touch(tree, &key(0), value.len())
}

/// Reads a value of [`put_parts`].
fn get_parts(tree: &sled::Tree, key: impl Fn(u32) -> Vec<u8>) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(first) = tree.get(key(0)).map_err(fault)? else { return Ok(None) };
    let mut value = first.to_vec();
    if value.len() == PART_BYTES {
        for part in tree.range(key(1)..=key(u32::MAX)) {
            value.extend_from_slice(&part.map_err(fault)?.1);
        }
    }
    Ok(Some(value))
}

fn blob_key(hash: &BlobHash) -> impl Fn(u32) -> Vec<u8> {
    move |part| [hash.as_bytes().as_slice(), &part.to_be_bytes()].concat()
}

/// Names hold no NUL, so none is the beginning of another one's key.
fn derived_key(name: &[u8]) -> impl Fn(u32) -> Vec<u8> {
    move |part| [name, &[0], &part.to_be_bytes()].concat()
}

/// Splits a key of [`part_key`]: prefix of the stream, index, part.
fn split_key(key: &[u8]) -> Result<(&[u8], u64, u32), StoreError> {
    let split = || {
        let (rest, part) = key.split_last_chunk()?;
        let (prefix, index) = rest.split_last_chunk()?;
        Some((prefix, u64::from_be_bytes(*index), u32::from_be_bytes(*part)))
    };
    split().ok_or_else(|| StoreError::Fault("a segment under a key of unknown shape".into()))
}

/// sled gives up pages of a shard of its cache at each 64th access to it only, which long scans and
/// streams of large values do not reach before memory is full. So large values count more often.
fn touch(tree: &sled::Tree, key: &[u8], len: usize) -> Result<(), StoreError> {
    for _ in 0..len / 4096 {
        tree.contains_key(key).map_err(fault)?;
    }
    Ok(())
}

/// Number of segments, if none is missing in between.
fn count(engine: &Engine, stream: &StreamId) -> Result<u64, StoreError> {
    let range = part_key(stream, 0, 0)..=part_key(stream, u64::MAX, u32::MAX);
    match engine.segments.range(range).next_back().transpose().map_err(fault)? {
        Some((key, _)) => Ok(split_key(&key)?.1 + 1),
        None => Ok(0),
    }
}

impl EventStore for SledStore {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        let _one = self.appending.lock().unwrap_or_else(PoisonError::into_inner);
        self.with(|engine| {
            let next = count(engine, stream)?;
            match index.cmp(&next) {
                std::cmp::Ordering::Less => return Err(StoreError::IndexTaken { stream: *stream, index }),
                std::cmp::Ordering::Greater => return Err(StoreError::Gap { stream: *stream, index, next }),
                std::cmp::Ordering::Equal => {}
            }
            put_parts(&engine.segments, |part| part_key(stream, index, part), segment)?;
            engine.db.flush().map_err(fault)?;
            self.note_head(stream, index + 1)
        })
    }

    fn read(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.with(|engine| {
            let mut page: Vec<(u64, Vec<u8>)> = Vec::new();
            let mut bytes = 0;
            for entry in
                engine.segments.range(part_key(stream, index, 0)..=part_key(stream, u64::MAX, u32::MAX))
            {
                let (key, value) = entry.map_err(fault)?;
                let (_, index, part) = split_key(&key)?;
                match page.last_mut() {
                    Some((last, segment)) if *last == index => segment.extend_from_slice(&value),
                    Some(_) if bytes >= max_bytes => break,
                    _ => page.push((index, value.to_vec())),
                }
                if page.len() == 1 && bytes == 0 && part > 0 {
                    let text = format!("segment {index} of stream {stream} begins with part {part}");
                    return Err(StoreError::Fault(text));
                }
                bytes += value.len();
                touch(&engine.segments, &key, value.len())?;
            }
            Ok(page)
        })
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        let hash = BlobHash::of(bytes);
        self.with(|engine| {
            let key = blob_key(&hash);
            if !engine.blobs.contains_key(key(0)).map_err(fault)? {
                put_parts(&engine.blobs, key, bytes)?;
            }
            Ok(hash)
        })
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.with(|engine| get_parts(&engine.blobs, blob_key(hash)))?;
        match found {
            Some(bytes) if BlobHash::of(&bytes) == *hash => Ok(Some(bytes)),
            Some(_) => Err(StoreError::BlobChanged(*hash)),
            None => Ok(None),
        }
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.with(|engine| put_parts(&engine.derived, derived_key(name), value))
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|engine| get_parts(&engine.derived, derived_key(name)))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.with(|engine| engine.db.flush().map(drop).map_err(fault))
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        self.with(|engine| {
            let mut streams = Vec::new();
            let mut from = vec![0];
            while let Some((key, _)) = engine.segments.range(from..).next().transpose().map_err(fault)? {
                let stream = match split_key(&key)?.0 {
                    [0] => StreamId::Control,
                    [1, id @ ..] => StreamId::Replica(
                        id.try_into().map_err(|error| StoreError::Fault(format!("stream key: {error}")))?,
                    ),
                    _ => return Err(StoreError::Fault("a stream key of unknown shape".into())),
                };
                streams.push(stream);
                from = part_key(&stream, u64::MAX, u32::MAX);
                from.push(0); // the smallest key after the stream's last possible one
            }
            Ok(streams)
        })
    }
}
