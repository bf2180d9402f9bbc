//! One stream: its verified reader and its only writer.

use std::sync::Arc;

use keys::{LogKey, LogPublicKey};
use serde_bytes::ByteBuf;

use crate::{
    CodecError, Event, EventStore, SegmentError, StoreError, StreamId,
    merkle::{Frontier, Hash},
    segment::{Segment, segment_hash},
};

/// Bytes read from the engine at once.
const PAGE_BYTES: usize = 4 << 20;

/// Where a stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The stream.
    pub stream: StreamId,
    /// Number of events.
    pub size: u64,
    /// Number of segments.
    pub segments: u64,
    /// Head of the Merkle tree over the events.
    pub root: Hash,
}

/// A stream, verified from its first byte on.
pub struct Log<S> {
    store: Arc<S>,
    stream: StreamId,
    key: Option<LogPublicKey>,
    tree: Frontier,
    segments: u64,
    previous: Hash,
    poisoned: bool,
}

/// Why a stream cannot be trusted or read. Nothing is skipped and nothing is repaired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The engine.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment that is not authentic.
    #[error("stream {stream}, segment {index}, {error}")]
    Segment {
        /// The stream.
        stream: StreamId,
        /// Where in it.
        index: u64,
        /// What is wrong.
        error: SegmentError,
    },
    /// An authentic segment in the wrong place: moved, removed or repeated.
    #[error("stream {stream}, segment {index}: {what}: expected {expected}, found {found}")]
    Chain {
        /// The stream.
        stream: StreamId,
        /// Where in it.
        index: u64,
        /// Which link does not fit.
        what: &'static str,
        /// Its value according to what was read before.
        expected: String,
        /// Its value in the segment.
        found: String,
    },
}

/// Why events were not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// This append: nobody knows what reached the disk, so the writer is poisoned now.
    #[error("event not written: {0}")]
    Store(#[from] StoreError),
    /// An earlier append: the stream must be read again first.
    #[error("the writer of stream {0} waits to be reopened after a failed append")]
    Poisoned(StreamId),
    /// The events cannot be encoded. Nothing was written.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl<S: EventStore> Log<S> {
    /// Reads and verifies a whole stream, handing out each event with its sequence number. Without
    /// `key` the first segment's is taken; see [`Log::key`].
    pub fn open(
        store: Arc<S>,
        stream: StreamId,
        key: Option<LogPublicKey>,
        on_event: impl FnMut(u64, Event),
    ) -> Result<Self, LogError> {
        let mut log = Self {
            store,
            stream,
            key,
            tree: Frontier::default(),
            segments: 0,
            previous: [0; 32],
            poisoned: false,
        };
        log.catch_up(on_event)?;
        Ok(log)
    }

    /// Reads what was appended since, by others or by a write whose outcome was unknown. A
    /// poisoned writer works again after it.
    pub fn catch_up(&mut self, mut on_event: impl FnMut(u64, Event)) -> Result<(), LogError> {
        loop {
            let page = self.store.read(&self.stream, self.segments, PAGE_BYTES)?;
            if page.is_empty() {
                self.poisoned = false;
                return Ok(());
            }
            for (index, bytes) in page {
                self.take(index, &bytes, &mut on_event)?;
            }
        }
    }

    fn take(
        &mut self,
        index: u64,
        bytes: &[u8],
        on_event: &mut impl FnMut(u64, Event),
    ) -> Result<(), LogError> {
        let stream = self.stream;
        let here = |error| LogError::Segment { stream, index, error };
        let (segment, key) = Segment::open(bytes, self.key).map_err(here)?;
        self.check(index, &segment)?;
        let first = self.tree.size();
        let mut tree = self.tree.clone();
        let mut events = Vec::with_capacity(segment.events.len());
        for encoded in &segment.events {
            tree.push(encoded);
            events.push(Event::from_cbor(encoded).map_err(|error| here(error.into()))?);
        }
        if tree.root() != segment.root {
            return Err(self.misplaced(
                index,
                "tree head",
                hex::encode(tree.root()),
                hex::encode(segment.root),
            ));
        }
        self.tree = tree;
        self.key = Some(key);
        self.segments += 1;
        self.previous = segment_hash(bytes);
        for (sequence, event) in (first..).zip(events) {
            on_event(sequence, event);
        }
        Ok(())
    }

    fn check(&self, index: u64, segment: &Segment) -> Result<(), LogError> {
        let links = [
            ("stream", self.stream.to_string(), segment.stream.to_string()),
            ("position in the store", self.segments.to_string(), index.to_string()),
            ("index", self.segments.to_string(), segment.index.to_string()),
            ("first event", self.tree.size().to_string(), segment.first.to_string()),
            ("previous segment", hex::encode(self.previous), hex::encode(segment.previous)),
        ];
        for (what, expected, found) in links {
            if expected != found {
                return Err(self.misplaced(index, what, expected, found));
            }
        }
        Ok(())
    }

    fn misplaced(&self, index: u64, what: &'static str, expected: String, found: String) -> LogError {
        LogError::Chain { stream: self.stream, index, what, expected, found }
    }

    /// Writes events as one segment; they are durable when it returns. After a failure the writer
    /// refuses everything until [`Log::catch_up`] told what is on disk.
    pub fn append(&mut self, events: &[Event], key: &LogKey) -> Result<Head, AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned(self.stream));
        }
        let mut tree = self.tree.clone();
        let mut encoded = Vec::with_capacity(events.len());
        for event in events {
            let bytes = event.to_cbor()?;
            tree.push(&bytes);
            encoded.push(ByteBuf::from(bytes));
        }
        let segment = Segment {
            stream: self.stream,
            index: self.segments,
            first: self.tree.size(),
            previous: self.previous,
            events: encoded,
            root: tree.root(),
        };
        let bytes = segment.sign(key)?;
        self.poisoned = true;
        self.store.append(&self.stream, self.segments, &bytes)?;
        self.poisoned = false;
        self.key = Some(key.public());
        self.tree = tree;
        self.segments += 1;
        self.previous = segment_hash(&bytes);
        Ok(self.head())
    }

    /// Where the stream stands.
    pub fn head(&self) -> Head {
        Head { stream: self.stream, size: self.tree.size(), segments: self.segments, root: self.tree.root() }
    }

    /// The key that signed every segment; `None` while there is none. Whoever opened the log
    /// without a key compares this one with the key derived from the seed as soon as it is there.
    pub fn key(&self) -> Option<LogPublicKey> {
        self.key
    }

    /// Whether a failed append must be cleared up first.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }
}
