//! The unit of commit.
//!
//! Bytes: format version (1), log public key (32), Ed25519 signature (64), the replica's public key (32) and its
//! signature (64), length of the header (4, big endian), header (CBOR), then each event as its length (4, big endian) and
//! its bytes. Both signatures cover a fixed prefix, the version, both keys and the header. The header's tree head
//! commits to the events. So nothing is decoded before it is authenticated, and each byte is hashed
//! once. Whether the keys are the *right* ones is the reader's question.
//!
//! The log's key follows from the seed, and who owns shares of that could sign with it. The replica's key is in the
//! memory of one process and nowhere else. Format 2, of before that, has the log's key and signature alone.

use keys::{LogKey, LogPublicKey};
use manifest::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    CodecError, Head, StreamId,
    codec::{self, MAX_BYTES},
    merkle::Hash,
};

/// Signed by the log's key alone.
const BY_LOG: u8 = 2;
/// Signed by the replica that wrote it as well.
const BY_REPLICA: u8 = 3;
const CONTEXT: &[u8] = b"contrast event log segment\0";
const REPLICA_CONTEXT: &[u8] = b"contrast event log segment by a replica\0";
const KEY_AT: usize = 1;
const SIGNATURE_AT: usize = KEY_AT + 32;
const REPLICA_KEY_AT: usize = SIGNATURE_AT + 64;
const REPLICA_SIGNATURE_AT: usize = REPLICA_KEY_AT + 32;
const MAX_HEADER: usize = 1 << 10;

/// Where the header's length is, by format.
fn length_at(format: u8) -> usize {
    if format == BY_REPLICA { REPLICA_SIGNATURE_AT + 64 } else { REPLICA_KEY_AT }
}

/// Who signs what is written.
#[derive(Clone, Copy)]
pub struct Signer<'a> {
    /// The log's key.
    pub log: &'a LogKey,
    /// The key of the replica that writes; `None` writes format 2.
    pub replica: Option<&'a LogKey>,
}

impl<'a> From<&'a LogKey> for Signer<'a> {
    fn from(log: &'a LogKey) -> Self {
        Self { log, replica: None }
    }
}

/// What the signature covers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) stream: StreamId,
    pub(crate) index: u64,
    /// Sequence number, in its stream, of the first event.
    pub(crate) first: u64,
    /// Number of events.
    pub(crate) count: u64,
    /// SHA-256 of the previous segment's header; zeros for the first.
    #[serde(with = "serde_bytes")]
    pub(crate) previous: Hash,
    /// Head of the stream's tree after these events.
    #[serde(with = "serde_bytes")]
    pub(crate) root: Hash,
    /// When it was written.
    pub(crate) at: Timestamp,
}

/// An authentic header, and events that are authentic once the tree head was compared.
pub(crate) struct Segment<'a> {
    pub(crate) key: LogPublicKey,
    pub(crate) replica_key: Option<LogPublicKey>,
    pub(crate) header: Header,
    /// What the next segment names as its predecessor.
    pub(crate) header_hash: Hash,
    pub(crate) events: Vec<&'a [u8]>,
}

/// Why bytes are not an authentic segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Ends in the middle of something.
    #[error("cut off at byte {at}: {what} is not whole")]
    Truncated {
        /// Number of bytes there are.
        at: usize,
        /// What is cut.
        what: &'static str,
    },
    /// Written by a newer program.
    #[error("byte 0: format {0}, this program reads formats {BY_LOG} and {BY_REPLICA}")]
    Format(u8),
    /// Signed by a key that is not this log's.
    #[error("byte {KEY_AT}: signed by the key {found}, this log's is {expected}")]
    Key {
        /// The log's key, hex.
        expected: String,
        /// The segment's, hex.
        found: String,
    },
    /// Changed after it was signed.
    #[error("byte {SIGNATURE_AT}: the signature does not cover the header")]
    Signature,
    /// Not signed by the replica whose key stands there.
    #[error("byte {REPLICA_SIGNATURE_AT}: the replica's signature does not cover the header")]
    ReplicaSignature,
    /// A header of impossible size.
    #[error("a header of {0} bytes, at most {MAX_HEADER} are possible")]
    HeaderLength(usize),
    /// Signed, but not of the expected shape.
    #[error("byte {at}: {error}")]
    Codec {
        /// Where.
        at: usize,
        /// What is wrong.
        error: CodecError,
    },
    /// More or fewer events than the header says.
    #[error("byte {at}: {found} events, the header says {expected}")]
    Count {
        /// Where they end.
        at: usize,
        /// According to the header.
        expected: u64,
        /// According to the bytes.
        found: usize,
    },
    /// An event that is not the one that was signed.
    #[error("bytes {at} on: these events have the tree head {found}, signed was {expected}")]
    Events {
        /// Where the events begin.
        at: usize,
        /// Signed tree head, hex.
        expected: String,
        /// Computed tree head, hex.
        found: String,
    },
}

impl Header {
    /// Signs the header and puts the events behind it.
    pub(crate) fn seal(&self, events: &[Vec<u8>], by: Signer<'_>) -> Result<(Vec<u8>, Hash), CodecError> {
        let header = codec::encode(self)?;
        let Signer { log, replica } = by;
        let keys = Keys { log: log.public(), replica: replica.map(LogKey::public) };
        let size: usize = events.iter().map(|event| event.len() + 4).sum();
        let mut bytes = Vec::with_capacity(length_at(keys.format()) + 4 + header.len() + size);
        bytes.push(keys.format());
        bytes.extend_from_slice(keys.log.as_bytes());
        bytes.extend_from_slice(&log.sign(&keys.signed_part(CONTEXT, &header)));
        if let Some(replica) = replica {
            bytes.extend_from_slice(replica.public().as_bytes());
            bytes.extend_from_slice(&replica.sign(&keys.signed_part(REPLICA_CONTEXT, &header)));
        }
        for part in std::iter::once(&header).chain(events) {
            let length = u32::try_from(part.len()).map_err(|_| CodecError::TooLarge(part.len()))?;
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        Ok((bytes, Sha256::digest(&header).into()))
    }
}

impl<'a> Segment<'a> {
    /// Authenticates and decodes the header, and finds the events. Without an expected key, the
    /// segment's own is taken.
    pub(crate) fn open(bytes: &'a [u8], expected: Option<LogPublicKey>) -> Result<Self, SegmentError> {
        let cut = |what| SegmentError::Truncated { at: bytes.len(), what };
        let (keys, header, mut rest) = authenticate(bytes, expected)?;
        let header_hash = Sha256::digest(header).into();
        let at = length_at(keys.format()) + 4;
        let header: Header = codec::decode(header).map_err(|error| SegmentError::Codec { at, error })?;
        let mut events = Vec::new();
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (event, behind) = split(rest, MAX_BYTES).map_err(|length| match length {
                None => cut("an event"),
                Some(length) => SegmentError::Codec { at, error: CodecError::TooLarge(length) },
            })?;
            events.push(event);
            rest = behind;
        }
        if events.len() as u64 != header.count {
            let (expected, found) = (header.count, events.len());
            return Err(SegmentError::Count { at: bytes.len(), expected, found });
        }
        Ok(Self { key: keys.log, replica_key: keys.replica, header, header_hash, events })
    }
}

/// The segment without its events, which is what its signature covers.
pub fn signed_head(segment: &[u8]) -> Option<&[u8]> {
    let at = length_at(*segment.first()?);
    let (header, _) = split(segment.get(at..)?, MAX_HEADER).ok()?;
    segment.get(..at + 4 + header.len())
}

/// Authenticates what [`signed_head`] gave: the stream's head after that segment, the key that
/// signed it, and when. Without an expected key, the segment's own is taken.
pub fn open_signed_head(
    bytes: &[u8],
    expected: Option<LogPublicKey>,
) -> Result<(Head, LogPublicKey, Timestamp), SegmentError> {
    let (keys, header, rest) = authenticate(bytes, expected)?;
    if !rest.is_empty() {
        let at = bytes.len() - rest.len();
        return Err(SegmentError::Count { at, expected: 0, found: 1 });
    }
    let header_at = length_at(keys.format()) + 4;
    let header: Header =
        codec::decode(header).map_err(|error| SegmentError::Codec { at: header_at, error })?;
    let Header { stream, index, first, count, root, at, .. } = header;
    let counted = first.checked_add(count).zip(index.checked_add(1));
    let error = CodecError::Malformed("more events than can be counted".into());
    let (size, segments) = counted.ok_or(SegmentError::Codec { at: header_at, error })?;
    Ok((Head { stream, size, segments, root }, keys.log, at))
}

/// Whose signatures a segment has.
#[derive(Clone, Copy)]
struct Keys {
    log: LogPublicKey,
    replica: Option<LogPublicKey>,
}

impl Keys {
    fn format(&self) -> u8 {
        if self.replica.is_some() { BY_REPLICA } else { BY_LOG }
    }

    fn signed_part(&self, context: &[u8], header: &[u8]) -> Vec<u8> {
        let replica = self.replica.as_ref().map_or(&[][..], |key| key.as_bytes());
        [context, &[self.format()], self.log.as_bytes(), replica, header].concat()
    }
}

type Authenticated<'a> = (Keys, &'a [u8], &'a [u8]);

/// Checks the signature; gives the key, the header and what follows it.
fn authenticate(bytes: &[u8], expected: Option<LogPublicKey>) -> Result<Authenticated<'_>, SegmentError> {
    let cut = |what| SegmentError::Truncated { at: bytes.len(), what };
    let format = *bytes.first().ok_or(cut("the format"))?;
    if ![BY_LOG, BY_REPLICA].contains(&format) {
        return Err(SegmentError::Format(format));
    }
    let key_at = |at: usize, what| {
        let key = bytes.get(at..at + 32).and_then(|key| key.try_into().ok());
        key.map(LogPublicKey::from_bytes).ok_or(cut(what))
    };
    let signature_at = |at: usize, what| bytes.get(at..at + 64).ok_or(cut(what));
    let log = key_at(KEY_AT, "the key")?;
    if let Some(expected) = expected.filter(|expected| *expected != log) {
        let hex = |key: LogPublicKey| hex::encode(key.as_bytes());
        return Err(SegmentError::Key { expected: hex(expected), found: hex(log) });
    }
    let signature = signature_at(SIGNATURE_AT, "the signature")?;
    let replica = match format {
        BY_REPLICA => {
            let key = key_at(REPLICA_KEY_AT, "the replica's key")?;
            Some((key, signature_at(REPLICA_SIGNATURE_AT, "the replica's signature")?))
        }
        _ => None,
    };
    let keys = Keys { log, replica: replica.map(|(key, _)| key) };
    let (header, rest) = split(bytes.get(length_at(format)..).ok_or(cut("the header"))?, MAX_HEADER)
        .map_err(|length| length.map_or(cut("the header"), SegmentError::HeaderLength))?;
    log.verify(&keys.signed_part(CONTEXT, header), signature).map_err(|_| SegmentError::Signature)?;
    if let Some((key, signature)) = replica {
        key.verify(&keys.signed_part(REPLICA_CONTEXT, header), signature)
            .map_err(|_| SegmentError::ReplicaSignature)?;
    }
    Ok((keys, header, rest))
}

/// Splits `length || part || rest`. The error is a length over the limit, or `None` for too few bytes.
fn split(bytes: &[u8], limit: usize) -> Result<(&[u8], &[u8]), Option<usize>> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(None)?;
    let length = u32::from_be_bytes(*length) as usize;
    if length > limit {
        return Err(Some(length));
    }
    rest.split_at_checked(length).ok_or(None)
}
