//! Inner nodes of a stream's Merkle tree, kept so that a proof costs a few reads at any size.
//!
//! As in C2SP tlog-tiles: a tile is 256 consecutive hashes of the tree's level 0, 8, 16 and so on.
//! Whole tiles go to the store; the right edge, at most 255 hashes a level, stays in memory. Tiles
//! are a cache of what the segments say: a proof made from them is checked before it is given out.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::{
    EventStore, StoreError, StreamId,
    merkle::{Hash, subtree},
};

const WIDTH: usize = 256;
/// log2 of [`WIDTH`].
const HEIGHT: u32 = 8;

/// The right edge of the tiles of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// For each level of tiles: how many are whole, and the hashes after them.
    levels: Vec<(u64, Vec<ByteArray<32>>)>,
}

impl Tiles {
    /// Adds a leaf hash; each tile that it completes goes to the store.
    pub(crate) fn push<S: EventStore>(
        &mut self,
        store: &S,
        stream: &StreamId,
        leaf: Hash,
    ) -> Result<(), StoreError> {
        let mut hash = leaf;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push((0, Vec::new()));
            }
            let (whole, edge) = &mut self.levels[level];
            edge.push(hash.into());
            if edge.len() < WIDTH {
                return Ok(());
            }
            let tile: Vec<Hash> = edge.drain(..).map(ByteArray::into_array).collect();
            let name = key(stream, level, *whole);
            if store.get_derived(&name)?.as_deref() != Some(tile.as_flattened()) {
                store.put_derived(&name, tile.as_flattened())?;
            }
            *whole += 1;
            hash = subtree(&tile);
        }
        Ok(())
    }

    /// Root of the full subtree `index` at `level` of the tree.
    pub(crate) fn node<S: EventStore>(
        &self,
        store: &S,
        stream: &StreamId,
        level: u32,
        index: u64,
    ) -> Result<Hash, StoreError> {
        let missing = || {
            let text = format!("tile of stream {stream}, level {level}, node {index} is missing or damaged");
            StoreError::Fault(text)
        };
        let (row, within) = (level / HEIGHT, level % HEIGHT);
        let first = index << within;
        let (tile, offset) = (first / WIDTH as u64, first % WIDTH as u64);
        let row = row as usize;
        let range = usize::try_from(offset).map_err(|_| missing())?;
        let range = range..range + (1 << within);
        match self.levels.get(row) {
            Some((whole, edge)) if tile >= *whole => {
                let hashes = edge.get(range).ok_or_else(missing)?;
                let hashes: Vec<Hash> = hashes.iter().map(|hash| hash.into_array()).collect();
                Ok(subtree(&hashes))
            }
            Some(_) => {
                let bytes = store.get_derived(&key(stream, row, tile))?.ok_or_else(missing)?;
                let (hashes, rest) = bytes.as_chunks::<32>();
                if hashes.len() != WIDTH || !rest.is_empty() {
                    return Err(missing());
                }
                Ok(subtree(&hashes[range]))
            }
            None => Err(missing()),
        }
    }
}

fn key(stream: &StreamId, level: usize, index: u64) -> Vec<u8> {
    format!("tile/{stream}/{level}/{index}").into_bytes()
}
