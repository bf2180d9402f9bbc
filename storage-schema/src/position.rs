//! Verifying a stream, segment by segment, from any place whose state is known.

use keys::LogPublicKey;
use manifest::Timestamp;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::{
    LogError, SegmentError, StreamId,
    merkle::{Frontier, Hash, leaf_hash},
    segment::Segment,
    signers::Signers,
};

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

/// How far a stream was verified, and all that is needed to go on from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub(crate) stream: StreamId,
    pub(crate) key: Option<LogPublicKey>,
    pub(crate) tree: Frontier,
    pub(crate) segments: u64,
    /// Hash of the last segment's header.
    pub(crate) previous: ByteArray<32>,
    /// Replicas that signed; none in streams of before.
    #[serde(default)]
    pub(crate) signers: Signers,
}

/// A segment that was found to be the next one, authentic and whole.
#[derive(Debug)]
pub struct Verified<'a> {
    /// Sequence number of the first event.
    pub first: u64,
    /// When the segment was written.
    pub at: Timestamp,
    /// The events, encoded; see [`crate::Event::from_cbor`].
    pub events: Vec<&'a [u8]>,
    /// Their leaf hashes.
    pub leaves: Vec<Hash>,
}

impl Position {
    /// The start of a stream. Without `key` the first segment's is taken; whoever does that
    /// compares [`Position::key`] with the right one as soon as it is known.
    pub fn start(stream: StreamId, key: Option<LogPublicKey>) -> Self {
        let signers = Signers::default();
        Self { stream, key, tree: Frontier::default(), segments: 0, previous: [0; 32].into(), signers }
    }

    /// Verifies the next segment and moves behind it; stays where it is when the segment is not
    /// the next one or not authentic. `index` is where the store says it is.
    pub fn advance<'a>(&mut self, index: u64, bytes: &'a [u8]) -> Result<Verified<'a>, LogError> {
        let stream = self.stream;
        let here = |error| LogError::Segment { stream, index, error };
        let Segment { key, replica_key, header, header_hash, events } =
            Segment::open(bytes, self.key).map_err(here)?;
        let links = [
            ("stream", self.stream.to_string(), header.stream.to_string()),
            ("position in the store", self.segments.to_string(), index.to_string()),
            ("index", self.segments.to_string(), header.index.to_string()),
            ("first event", self.tree.size().to_string(), header.first.to_string()),
            ("previous segment", hex::encode(*self.previous), hex::encode(header.previous)),
        ];
        for (what, expected, found) in links {
            if expected != found {
                return Err(LogError::Chain { stream, index, what, expected, found });
            }
        }
        let leaves: Vec<Hash> = events.iter().map(|event| leaf_hash(event)).collect();
        let mut tree = self.tree.clone();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        if tree.root() != header.root {
            let (expected, found) = (hex::encode(header.root), hex::encode(tree.root()));
            let at = bytes.len() - events.iter().map(|event| event.len() + 4).sum::<usize>();
            return Err(here(SegmentError::Events { at, expected, found }));
        }
        let allowed = self.signers.check(stream, replica_key, self.segments == 0, &events);
        allowed.map_err(|(expected, found)| {
            let what = "the replica that signed";
            LogError::Chain { stream, index, what, expected, found }
        })?;
        self.signers.wrote(replica_key);
        self.tree = tree;
        self.key = Some(key);
        self.segments += 1;
        self.previous = header_hash.into();
        Ok(Verified { first: header.first, at: header.at, events, leaves })
    }

    /// Where the stream stands here.
    pub fn head(&self) -> Head {
        Head { stream: self.stream, size: self.tree.size(), segments: self.segments, root: self.tree.root() }
    }

    /// The tree over the events so far.
    pub fn tree(&self) -> &Frontier {
        &self.tree
    }

    /// The key of the replica that signed a replica stream; `None` where only the log's key did, and for the control
    /// stream, where many replicas write.
    pub fn replica_key(&self) -> Option<LogPublicKey> {
        self.signers.only().filter(|_| self.stream != StreamId::Control)
    }

    /// Whether replicas sign, too, from here on at the latest.
    pub fn is_signed_by_replicas(&self) -> bool {
        !self.signers.is_empty()
    }

    /// The key that signed every segment so far; `None` before the first one.
    pub fn key(&self) -> Option<LogPublicKey> {
        self.key
    }
}
