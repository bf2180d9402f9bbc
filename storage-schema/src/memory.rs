//! An engine in memory, for tests. It can be told to fail, and to lie.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{BlobHash, EventStore, StoreError, StreamId};

/// Keeps everything until it is dropped.
#[derive(Default)]
pub struct MemoryStore(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    streams: BTreeMap<StreamId, Vec<Vec<u8>>>,
    blobs: HashMap<[u8; 32], Vec<u8>>,
    derived: HashMap<Vec<u8>, Vec<u8>>,
    /// First segment that is still there, of the streams that were trimmed.
    trimmed: HashMap<StreamId, u64>,
    failing: bool,
}

impl MemoryStore {
    /// From now on every append fails, as on a full disk; or works again.
    pub fn set_failing(&self, failing: bool) {
        self.inner().failing = failing;
    }

    /// Lets a test rewrite history.
    pub fn tamper(&self, stream: &StreamId, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
        change(self.inner().streams.entry(*stream).or_default());
    }

    /// Gives up the segments of a stream below `index`, and these blobs.
    pub fn trim(&self, stream: &StreamId, index: u64, blobs: &[BlobHash]) {
        let mut inner = self.inner();
        inner.trimmed.insert(*stream, index);
        blobs.iter().for_each(|hash| drop(inner.blobs.remove(hash.as_bytes())));
    }

    /// Lets a test damage what was derived.
    pub fn tamper_derived(&self, change: impl Fn(&[u8], &mut Vec<u8>)) {
        for (name, value) in &mut self.inner().derived {
            change(name, value);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventStore for MemoryStore {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        let mut inner = self.inner();
        if inner.failing {
            return Err(StoreError::Fault("no space left (test)".into()));
        }
        let segments = inner.streams.entry(*stream).or_default();
        let next = segments.len() as u64;
        match index.cmp(&next) {
            std::cmp::Ordering::Less => Err(StoreError::IndexTaken { stream: *stream, index }),
            std::cmp::Ordering::Greater => Err(StoreError::Gap { stream: *stream, index, next }),
            std::cmp::Ordering::Equal => {
                segments.push(segment.to_vec());
                Ok(())
            }
        }
    }

    fn read(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let inner = self.inner();
        if let Some(first) = inner.trimmed.get(stream).copied().filter(|first| index < *first) {
            return Err(StoreError::Trimmed { stream: *stream, index, first });
        }
        let segments = inner.streams.get(stream).map(Vec::as_slice).unwrap_or_default();
        let mut left = max_bytes;
        let mut page = Vec::new();
        for (at, segment) in (0_u64..).zip(segments).skip_while(|(at, _)| *at < index) {
            if !page.is_empty() && segment.len() > left {
                break;
            }
            left = left.saturating_sub(segment.len());
            page.push((at, segment.clone()));
        }
        Ok(page)
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        let hash = BlobHash::of(bytes);
        self.inner().blobs.insert(*hash.as_bytes(), bytes.to_vec());
        Ok(hash)
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner().blobs.get(hash.as_bytes()).cloned())
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.inner().derived.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner().derived.get(name).cloned())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        let inner = self.inner();
        Ok(inner.streams.iter().filter(|(_, segments)| !segments.is_empty()).map(|(id, _)| *id).collect())
    }
}
