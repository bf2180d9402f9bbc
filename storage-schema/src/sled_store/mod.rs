//! The embedded engine: a file of records, and sled to find them.
//!
//! Every segment and blob is a record of one file that is only appended to ([`crate::content`]); an append is
//! acknowledged when that file was flushed. Where each record is, and what can be computed from the records, is
//! in sled, which lags behind on disk: when the directory is opened, the records since its last flush are
//! read. So each content is written once, and whatever happens to sled's files costs time only.
//!
//! How many segments of each stream were acknowledged is also written beside it, in `heads/`, and compared
//! when the directory is opened. After a failed write (a full disk) everything is opened anew by the next call.

mod old_format;
mod places;

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use self::places::{IndexError, Places};
use crate::{
    BlobHash, EventStore, StoreError, StreamId,
    content::{Content, Name, Place, replace_file},
};

/// What the directory's FORMAT file says.
const FORMAT: &str = "contrast-event-log 3";
/// What it says where sled holds the contents, too.
const OLD_FORMAT: &str = "contrast-event-log 2";

/// How long another process, or a store that was dropped, gets to close the files.
const CLOSING: Duration = Duration::from_secs(1);
/// How long sled's threads get to close the files of this store.
const LET_GO: Duration = Duration::from_secs(5);
const MOMENT: Duration = Duration::from_millis(10);

/// sled is flushed after this many bytes of content: as much is read at most when the directory is opened.
const FLUSH_EVERY: u64 = 4 << 20;
/// Most blobs that wait for the next flush of the content.
const MOST_UNFLUSHED: usize = 4096;

/// An event store in a directory of its own.
pub struct SledStore {
    directory: PathBuf,
    content: Content,
    /// Nothing after a fault, until the next call opens it again.
    places: RwLock<Option<Places>>,
    heads: Mutex<HashMap<StreamId, File>>,
    /// Held by whoever writes to the content.
    writing: Mutex<Writing>,
    /// Where the last whole record ends.
    end: AtomicU64,
    /// Blobs whose records are written, but not flushed, and so not in sled: it must not name what a
    /// crash could undo.
    unflushed: Mutex<HashMap<BlobHash, Place>>,
    /// The index was dropped and made from the content.
    made_anew: AtomicBool,
    /// A flush of the content failed.
    flush_failed: AtomicBool,
    /// What the last write met, until one succeeds.
    failing: Mutex<Option<StoreError>>,
}

/// Proof of being the one that writes.
#[derive(Default)]
struct Writing {
    /// Bytes since sled was flushed.
    since_flush: u64,
}

fn elsewhere() -> IndexError {
    IndexError::Damaged("another record is where the index says".into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SledStore {
    /// Opens the directory, making it if it is not there. One process at a time.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let in_directory = |error| StoreError::Fault(format!("{}: {error}", directory.display()));
        fs::create_dir_all(directory).map_err(in_directory)?;
        let format = read_format(directory)?;
        fs::create_dir_all(directory.join("heads")).map_err(in_directory)?;
        let content = patiently(CLOSING, || Content::open(directory.join("content")))?;
        if format == OLD_FORMAT {
            old_format::take_over(directory, &content)?;
        }
        if format != FORMAT {
            replace_file(&directory.join("FORMAT"), format!("{FORMAT}\n").as_bytes())
                .map_err(in_directory)?;
        }
        old_format::remove(directory).map_err(in_directory)?;
        let store = Self {
            directory: directory.to_owned(),
            content,
            places: RwLock::new(None),
            heads: Mutex::default(),
            writing: Mutex::default(),
            end: AtomicU64::new(0),
            unflushed: Mutex::default(),
            made_anew: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            failing: Mutex::new(None),
        };
        let places = store.open_places(CLOSING)?;
        *store.places.write().unwrap_or_else(PoisonError::into_inner) = Some(places);
        Ok(store)
    }

    /// Closes sled's files and opens them again, which leaves sled's own snapshot of where things are:
    /// the next start then need not read through what was written since this one.
    pub fn reopen(&self) -> Result<(), StoreError> {
        // Where the disk is full, what is open goes on answering.
        places::has_room(&self.index()).map_err(|error| StoreError::Fault(error.to_string()))?;
        self.sync()?;
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        *places = None;
        *places = Some(self.open_places(LET_GO)?);
        Ok(())
    }

    fn index(&self) -> PathBuf {
        self.directory.join("index")
    }

    /// Opens sled's files and reads the records that they lack. Files that sled cannot read are made anew from
    /// the content, and so are those that show fewer segments than were acknowledged.
    fn open_places(&self, patience: Duration) -> Result<Places, StoreError> {
        let index = self.index();
        let mut why = match self.try_places(patience) {
            Ok(places) => match self.check_heads(&places) {
                Ok(()) => return Ok(places),
                Err(IndexError::Store(StoreError::Lost { stream, expected, found, .. })) => {
                    format!("{found} segments of stream {stream} instead of {expected}")
                }
                Err(IndexError::Damaged(text)) => text,
                Err(error) => return Err(error.into_error(&index)),
            },
            Err(IndexError::Damaged(text)) => text,
            Err(error) => return Err(error.into_error(&index)),
        };
        why.truncate(why.floor_char_boundary(300));
        tracing::warn!(index = %index.display(), why, "the index is made anew from the content");
        places::drop_files(&index).map_err(|error| IndexError::Io(error).into_error(&index))?;
        self.made_anew.store(true, Ordering::Release);
        let places = self.try_places(patience).map_err(|error| error.into_error(&index))?;
        self.check_heads(&places).map_err(|error| error.into_error(&index))?;
        Ok(places)
    }

    fn try_places(&self, patience: Duration) -> Result<Places, IndexError> {
        let index = self.index();
        let mut waited = Duration::ZERO;
        let places = loop {
            match Places::open(&index) {
                Err(IndexError::Busy) if waited < patience => {
                    std::thread::sleep(MOMENT);
                    waited += MOMENT;
                }
                outcome => break outcome?,
            }
        };
        places::guarded(|| self.read_rest(&places))?;
        Ok(places)
    }

    /// Takes note of the records that sled lacks.
    fn read_rest(&self, places: &Places) -> Result<(), IndexError> {
        let from = places.end()?;
        let length = self.content.length()?;
        if from > length {
            return Err(IndexError::Damaged(format!(
                "the content has {length} bytes, the index covers {from}"
            )));
        }
        let mut noted = from;
        let end = self.content.scan(from, |name, place| {
            places.note(name, place)?;
            // Not all at once: a start that is interrupted goes on from here.
            if place.end() - noted >= FLUSH_EVERY {
                places.set_end(place.end())?;
                noted = place.end();
            }
            Ok::<_, IndexError>(())
        })?;
        if end > from {
            if self.flush_failed.swap(false, Ordering::AcqRel) {
                self.content.write_again(from, end)?;
            }
            self.content.flush()?;
            places.set_end(end)?;
        }
        lock(&self.unflushed).clear();
        // A write may be under way, beyond what was read here.
        self.end.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// Compares what is there with what was acknowledged.
    fn check_heads(&self, places: &Places) -> Result<(), IndexError> {
        for entry in fs::read_dir(self.directory.join("heads")).map_err(IndexError::Io)? {
            let entry = entry.map_err(IndexError::Io)?;
            let name = entry.file_name();
            let Some(stream) = name.to_str().and_then(|name| name.parse::<StreamId>().ok()) else {
                return Err(StoreError::Fault(format!("{}: not a stream", entry.path().display())).into());
            };
            let bytes = fs::read(entry.path()).map_err(IndexError::Io)?;
            let Ok(expected) = bytes.as_slice().try_into().map(u64::from_be_bytes) else {
                continue; // made, but never written: nothing was acknowledged by it
            };
            let found = places.count(&stream)?;
            if found < expected {
                let end = self.end.load(Ordering::Acquire);
                let path = format!("{}, readable up to byte {end}", self.content.path().display());
                return Err(StoreError::Lost { path, stream, expected, found }.into());
            }
        }
        Ok(())
    }

    /// Remembers how many segments were acknowledged. Not flushed: it may lag behind the segments,
    /// which are, but never run ahead of them.
    fn note_head(&self, stream: &StreamId, segments: u64) -> Result<(), StoreError> {
        let path = self.directory.join("heads").join(stream.to_string());
        let note = || {
            let mut heads = lock(&self.heads);
            if !heads.contains_key(stream) {
                heads.insert(*stream, File::options().create(true).truncate(false).write(true).open(&path)?);
            }
            heads.get(stream).map_or(Ok(()), |file| file.write_all_at(&segments.to_be_bytes(), 0))
        };
        note().map_err(|error: std::io::Error| StoreError::Fault(format!("{}: {error}", path.display())))
    }

    /// Runs `work`, opening sled anew if an earlier call met a fault, and once more if its files turn out to be
    /// damaged.
    fn with<R>(&self, work: impl Fn(&Places) -> Result<R, IndexError>) -> Result<R, StoreError> {
        let outcome = {
            let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
            places.as_ref().map(|places| places::guarded(|| work(places)))
        };
        let trouble = match outcome {
            Some(Ok(done)) => return Ok(done),
            Some(Err(IndexError::Store(error))) if !matches!(error, StoreError::Fault(_)) => {
                return Err(error);
            }
            Some(Err(trouble)) => Some(trouble),
            None => None,
        };
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let damaged = match trouble {
            None => false,
            Some(IndexError::Damaged(why)) => {
                tracing::warn!(index = %self.index().display(), why, "the index is damaged");
                true
            }
            Some(trouble) => {
                *places = None;
                return Err(trouble.into_error(&self.index()));
            }
        };
        let reopened = match places.take() {
            Some(places) if !damaged => places,
            old => {
                drop(old);
                let in_index = |error| IndexError::Io(error).into_error(&self.index());
                if damaged {
                    places::has_room(&self.index()).map_err(in_index)?;
                    places::drop_files(&self.index()).map_err(in_index)?;
                    self.made_anew.store(true, Ordering::Release);
                }
                self.open_places(LET_GO)?
            }
        };
        match places::guarded(|| work(places.insert(reopened))) {
            Ok(done) => Ok(done),
            Err(trouble) => {
                let error = trouble.into_error(&self.index());
                if matches!(error, StoreError::Fault(_)) {
                    *places = None;
                }
                Err(error)
            }
        }
    }

    /// Remembers whether writing works.
    fn noting<R>(&self, outcome: Result<R, StoreError>) -> Result<R, StoreError> {
        match &outcome {
            Err(error @ StoreError::Fault(_)) => *lock(&self.failing) = Some(error.clone()),
            Ok(_) => *lock(&self.failing) = None,
            Err(_) => {}
        }
        outcome
    }

    /// The bytes of a blob, whose place `find` knows.
    fn find_blob(
        &self,
        hash: &BlobHash,
        find: impl Fn(&Places, &BlobHash) -> Result<Option<Place>, IndexError>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let unflushed = lock(&self.unflushed).get(hash).copied();
        let found = self.with(|places| {
            let place = unflushed.map_or_else(|| find(places, hash), |place| Ok(Some(place)))?;
            let Some(place) = place else { return Ok(None) };
            Ok(Some(self.content.read(place, Name::Blob(*hash))?.ok_or_else(elsewhere)?))
        })?;
        let Some(bytes) = found else { return Ok(None) };
        if BlobHash::of(&bytes) == *hash { Ok(Some(bytes)) } else { Err(StoreError::BlobChanged(*hash)) }
    }

    fn write(&self, writing: &mut Writing, name: Name, body: &[u8]) -> Result<Place, StoreError> {
        let place = self.content.write(self.end.load(Ordering::Acquire), name, body)?;
        self.end.fetch_max(place.end(), Ordering::AcqRel);
        writing.since_flush += body.len() as u64;
        Ok(place)
    }

    /// Flushes the content, and only then names in sled what it holds; `more` is what else is to be named. Nothing
    /// is tried twice: after a fault nobody knows what is there.
    fn flush(
        &self,
        writing: &mut Writing,
        more: impl FnOnce(&Places) -> Result<(), IndexError>,
    ) -> Result<(), StoreError> {
        let flush = |places: &Places| {
            self.content.flush().inspect_err(|_| self.flush_failed.store(true, Ordering::Release))?;
            let mut unflushed = lock(&self.unflushed);
            for (hash, place) in &*unflushed {
                places.note(Name::Blob(*hash), *place)?;
            }
            more(places)?;
            places.set_end(self.end.load(Ordering::Acquire))?;
            unflushed.clear();
            if writing.since_flush >= FLUSH_EVERY {
                places.flush()?;
                writing.since_flush = 0;
            }
            Ok(())
        };
        let outcome = match &*self.places.read().unwrap_or_else(PoisonError::into_inner) {
            Some(places) => places::guarded(|| flush(places)),
            None => {
                Err(StoreError::Fault(format!("{}: closed after a fault", self.index().display())).into())
            }
        };
        outcome.map_err(|trouble| {
            *self.places.write().unwrap_or_else(PoisonError::into_inner) = None;
            trouble.into_error(&self.index())
        })
    }
}

/// What the FORMAT file says; a new directory gets one.
fn read_format(directory: &Path) -> Result<&'static str, StoreError> {
    let path = directory.display();
    let file = directory.join("FORMAT");
    let here = |error| StoreError::Fault(format!("{path}: {error}"));
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(here)?;
    // What an earlier start left when the disk was full is nothing yet.
    if entries.iter().all(|entry| entry.file_name() == "FORMAT.new") {
        replace_file(&file, format!("{FORMAT}\n").as_bytes())
            .map_err(|error| StoreError::Fault(format!("{}: {error}", file.display())))?;
        return Ok(FORMAT);
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    match found.trim() {
        FORMAT => Ok(FORMAT),
        OLD_FORMAT => Ok(OLD_FORMAT),
        other => {
            let found = other.chars().take(80).collect();
            Err(StoreError::Format { path: path.to_string(), found, expected: FORMAT })
        }
    }
}

/// Waits for whoever is just closing the files: a process that ends, or a store that was dropped.
fn patiently<T>(patience: Duration, open: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut waited = Duration::ZERO;
    loop {
        match open() {
            Err(StoreError::InUse(_)) if waited < patience => {
                std::thread::sleep(MOMENT);
                waited += MOMENT;
            }
            outcome => return outcome,
        }
    }
}

impl EventStore for SledStore {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        let writing = &mut *lock(&self.writing);
        let next = self.with(|places| places.count(stream))?;
        match index.cmp(&next) {
            std::cmp::Ordering::Less => return Err(StoreError::IndexTaken { stream: *stream, index }),
            std::cmp::Ordering::Greater => return Err(StoreError::Gap { stream: *stream, index, next }),
            std::cmp::Ordering::Equal => {}
        }
        let name = Name::Segment(*stream, index);
        let written = self
            .write(writing, name, segment)
            .and_then(|place| self.flush(writing, |places| places.note(name, place)));
        self.noting(written)?;
        self.note_head(stream, index + 1)
    }

    fn read(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.with(|places| {
            let mut page: Vec<(u64, Vec<u8>)> = Vec::new();
            let (mut bytes, mut next) = (0, index);
            for entry in places.segments(stream, index) {
                if bytes >= max_bytes && !page.is_empty() {
                    break;
                }
                let (found, place) = entry?;
                // A gap is the index's, unless that was just made anew: then the log refuses what it gets.
                if found != next && !self.made_anew.load(Ordering::Acquire) {
                    return Err(IndexError::Damaged(format!(
                        "segment {found} of stream {stream} where {next} belongs"
                    )));
                }
                next = found + 1;
                let segment =
                    self.content.read(place, Name::Segment(*stream, found))?.ok_or_else(elsewhere)?;
                bytes += segment.len();
                page.push((found, segment));
            }
            Ok(page)
        })
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        let hash = BlobHash::of(bytes);
        // What is damaged is written once more.
        if self.find_blob(&hash, Places::recent_blob).is_ok_and(|found| found.is_some()) {
            return Ok(hash);
        }
        let writing = &mut *lock(&self.writing);
        let written = self.write(writing, Name::Blob(hash), bytes);
        let place = self.noting(written)?;
        let waiting = {
            let mut unflushed = lock(&self.unflushed);
            unflushed.insert(hash, place);
            unflushed.len()
        };
        if waiting >= MOST_UNFLUSHED {
            let flushed = self.flush(writing, |_| Ok(()));
            self.noting(flushed)?;
        }
        Ok(hash)
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        match self.find_blob(hash, Places::blob) {
            // Of a blob that was damaged there may be a newer copy.
            Err(StoreError::Damaged { .. } | StoreError::BlobChanged(_)) => {
                self.find_blob(hash, Places::newest_blob)
            }
            found => found,
        }
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let outcome = self.with(|places| places.put_derived(name, value));
        if outcome.is_err() { self.noting(outcome) } else { outcome }
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|places| places.get_derived(name))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let writing = &mut *lock(&self.writing);
        self.with(|_| Ok(()))?; // opens what a fault closed
        let flushed = self.flush(writing, Places::flush);
        self.noting(flushed)
    }

    fn failing(&self) -> Option<StoreError> {
        let error = lock(&self.failing).clone()?;
        let tried = places::has_room(&self.index());
        let outcome = tried.map_err(|error| StoreError::Fault(error.to_string())).and_then(|()| self.sync());
        match outcome {
            Ok(()) => {
                *lock(&self.failing) = None;
                None
            }
            Err(_) => Some(error),
        }
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        self.with(Places::streams)
    }
}
