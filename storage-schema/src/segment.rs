//! The unit of commit.
//!
//! Bytes: format version (1), log public key (32), Ed25519 signature (64), body (CBOR). The
//! signature covers a fixed prefix, the version, the key and the body, so a segment is
//! authenticated before its body is decoded; whether the key is the *right* one is the log's
//! question.

use keys::{LogKey, LogPublicKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest as _, Sha256};

use crate::{CodecError, StreamId, codec, merkle::Hash};

const FORMAT: u8 = 1;
const CONTEXT: &[u8] = b"contrast event log segment\0";
const KEY_AT: usize = 1;
const SIGNATURE_AT: usize = KEY_AT + 32;
const BODY_AT: usize = SIGNATURE_AT + 64;

/// What a segment says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub(crate) stream: StreamId,
    pub(crate) index: u64,
    /// Sequence number, in its stream, of the first event.
    pub(crate) first: u64,
    /// SHA-256 of the previous segment's bytes; zeros for the first.
    #[serde(with = "serde_bytes")]
    pub(crate) previous: Hash,
    /// Encoded events; each is an entry of the Merkle tree.
    pub(crate) events: Vec<ByteBuf>,
    /// Head of the stream's tree after these events.
    #[serde(with = "serde_bytes")]
    pub(crate) root: Hash,
}

/// Why bytes are not an authentic segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Too short to hold even its header.
    #[error("cut off at byte {0}, a segment has at least {BODY_AT}")]
    Truncated(usize),
    /// Written by a newer program.
    #[error("byte 0: format {0}, this program reads format {FORMAT}")]
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
    #[error("byte {SIGNATURE_AT}: the signature does not cover these bytes")]
    Signature,
    /// Signed, but not of the expected shape.
    #[error("byte {BODY_AT}: {0}")]
    Body(#[from] CodecError),
}

impl Segment {
    pub(crate) fn sign(&self, key: &LogKey) -> Result<Vec<u8>, CodecError> {
        let body = codec::encode(self)?;
        let public = key.public();
        let signature = key.sign(&signed_part(&public, &body));
        Ok([&[FORMAT], public.as_bytes().as_slice(), &signature, &body].concat())
    }

    /// Authenticates and decodes. Without an expected key, the segment's own is taken.
    pub(crate) fn open(
        bytes: &[u8],
        expected: Option<LogPublicKey>,
    ) -> Result<(Self, LogPublicKey), SegmentError> {
        let truncated = SegmentError::Truncated(bytes.len());
        let (header, body) = bytes.split_first_chunk::<BODY_AT>().ok_or(truncated.clone())?;
        if header[0] != FORMAT {
            return Err(SegmentError::Format(header[0]));
        }
        let key: [u8; 32] = header[KEY_AT..SIGNATURE_AT].try_into().map_err(|_| truncated)?;
        let key = LogPublicKey::from_bytes(key);
        if let Some(expected) = expected.filter(|expected| *expected != key) {
            let hex = |key: LogPublicKey| hex::encode(key.as_bytes());
            return Err(SegmentError::Key { expected: hex(expected), found: hex(key) });
        }
        key.verify(&signed_part(&key, body), &header[SIGNATURE_AT..]).map_err(|_| SegmentError::Signature)?;
        Ok((codec::decode(body)?, key))
    }
}

fn signed_part(key: &LogPublicKey, body: &[u8]) -> Vec<u8> {
    [CONTEXT, &[FORMAT], key.as_bytes(), body].concat()
}

/// What the next segment names as its predecessor.
pub(crate) fn segment_hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}
