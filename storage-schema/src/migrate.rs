//! Moves a log from one engine into another, verified on the way and at the end.

use std::sync::Arc;

use keys::LogPublicKey;

use crate::{BlobHash, Event, EventStore, Fact, Head, Log, LogError, Position, StoreError, StreamId};

const PAGE_BYTES: usize = 4 << 20;

/// Why a log was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The source, or what was written, does not verify.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An engine.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The destination has a log already, and it is not the beginning of this one.
    #[error(
        "the destination has another segment {index} in stream {stream}; choose an empty one, or another prefix"
    )]
    Occupied {
        /// The stream.
        stream: StreamId,
        /// The segment.
        index: u64,
    },
    /// Content that an event names is not in the source.
    #[error("the source lacks blob {0}, which an event names")]
    BlobMissing(BlobHash),
    /// The destination does not give back what was written.
    #[error("stream {stream} has {found} events in the destination, {expected} were written")]
    Differs {
        /// The stream.
        stream: StreamId,
        /// Events in the source.
        expected: u64,
        /// Events in the destination.
        found: u64,
    },
}

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Number of streams.
    pub streams: usize,
    /// Number of segments, those included that an earlier attempt had moved.
    pub segments: u64,
    /// Number of events.
    pub events: u64,
    /// Number of blobs.
    pub blobs: u64,
}

/// Copies every stream and every blob that an event names, then opens what was written and compares the
/// heads. What an earlier attempt copied is compared and kept, so it can be repeated. The control stream
/// comes last: a destination without it is no deployment yet. No writer may be at work in the source.
pub fn migrate<A: EventStore, B: EventStore>(
    from: &Arc<A>,
    to: &Arc<B>,
    key: Option<LogPublicKey>,
    mut progress: impl FnMut(&Migrated),
) -> Result<Migrated, MigrateError> {
    let key = match key {
        Some(key) => Some(key),
        None => Log::open(Arc::clone(from), StreamId::Control, None, |_, _| {})?.key(),
    };
    // Before anything is written: is there another deployment's log?
    let (ours, theirs) = (from.read(&StreamId::Control, 0, 1)?, to.read(&StreamId::Control, 0, 1)?);
    if !theirs.is_empty() && ours.first() != theirs.first() {
        return Err(MigrateError::Occupied { stream: StreamId::Control, index: 0 });
    }
    let mut streams = from.streams()?;
    streams.sort_by_key(|stream| *stream == StreamId::Control);
    let mut done = Migrated { streams: streams.len(), ..Migrated::default() };
    let mut heads = Vec::new();
    for stream in streams {
        let mut position = Position::start(stream, key);
        loop {
            let page = from.read(&stream, position.head().segments, PAGE_BYTES)?;
            if page.is_empty() {
                break;
            }
            for (index, bytes) in page {
                let verified = position.advance(index, &bytes)?;
                for (sequence, event) in (verified.first..).zip(&verified.events) {
                    let event = Event::from_cbor(event).map_err(|error| LogError::Event {
                        stream,
                        sequence,
                        error,
                    })?;
                    done.events += 1;
                    for hash in named_blobs(&event.fact) {
                        let blob = from.get_blob(&hash)?.ok_or(MigrateError::BlobMissing(hash))?;
                        to.put_blob(&blob)?;
                        done.blobs += 1;
                    }
                }
                match to.append(&stream, index, &bytes) {
                    Ok(()) => {}
                    Err(StoreError::IndexTaken { .. }) => {
                        let there = to.read(&stream, index, 1)?;
                        if there.first() != Some(&(index, bytes)) {
                            return Err(MigrateError::Occupied { stream, index });
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
                done.segments += 1;
            }
            progress(&done);
        }
        heads.push(position.head());
    }
    to.sync()?;
    for Head { stream, size, root, segments } in heads {
        let found = Log::open(Arc::clone(to), stream, key, |_, _| {})?.head();
        if found != (Head { stream, size, root, segments }) {
            return Err(MigrateError::Differs { stream, expected: size, found: found.size });
        }
    }
    Ok(done)
}

/// Content that an event names by its hash.
pub fn named_blobs(fact: &Fact) -> Vec<BlobHash> {
    match fact {
        Fact::ManifestSet { manifest, policies, .. } | Fact::ManifestProposed { manifest, policies, .. } => {
            let policies = policies.iter().map(|hash| BlobHash::from_bytes(*hash.as_bytes()));
            std::iter::once(BlobHash::from_bytes(*manifest.as_bytes())).chain(policies).collect()
        }
        Fact::CertificateIssued { evidence, .. } | Fact::ReplicaVouched { evidence, .. } => {
            vec![BlobHash::from_bytes(*evidence.as_bytes())]
        }
        _ => Vec::new(),
    }
}
