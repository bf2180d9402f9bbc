//! Verified reading beside the writers: heads, events and proofs of every stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use keys::{LogKey, LogPublicKey};
use manifest::SerialNumber;

use crate::{
    AppendError, Event, EventStore, Fact, Head, Log, LogError, StoreError, StreamId, index,
    merkle::{Hash, leaf_hash},
    segment::Segment,
};

/// An event with the proof that it is below a tree head.
#[derive(Clone, Debug, PartialEq)]
pub struct Inclusion {
    /// The head.
    pub head: Head,
    /// The event's place.
    pub sequence: u64,
    /// The event, encoded.
    pub event: Vec<u8>,
    /// RFC 6962 path.
    pub proof: Vec<Hash>,
}

/// Readers of every stream, each of which reads on where it stopped. Calls block.
pub struct Archive<S> {
    store: Arc<S>,
    readers: Mutex<HashMap<StreamId, Arc<Mutex<Log<S>>>>>,
}

impl<S: EventStore> Archive<S> {
    /// Nothing is read yet.
    pub fn new(store: Arc<S>) -> Self {
        Self { store, readers: Mutex::default() }
    }

    /// What it reads.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<StreamId, Arc<Mutex<Log<S>>>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader of a stream. Whoever writes the stream does it through this one, so that nothing is read back
    /// that this process has written.
    pub fn reader(
        &self,
        stream: StreamId,
        key: Option<LogPublicKey>,
    ) -> Result<Arc<Mutex<Log<S>>>, LogError> {
        if let Some(reader) = self.readers().get(&stream).cloned() {
            return Ok(reader);
        }
        let log = Log::resume::<()>(Arc::clone(&self.store), stream, key)?.log;
        let reader = Arc::new(Mutex::new(log));
        Ok(Arc::clone(self.readers().entry(stream).or_insert(reader)))
    }

    /// Reads on in a stream, and takes note of where each certificate is.
    fn catch_up(&self, log: &mut Log<S>) -> Result<(), LogError> {
        if log.is_up_to_date() {
            return Ok(());
        }
        let stream = log.head().stream;
        let mut noted = Ok(());
        log.catch_up(|sequence, event| {
            if let Some((name, place)) = index::serial_entry(&event, stream, sequence)
                && noted.is_ok()
            {
                noted = self.store.put_derived(&name, &place);
            }
        })?;
        Ok(noted?)
    }

    /// Asks the reader of a stream, which has read everything that is there, or everything that was there when
    /// the store last answered.
    fn ask<R>(
        &self,
        stream: StreamId,
        key: Option<LogPublicKey>,
        question: impl Fn(&Log<S>) -> Result<R, LogError>,
    ) -> Result<R, LogError> {
        let reader = self.reader(stream, key)?;
        let mut log = reader.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = match self.catch_up(&mut log) {
            // What was verified before stays true; how old it is, is for the asker to find out.
            Err(LogError::Store(error @ StoreError::Unavailable(_))) if log.head().segments > 0 => {
                Some(error)
            }
            outcome => {
                outcome?;
                None
            }
        };
        match (question(&log), silent) {
            // Silence does not say that something is missing.
            (Err(LogError::Beyond { .. }), Some(silent)) => Err(silent.into()),
            (Err(LogError::Tiles(_) | LogError::Store(_)), _) => {
                // The cached tree is damaged; reading the whole stream makes it anew.
                *log = Log::open(Arc::clone(&self.store), stream, key, |_, _| {})?;
                question(&log)
            }
            (answer, _) => answer,
        }
    }

    /// Where a stream stands.
    pub fn head(&self, stream: StreamId, key: Option<LogPublicKey>) -> Result<Head, LogError> {
        self.ask(stream, key, |log| Ok(log.head()))
    }

    /// Where a stream stands, and the key of the replica that signed it beside the log's, if one did.
    pub fn head_and_replica_key(
        &self,
        stream: StreamId,
        key: Option<LogPublicKey>,
    ) -> Result<(Head, Option<LogPublicKey>), LogError> {
        self.ask(stream, key, |log| Ok((log.head(), log.position().replica_key())))
    }

    /// Every stream that has an event.
    pub fn streams(&self) -> Result<Vec<StreamId>, LogError> {
        Ok(self.store.streams()?)
    }

    /// Tree head over the first `size` events of a stream.
    pub fn root_at(&self, stream: StreamId, key: Option<LogPublicKey>, size: u64) -> Result<Hash, LogError> {
        self.ask(stream, key, |log| Ok(log.consistency(size)?.0))
    }

    /// Stores a snapshot of a stream's reader, so that the next one starts from there.
    pub fn save_snapshot(&self, stream: StreamId, key: &LogKey) -> Result<Result<(), AppendError>, LogError> {
        self.ask(stream, Some(key.public()), |log| Ok(log.save_snapshot(&(), key)))
    }

    /// Head and proof that it extends the tree of `old` events.
    pub fn consistency(
        &self,
        stream: StreamId,
        key: Option<LogPublicKey>,
        old: u64,
    ) -> Result<(Head, Vec<Hash>), LogError> {
        self.ask(stream, key, |log| Ok((log.head(), log.consistency(old)?.1)))
    }

    /// An event and its proof below the stream's head of now.
    pub fn inclusion(
        &self,
        stream: StreamId,
        key: Option<LogPublicKey>,
        sequence: u64,
    ) -> Result<Inclusion, LogError> {
        self.ask(stream, key, |log| {
            let head = log.head();
            let event = self.event(log, sequence)?;
            let proof = log.inclusion(&leaf_hash(&event), sequence)?;
            Ok(Inclusion { head, sequence, event, proof })
        })
    }

    /// Where the certificate of this serial number was recorded.
    pub fn locate(
        &self,
        serial: &SerialNumber,
        key: Option<LogPublicKey>,
    ) -> Result<Option<(StreamId, u64)>, LogError> {
        let hint = index::lookup(self.store.as_ref(), serial)?;
        let is_it = |event: &Event| matches!(&event.fact, Fact::CertificateIssued { serial: found, .. } if found == serial);
        if let Some((stream, sequence)) = hint {
            let event = self.ask(stream, key, |log| self.event(log, sequence));
            if event.is_ok_and(|event| Event::from_cbor(&event).is_ok_and(|event| is_it(&event))) {
                return Ok(hint);
            }
        }
        for stream in self.store.streams()? {
            let mut place = None;
            Log::open(Arc::clone(&self.store), stream, key, |sequence, event| {
                if is_it(&event) {
                    place = Some((stream, sequence));
                }
            })?;
            if place.is_some() {
                return Ok(place);
            }
        }
        Ok(None)
    }

    /// The event at `sequence`. Where its segment is, is guessed from the average size of those in
    /// between; two or three reads at any length.
    fn event(&self, log: &Log<S>, sequence: u64) -> Result<Vec<u8>, LogError> {
        let Head { stream, size, segments, .. } = log.head();
        if sequence >= size {
            return Err(LogError::Beyond { stream, size, asked: sequence });
        }
        // The segment is in `low..high`, and these hold the events `from..to`.
        let (mut low, mut high, mut from, mut to) = (0, segments, 0, size);
        while low < high {
            let share = u128::from(high - low) * u128::from(sequence - from) / u128::from((to - from).max(1));
            let middle = (low + u64::try_from(share).unwrap_or(0)).min(high - 1);
            let page = self.store.read(&stream, middle, 1)?;
            let Some((index, bytes)) = page.first().filter(|(index, _)| *index == middle) else {
                return Err(LogError::Lost { stream, expected: segments, found: middle });
            };
            let here = |error| LogError::Segment { stream, index: *index, error };
            let Segment { header, events, .. } = Segment::open(bytes, log.key()).map_err(here)?;
            if sequence < header.first {
                (high, to) = (middle, header.first);
            } else if sequence >= header.first + header.count {
                (low, from) = (middle + 1, header.first + header.count);
            } else {
                let within = usize::try_from(sequence - header.first).unwrap_or(usize::MAX);
                let event = events.get(within).map(|event| event.to_vec());
                return event.ok_or(LogError::Beyond { stream, size, asked: sequence });
            }
        }
        Err(LogError::Lost { stream, expected: segments, found: low })
    }
}
