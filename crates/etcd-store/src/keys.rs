//! Where things are kept.

use storage_schema::{BlobHash, StreamId};

/// Keys of one deployment.
#[derive(Clone)]
pub(crate) struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.as_bytes().to_vec() }
    }

    fn key(&self, kind: u8, rest: &[&[u8]]) -> Vec<u8> {
        let mut key = [self.prefix.as_slice(), &[kind]].concat();
        rest.iter().for_each(|part| key.extend_from_slice(part));
        key
    }

    pub(crate) fn segment(&self, stream: &StreamId, index: u64) -> Vec<u8> {
        self.key(b's', &[&stream_bytes(stream), &index.to_be_bytes()])
    }

    /// Behind every segment of the stream.
    pub(crate) fn segments_end(&self, stream: &StreamId) -> Vec<u8> {
        let mut end = self.segment(stream, u64::MAX);
        end.push(0);
        end
    }

    pub(crate) fn index_of(key: &[u8]) -> Option<u64> {
        key.last_chunk().copied().map(u64::from_be_bytes)
    }

    pub(crate) fn name(&self, stream: &StreamId) -> Vec<u8> {
        self.key(b'n', &[&stream_bytes(stream)])
    }

    /// All names, and the key behind them.
    pub(crate) fn names(&self) -> (Vec<u8>, Vec<u8>) {
        (self.key(b'n', &[]), self.key(b'n' + 1, &[]))
    }

    /// All segments, and the key behind them.
    pub(crate) fn segments(&self) -> (Vec<u8>, Vec<u8>) {
        (self.key(b's', &[]), self.key(b's' + 1, &[]))
    }

    pub(crate) fn stream_of_name(&self, key: &[u8]) -> Option<StreamId> {
        match key.strip_prefix(self.key(b'n', &[]).as_slice())? {
            [0] => Some(StreamId::Control),
            [1, id @ ..] => id.try_into().ok().map(StreamId::Replica),
            _ => None,
        }
    }

    pub(crate) fn blob_part(&self, hash: &BlobHash, part: u32) -> Vec<u8> {
        self.key(b'b', &[hash.as_bytes(), &part.to_be_bytes()])
    }

    /// Behind every part of the blob.
    pub(crate) fn blob_end(&self, hash: &BlobHash) -> Vec<u8> {
        let mut end = self.blob_part(hash, u32::MAX);
        end.push(0);
        end
    }

    pub(crate) fn derived(&self, name: &[u8]) -> Vec<u8> {
        self.key(b'd', &[name])
    }
}

fn stream_bytes(stream: &StreamId) -> Vec<u8> {
    match stream {
        StreamId::Control => vec![0],
        StreamId::Replica(id) => [&[1], id.as_bytes().as_slice()].concat(),
    }
}
