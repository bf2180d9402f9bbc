//! dm-verity: the hash of a root file system that the kernel checks at every read (Linux,
//! Documentation/admin-guide/device-mapper/verity; hash format 1, SHA-256).
//!
//! The tree is computed while the data streams by: no more than one block of each level is held.

use std::{fmt, io::Read, str::FromStr};

use sha2::{Digest as _, Sha256};

use crate::{MeasureError, malformed};

const DIGEST: usize = 32;
/// Longest salt of the on-disk format, in bytes.
const MAX_SALT: usize = 256;
const WHAT: &str = "dm-verity";
/// Length of the on-disk description, in bytes.
pub(crate) const SUPERBLOCK: usize = 512;
/// What it begins with.
pub(crate) const MAGIC: [u8; 8] = *b"verity\0\0";

/// The hash at the top of a dm-verity tree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RootHash([u8; DIGEST]);

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RootHash {
    type Err = MeasureError;

    fn from_str(text: &str) -> Result<Self, MeasureError> {
        let bytes = hex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| malformed(WHAT, format!("{text:.80?} is no root hash: 64 hex digits")))
    }
}

/// Hex digits as bytes.
pub(crate) fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((digit(*pair.first()?)? << 4) | digit(*pair.get(1)?)?)).collect()
}

/// How a tree is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerityParameters {
    data_block: usize,
    hash_block: usize,
    data_blocks: u64,
    salt: Vec<u8>,
}

impl VerityParameters {
    /// Checks the values; block sizes are in bytes.
    pub fn new(
        algorithm: &str,
        data_block: u32,
        hash_block: u32,
        data_blocks: u64,
        salt: Vec<u8>,
    ) -> Result<Self, MeasureError> {
        if algorithm != "sha256" {
            return Err(malformed(WHAT, format!("hash {algorithm:.32?}: only sha256 is computed")));
        }
        let size = |what: &str, size: u32| match size {
            512..=65536 if size.is_power_of_two() => Ok(size as usize),
            _ => Err(malformed(
                WHAT,
                format!("{what} blocks of {size} bytes: a power of two from 512 to 65536"),
            )),
        };
        let (data_block, hash_block) = (size("data", data_block)?, size("hash", hash_block)?);
        if data_blocks == 0 || data_blocks.checked_mul(data_block as u64).is_none() {
            return Err(malformed(WHAT, format!("{data_blocks} data blocks")));
        }
        if salt.len() > MAX_SALT {
            return Err(malformed(WHAT, format!("a salt of {} bytes, at most {MAX_SALT}", salt.len())));
        }
        Ok(Self { data_block, hash_block, data_blocks, salt })
    }

    /// Reads the description that `veritysetup` and `systemd-repart` put before a tree.
    pub fn from_superblock(bytes: &[u8; SUPERBLOCK]) -> Result<Self, MeasureError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..8] != MAGIC {
            return Err(malformed(WHAT, "no superblock"));
        }
        let (version, hash_type) = (u32_at(8), u32_at(12));
        if (version, hash_type) != (1, 1) {
            return Err(malformed(
                WHAT,
                format!("superblock version {version}, hash format {hash_type}: only 1"),
            ));
        }
        let name = bytes[32..64].split(|byte| *byte == 0).next().unwrap_or_default();
        let data_blocks = u64::from(u32_at(72)) | (u64::from(u32_at(76)) << 32);
        let salt = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
        let salt = bytes.get(88..88 + salt.min(MAX_SALT + 1)).unwrap_or_default().to_vec();
        Self::new(&String::from_utf8_lossy(name), u32_at(64), u32_at(68), data_blocks, salt)
    }

    /// Length of the data, in bytes.
    pub fn data_bytes(&self) -> u64 {
        self.data_blocks.saturating_mul(self.data_block as u64)
    }

    /// The root hash of as much data as the parameters name. Data that ends earlier is an error.
    pub fn root_hash(&self, mut data: impl Read) -> Result<RootHash, MeasureError> {
        let mut tree = Tree { parameters: self, levels: Vec::new() };
        let mut block = vec![0; self.data_block];
        for number in 0..self.data_blocks {
            data.read_exact(&mut block).map_err(|error| {
                malformed("image", format!("data block {number} of {}: {error}", self.data_blocks))
            })?;
            tree.push(0, self.hash(&block));
        }
        Ok(RootHash(tree.finish()))
    }

    fn hash(&self, block: &[u8]) -> [u8; DIGEST] {
        Sha256::new().chain_update(&self.salt).chain_update(block).finalize().into()
    }
}

/// Hashes of blocks, hashes of blocks of them, and so on.
struct Tree<'a> {
    parameters: &'a VerityParameters,
    levels: Vec<Level>,
}

#[derive(Default)]
struct Level {
    hashes: u64,
    last: [u8; DIGEST],
    /// Hashes that fill no block yet.
    pending: Vec<u8>,
}

impl Tree<'_> {
    fn push(&mut self, level: usize, hash: [u8; DIGEST]) {
        if level == self.levels.len() {
            self.levels.push(Level::default());
        }
        let at = &mut self.levels[level];
        at.hashes += 1;
        at.last = hash;
        at.pending.extend(hash);
        if at.pending.len() == self.parameters.hash_block {
            self.flush(level);
        }
    }

    /// The block of a level, zeros behind its last hash, goes up as one hash.
    fn flush(&mut self, level: usize) {
        let mut block = std::mem::take(&mut self.levels[level].pending);
        block.resize(self.parameters.hash_block, 0);
        self.push(level + 1, self.parameters.hash(&block));
    }

    fn finish(mut self) -> [u8; DIGEST] {
        let mut level = 0;
        // A level with a single hash is the top. Full blocks went up already.
        while self.levels[level].hashes > 1 {
            if !self.levels[level].pending.is_empty() {
                self.flush(level);
            }
            level += 1;
        }
        self.levels[level].last
    }
}
