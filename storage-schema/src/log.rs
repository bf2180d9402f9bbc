//! One stream: its verified reader and its only writer.

use std::sync::{Arc, mpsc::sync_channel};

use keys::{LogKey, LogPublicKey};

use crate::{
    CodecError, Event, EventStore, Head, Position, SegmentError, Snapshot, SnapshotError, StoreError,
    StreamId, Tiles, Verified,
    index::serial_entry,
    merkle::{Hash, Prover, leaf_hash, verify_consistency, verify_inclusion},
    segment::{Header, Signer},
    snapshot::Projection,
};

/// Bytes read from the engine at once.
const PAGE_BYTES: usize = 4 << 20;

/// A stream, verified from its first byte or from a snapshot on.
pub struct Log<S> {
    store: Arc<S>,
    position: Position,
    tiles: Tiles,
    poisoned: bool,
    /// This is the writer of the stream, so nothing can be there that it does not know.
    writes: bool,
}

/// A stream and what was folded from it.
pub struct Folded<S, P> {
    /// The stream.
    pub log: Log<S>,
    /// The fold over all its events.
    pub projection: P,
    /// Why a snapshot was not used, if there was one.
    pub dropped: Option<SnapshotError>,
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
    /// An authentic event of unknown shape: written by a newer program.
    #[error("stream {stream}, event {sequence}: {error}")]
    Event {
        /// The stream.
        stream: StreamId,
        /// Its place.
        sequence: u64,
        /// What is wrong.
        error: CodecError,
    },
    /// Signed segments were there and are not any more.
    #[error(
        "stream {stream}: {expected} segments were signed, the store has {found}; it lost or hides the rest"
    )]
    Lost {
        /// The stream.
        stream: StreamId,
        /// How many there were at least.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// A question about events that are not there.
    #[error("stream {stream} has {size} events, asked was for {asked}")]
    Beyond {
        /// The stream.
        stream: StreamId,
        /// How many there are.
        size: u64,
        /// What was asked for.
        asked: u64,
    },
    /// The cached tree does not fit the signed head.
    #[error("stream {0}: the stored tree nodes do not yield the signed tree head")]
    Tiles(StreamId),
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
        let position = Position::start(stream, key);
        let mut log = Self { store, position, tiles: Tiles::default(), poisoned: false, writes: false };
        log.catch_up(on_event)?;
        Ok(log)
    }

    /// Folds a stream, from its last snapshot on if there is one that fits.
    pub fn open_folded<P: Projection>(
        store: Arc<S>,
        stream: StreamId,
        key: Option<LogPublicKey>,
    ) -> Result<Folded<S, P>, LogError> {
        let Folded { mut log, mut projection, dropped } = Self::resume::<P>(store, stream, key)?;
        log.catch_up(|sequence, event| projection.apply(sequence, &event))?;
        Ok(Folded { log, projection, dropped })
    }

    /// A stream as its last snapshot has it, or from its beginning: nothing behind that is read yet.
    pub(crate) fn resume<P: Projection>(
        store: Arc<S>,
        stream: StreamId,
        key: Option<LogPublicKey>,
    ) -> Result<Folded<S, P>, LogError> {
        let (start, dropped) = match Snapshot::<P>::load(store.as_ref(), stream, key) {
            Ok(None) => (None, None),
            Ok(Some(snapshot)) => (Some(snapshot), None),
            Err(error) => (None, Some(error)),
        };
        let Snapshot { position, tiles, projection } = start.unwrap_or_else(|| Snapshot {
            position: Position::start(stream, key),
            tiles: Tiles::default(),
            projection: P::default(),
        });
        check_last(store.as_ref(), &position)?;
        let log = Self { store, position, tiles, poisoned: false, writes: false };
        Ok(Folded { log, projection, dropped })
    }

    /// Stores a snapshot, so that the next [`Log::open_folded`] starts here. `projection` is the
    /// fold over exactly the events so far.
    pub fn save_snapshot<P: Projection>(&self, projection: &P, key: &LogKey) -> Result<(), AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned(self.position.stream));
        }
        let (position, tiles) = (&self.position, &self.tiles);
        Snapshot::save(self.store.as_ref(), position, tiles, projection, key)
    }

    /// Reads what was appended since, by others or by a write whose outcome was unknown. A
    /// poisoned writer works again after it.
    pub fn catch_up(&mut self, mut on_event: impl FnMut(u64, Event)) -> Result<(), LogError> {
        let (store, stream) = (Arc::clone(&self.store), self.position.stream);
        let first = store.read(&stream, self.position.segments, PAGE_BYTES)?;
        let mut next = match first.last() {
            Some((index, _)) => index + 1,
            None => {
                self.poisoned = false;
                return Ok(());
            }
        };
        let is_long = first.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() >= PAGE_BYTES;
        self.take(first, &mut on_event)?;
        if is_long {
            // A thread reads ahead while this one verifies.
            std::thread::scope(|scope| {
                let (sender, pages) = sync_channel(2);
                let store = &store;
                scope.spawn(move || {
                    loop {
                        let page = store.read(&stream, next, PAGE_BYTES);
                        let last = page.as_ref().map(|page| page.last().map(|(index, _)| *index));
                        let Ok(Some(index)) = last else {
                            // The end or an error; the loop below reads again and meets it.
                            return;
                        };
                        next = index + 1;
                        if sender.send(page).is_err() {
                            return;
                        }
                    }
                });
                pages.into_iter().try_for_each(|page| self.take(page?, &mut on_event))
            })?;
        }
        self.catch_up(on_event)
    }

    /// Verifies the next segments, folds them into the tree, hands out their events.
    fn take(
        &mut self,
        page: Vec<(u64, Vec<u8>)>,
        on_event: &mut impl FnMut(u64, Event),
    ) -> Result<(), LogError> {
        let stream = self.position.stream;
        for (index, bytes) in page {
            let mut position = self.position.clone();
            let Verified { first, events, leaves, .. } = position.advance(index, &bytes)?;
            let decode = |(sequence, event)| {
                Event::from_cbor(event).map(|event| (sequence, event)).map_err(|error| LogError::Event {
                    stream,
                    sequence,
                    error,
                })
            };
            let events: Vec<(u64, Event)> = (first..).zip(events).map(decode).collect::<Result<_, _>>()?;
            self.store.keep(&stream, index, &bytes)?;
            // Both or neither: after an error the segment is taken again.
            let mut tiles = self.tiles.clone();
            for leaf in leaves {
                tiles.push(self.store.as_ref(), &stream, leaf)?;
            }
            (self.position, self.tiles) = (position, tiles);
            for (sequence, event) in events {
                on_event(sequence, event);
            }
        }
        Ok(())
    }

    /// Writes events as one segment; they are durable when it returns. After a failure the writer
    /// refuses everything until [`Log::catch_up`] told what is on disk.
    pub fn append<'a>(&mut self, events: &[Event], by: impl Into<Signer<'a>>) -> Result<Head, AppendError> {
        let by = by.into();
        if self.poisoned {
            return Err(AppendError::Poisoned(self.position.stream));
        }
        let Some(last) = events.last() else { return Ok(self.head()) };
        let stream = self.position.stream;
        let encoded: Vec<Vec<u8>> = events.iter().map(Event::to_cbor).collect::<Result<_, _>>()?;
        let (mut position, mut tiles) = (self.position.clone(), self.tiles.clone());
        self.poisoned = true;
        for (event, bytes) in events.iter().zip(&encoded) {
            let leaf = leaf_hash(bytes);
            if let Some((name, place)) = serial_entry(event, stream, position.tree.size()) {
                self.store.put_derived(&name, &place)?;
            }
            position.tree.push(leaf);
            tiles.push(self.store.as_ref(), &stream, leaf)?;
        }
        let header = Header {
            stream,
            index: position.segments,
            first: self.position.tree.size(),
            count: events.len() as u64,
            previous: *position.previous,
            root: position.tree.root(),
            at: last.at,
        };
        let (bytes, header_hash) = header.seal(&encoded, by)?;
        self.store.append(&stream, position.segments, &bytes)?;
        self.poisoned = false;
        self.writes = stream != StreamId::Control;
        position.key = Some(by.log.public());
        position.signers.wrote(by.replica.map(LogKey::public));
        position.segments += 1;
        position.previous = header_hash.into();
        (self.position, self.tiles) = (position, tiles);
        Ok(self.head())
    }

    /// Where the stream stands.
    pub fn head(&self) -> Head {
        self.position.head()
    }

    /// How far it was verified.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The key that signed every segment; `None` while there is none. Whoever opened the log
    /// without a key compares this one with the key derived from the seed as soon as it is there.
    pub fn key(&self) -> Option<LogPublicKey> {
        self.position.key
    }

    /// Whether everything in the stream is known, because this is its only writer: other streams than the
    /// control stream have one, and no append of it failed since it last read.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.writes && !self.poisoned
    }

    /// Whether a failed append must be cleared up first.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Proof that the event at `sequence`, of this leaf hash, is below the stream's head.
    pub fn inclusion(&self, leaf: &Hash, sequence: u64) -> Result<Vec<Hash>, LogError> {
        self.within(sequence + 1)?;
        let Head { stream, size, root, .. } = self.head();
        let proof = self.prover().inclusion(sequence, size)?;
        if verify_inclusion(leaf, sequence, size, &proof, &root) {
            Ok(proof)
        } else {
            Err(LogError::Tiles(stream))
        }
    }

    /// Tree head over the first `old` events, and proof that the stream's head extends it.
    pub fn consistency(&self, old: u64) -> Result<(Hash, Vec<Hash>), LogError> {
        self.within(old)?;
        let Head { stream, size, root, .. } = self.head();
        let (old_root, proof) = (self.prover().root(old)?, self.prover().consistency(old, size)?);
        if verify_consistency((old, &old_root), (size, &root), &proof) {
            Ok((old_root, proof))
        } else {
            Err(LogError::Tiles(stream))
        }
    }

    fn within(&self, asked: u64) -> Result<(), LogError> {
        let (stream, size) = (self.position.stream, self.position.tree.size());
        if asked > size { Err(LogError::Beyond { stream, size, asked }) } else { Ok(()) }
    }

    fn prover(&self) -> Prover<impl FnMut(u32, u64) -> Result<Hash, StoreError> + '_> {
        let stream = self.position.stream;
        Prover::new(move |level, index| self.tiles.node(self.store.as_ref(), &stream, level, index))
    }
}

/// The last segment that a snapshot covers must still be there, and be that one.
fn check_last<S: EventStore>(store: &S, position: &Position) -> Result<(), LogError> {
    let Some(last) = position.segments.checked_sub(1) else { return Ok(()) };
    let stream = position.stream;
    let Some((index, bytes)) = store.read(&stream, last, 1)?.into_iter().next() else {
        let mut found = 0;
        while let Some((index, _)) = store.read(&stream, found, PAGE_BYTES)?.last() {
            found = index + 1;
        }
        return Err(LogError::Lost { stream, expected: position.segments, found });
    };
    let here = |error| LogError::Segment { stream, index, error };
    let segment = crate::segment::Segment::open(&bytes, position.key).map_err(here)?;
    if segment.header_hash == *position.previous {
        return Ok(());
    }
    let (expected, found) = (hex::encode(*position.previous), hex::encode(segment.header_hash));
    Err(LogError::Chain { stream, index, what: "header, according to the signed snapshot", expected, found })
}
