//! A store that several replicas share, behind a local copy of what was verified.
//!
//! The shared store decides who is first, so an append is there before it is here. The local copy is
//! what the shared store is held against: each read that goes beyond it also asks for the last segment
//! of the copy, so a shared store that was rolled back, restored from elsewhere or forked is noticed at
//! once, and never believed. Without a shared store this is the local engine, and nothing else.
//!
//! The copy takes only what [`crate::Log`] verified, and only once the log's key is known to be the
//! right one ([`EventStore::trust`]): a forged log that a hostile store shows to a new replica leaves
//! nothing behind.
//!
//! A shared store may give up old segments of the replica streams once every replica holds them. Who lacks
//! them then asks the other replicas ([`Copies`]); the log verifies what they send like anything else. The
//! control stream is never given up, so a hole in it is a lie.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{BlobHash, EventStore, StoreError, StreamId};

/// What the other replicas hold of what the shared store gave up. Calls block; nothing that comes from
/// here is trusted.
pub trait Copies: Send + Sync + 'static {
    /// Segments from `index` on, as [`EventStore::read`] gives them; none if nobody has them.
    fn segments(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;

    /// A blob, checked against its name.
    fn blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError>;
}

/// A local engine, and maybe one that is shared with other replicas.
pub struct Replicated<L> {
    local: L,
    shared: Option<Arc<dyn EventStore>>,
    copies: OnceLock<Arc<dyn Copies>>,
    /// Number of segments in the local copy of each stream.
    copied: Mutex<HashMap<StreamId, u64>>,
    trusted: AtomicBool,
    damage: Mutex<HashMap<StreamId, Damage>>,
    refusals: AtomicU64,
}

/// What the shared store was caught at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The last refusal.
    pub error: StoreError,
    /// How many there were since the start.
    pub count: u64,
}

impl<L: EventStore> Replicated<L> {
    /// The local engine alone.
    pub fn alone(local: L) -> Self {
        Self::new(local, None)
    }

    /// A copy in `local` of what is in `shared`.
    pub fn shared(local: L, shared: Arc<dyn EventStore>) -> Self {
        Self::new(local, Some(shared))
    }

    fn new(local: L, shared: Option<Arc<dyn EventStore>>) -> Self {
        Self {
            local,
            shared,
            copies: OnceLock::new(),
            copied: Mutex::default(),
            trusted: AtomicBool::new(false),
            damage: Mutex::default(),
            refusals: AtomicU64::new(0),
        }
    }

    /// From now on, asks the other replicas for what the shared store gave up.
    pub fn ask_copies(&self, copies: Arc<dyn Copies>) {
        // The first ones stay: there is one set of peers for the life of a process.
        let _ = self.copies.set(copies);
    }

    /// The local engine.
    pub fn local(&self) -> &L {
        &self.local
    }

    /// Whether other replicas write to the same store.
    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// What the shared store was last caught at; `None` once it shows the right past again.
    pub fn damage(&self) -> Option<Damage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned()
    }

    /// How often the shared store was refused since the start.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Asks the shared store whether it still shows the segments up to `segments`, and no more. Without
    /// a shared store the answer is yes.
    pub fn is_current(&self, stream: &StreamId, segments: u64) -> Result<bool, StoreError> {
        let Some(shared) = &self.shared else { return Ok(true) };
        let Some(last) = segments.checked_sub(1) else {
            return Ok(shared.read(stream, 0, 1)?.is_empty());
        };
        let page = shared.read(stream, last, 2 << 12)?;
        self.check(stream, last, page.first())?;
        Ok(page.len() == 1)
    }

    /// Number of segments in the copy.
    pub fn copied(&self, stream: &StreamId) -> Result<u64, StoreError> {
        if let Some(known) = self.table().get(stream) {
            return Ok(*known);
        }
        let (mut low, mut high) = (0, 1);
        let has = |index: u64| Ok::<_, StoreError>(!self.local.read(stream, index, 1)?.is_empty());
        while has(high - 1)? {
            (low, high) = (high, high * 2);
        }
        // Segments `..low` are there, segment `high - 1` is not.
        while low + 1 < high {
            let middle = low.midpoint(high);
            if has(middle - 1)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(*self.table().entry(*stream).or_insert(low))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<StreamId, u64>> {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the shared store's segment against the copy's.
    fn check(&self, stream: &StreamId, index: u64, found: Option<&(u64, Vec<u8>)>) -> Result<(), StoreError> {
        let here = self.local.read(stream, index, 1)?;
        let Some((_, mine)) = here.first().filter(|(place, _)| *place == index) else { return Ok(()) };
        let what = match found {
            Some((place, theirs)) if *place == index && theirs == mine => {
                self.damage.lock().unwrap_or_else(PoisonError::into_inner).remove(stream);
                return Ok(());
            }
            Some((place, _)) if *place == index => "shows other content",
            _ => "has nothing",
        };
        Err(self.refuse(*stream, StoreError::Diverged { stream: *stream, index, what }))
    }

    fn refuse(&self, stream: StreamId, error: StoreError) -> StoreError {
        let count = self.refusals.fetch_add(1, Ordering::Relaxed) + 1;
        let damage = Damage { error: error.clone(), count };
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, damage);
        error
    }

    /// From the shared store, or from the other replicas where it was trimmed.
    fn read_shared(
        &self,
        shared: &Arc<dyn EventStore>,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        match (shared.read(stream, index, max_bytes), self.copies.get()) {
            (Err(error @ StoreError::Trimmed { .. }), Some(copies)) if *stream != StreamId::Control => {
                let page = copies.segments(stream, index, max_bytes)?;
                if page.first().is_some_and(|(place, _)| *place == index) { Ok(page) } else { Err(error) }
            }
            (answer, _) => answer,
        }
    }

    fn copy(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        if index != self.copied(stream)? {
            return Ok(()); // here already, or the reader began in the middle
        }
        match self.local.append(stream, index, segment) {
            Ok(()) | Err(StoreError::IndexTaken { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut table = self.table();
        let copied = table.entry(*stream).or_default();
        *copied = (*copied).max(index + 1); // a slower reader may come after a faster one
        Ok(())
    }
}

impl<L: EventStore> EventStore for Replicated<L> {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        let Some(shared) = &self.shared else { return self.local.append(stream, index, segment) };
        // What is written to a store that shows another past is lost when the right one comes back.
        if let Some(Damage { error, .. }) = self.damage() {
            return Err(error);
        }
        match shared.append(stream, index, segment) {
            Ok(()) => {}
            // A gap where this replica has no gap: the store lost what comes before.
            Err(StoreError::Gap { next, .. }) if next < index && self.copied(stream)? >= index => {
                return Err(self.refuse(
                    *stream,
                    StoreError::Diverged { stream: *stream, index: next, what: "has nothing" },
                ));
            }
            Err(error) => return Err(error),
        }
        self.copy(stream, index, segment)
    }

    fn read(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let here = self.local.read(stream, index, max_bytes)?;
        let Some(shared) = self.shared.as_ref().filter(|_| here.is_empty()) else { return Ok(here) };
        let Some(last) = self.copied(stream)?.checked_sub(1).filter(|last| *last < index) else {
            return self.read_shared(shared, stream, index, max_bytes);
        };
        // From the copy's last segment on, so that what is new is seen to follow it.
        let mut page = match shared.read(stream, last, max_bytes.max(2 << 12)) {
            // This replica was away for long. That what comes follows, the chain of hashes tells.
            Err(StoreError::Trimmed { .. }) if *stream != StreamId::Control => {
                return self.read_shared(shared, stream, index, max_bytes);
            }
            Err(StoreError::Trimmed { .. }) => Vec::new(),
            answer => answer?,
        };
        self.check(stream, last, page.first())?;
        page.retain(|(place, _)| *place >= index);
        Ok(page)
    }

    fn trust(&self) {
        self.trusted.store(true, Ordering::Release);
    }

    fn keep(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        if self.shared.is_some() && self.trusted.load(Ordering::Acquire) {
            self.copy(stream, index, segment)?;
        }
        Ok(())
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        if let Some(shared) = &self.shared {
            shared.put_blob(bytes)?;
        }
        self.local.put_blob(bytes)
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        let (here, shared) = (self.local.get_blob(hash), self.shared.as_ref());
        let (Ok(None) | Err(_), Some(shared)) = (&here, shared) else { return here };
        if let Err(error) = &here {
            // Named by its hash, it can come from anywhere. One that is lost here must not keep a replica away.
            tracing::error!(%hash, %error, "a content in the local copy is damaged: check the disk");
        }
        let blob = match (shared.get_blob(hash)?, self.copies.get()) {
            (None, Some(copies)) => copies.blob(hash)?,
            (blob, _) => blob,
        };
        if let Some(blob) = &blob
            && self.trusted.load(Ordering::Acquire)
        {
            let kept = self.local.put_blob(blob);
            if here.is_ok() {
                kept?;
            }
        }
        Ok(blob)
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.local.put_derived(name, value)
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.local.get_derived(name)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.shared.as_ref().map_or(Ok(()), |shared| shared.sync())?;
        self.local.sync()
    }

    fn failing(&self) -> Option<StoreError> {
        self.local.failing().or_else(|| self.shared.as_ref()?.failing())
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        let mut streams = self.local.streams()?;
        if let Some(shared) = &self.shared {
            streams.extend(shared.streams()?);
            streams.sort();
            streams.dedup();
        }
        Ok(streams)
    }
}
