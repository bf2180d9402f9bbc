//! What a shared store may give up: segments that a checkpoint covers and that every replica holds, and the
//! evidence that only they name.

use std::ops::Range;

use keys::LogPublicKey;

use crate::{BlobHash, Event, EventStore, LogError, StreamId, migrate::named_blobs, segment::Segment};

const PAGE_BYTES: usize = 1 << 20;

/// Most blobs that are named at once; the rest follows the next time.
const MOST_BLOBS: usize = 20_000;

/// The oldest part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removable {
    /// Places of the segments.
    pub segments: Range<u64>,
    /// Content that their events name. It goes first: then what an interrupted removal leaves is found again.
    pub blobs: Vec<BlobHash>,
}

/// Looks into a verified `copy` of a replica stream, from the segment `held.start` on, which is the first that
/// the shared store still has. All replicas hold the segments below `held.end`; the checkpoints of the control
/// stream cover the stream's first `covered` events.
pub fn removable(
    copy: &impl EventStore,
    stream: StreamId,
    held: Range<u64>,
    covered: u64,
    key: LogPublicKey,
) -> Result<Removable, LogError> {
    let mut found = Removable { segments: held.start..held.start, blobs: Vec::new() };
    while found.segments.end < held.end {
        let page = copy.read(&stream, found.segments.end, PAGE_BYTES)?;
        if page.is_empty() {
            break;
        }
        for (index, bytes) in page {
            let segment = Segment::open(&bytes, Some(key)).map_err(|error| LogError::Segment {
                stream,
                index,
                error,
            })?;
            let events = segment.header.first..segment.header.first + segment.header.count;
            if index >= held.end || events.end > covered || found.blobs.len() >= MOST_BLOBS {
                return Ok(found);
            }
            for (sequence, event) in events.zip(segment.events) {
                let event =
                    Event::from_cbor(event).map_err(|error| LogError::Event { stream, sequence, error })?;
                found.blobs.extend(named_blobs(&event.fact));
            }
            found.segments.end = index + 1;
        }
    }
    Ok(found)
}
