//! The Merkle tree of RFC 6962, section 2.1.
//!
//! [`Frontier`] is all that appending needs: the roots of the full subtrees, so O(log n) memory.
//! Proofs need inner nodes; whoever makes one says where they come from (see [`crate::Tiles`]).
//! Checking a proof needs nothing but the proof.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use sha2::{Digest as _, Sha256};

/// A node or root of the tree.
pub type Hash = [u8; 32];

/// Hash of an entry: `SHA-256(0x00 || entry)`.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// Hash of two subtrees: `SHA-256(0x01 || left || right)`.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Root of the tree without entries.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// The right edge of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontier {
    size: u64,
    /// Roots of the full subtrees, largest first: one for each set bit of `size`.
    subtrees: Vec<ByteArray<32>>,
}

impl Frontier {
    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds an entry, given by its leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.subtrees.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.subtrees.push(node.into());
        self.size += 1;
    }

    /// The tree head: what a signature covers.
    pub fn root(&self) -> Hash {
        let mut right_to_left = self.subtrees.iter().rev();
        match right_to_left.next() {
            Some(last) => right_to_left.fold(**last, |right, left| node_hash(left, &right)),
            None => empty_root(),
        }
    }
}

/// Makes proofs from the roots of full subtrees: `node(level, index)` is the root over the entries
/// `index << level` to `(index + 1) << level`.
pub struct Prover<F> {
    node: F,
}

impl<E, F: FnMut(u32, u64) -> Result<Hash, E>> Prover<F> {
    /// A prover over these nodes.
    pub fn new(node: F) -> Self {
        Self { node }
    }

    /// Root of the tree of the first `size` entries.
    pub fn root(&mut self, size: u64) -> Result<Hash, E> {
        if size == 0 { Ok(empty_root()) } else { self.range(0, size) }
    }

    /// Proof that entry `index` is in the tree of `size` entries (RFC 6962, 2.1.1). Nothing for an
    /// entry that is not.
    pub fn inclusion(&mut self, index: u64, size: u64) -> Result<Vec<Hash>, E> {
        let mut proof = Vec::new();
        let (mut begin, mut end) = (0, size);
        while index < end && end - begin > 1 {
            let middle = begin + split(end - begin);
            if index < middle {
                proof.push(self.range(middle, end)?);
                end = middle;
            } else {
                proof.push(self.range(begin, middle)?);
                begin = middle;
            }
        }
        proof.reverse();
        Ok(proof)
    }

    /// Proof that the tree of `new` entries extends that of `old` (RFC 6962, 2.1.2). Empty for the
    /// same tree, and for `old` = 0.
    pub fn consistency(&mut self, old: u64, new: u64) -> Result<Vec<Hash>, E> {
        let mut proof = Vec::new();
        let (mut begin, mut end, mut known) = (0, new, true);
        if old == 0 || old >= new {
            return Ok(proof);
        }
        while old != end {
            let middle = begin + split(end - begin);
            if old <= middle {
                proof.push(self.range(middle, end)?);
                end = middle;
            } else {
                proof.push(self.range(begin, middle)?);
                begin = middle;
                known = false;
            }
        }
        if !known {
            proof.push(self.range(begin, end)?);
        }
        proof.reverse();
        Ok(proof)
    }

    /// Root over the entries from `begin` to `end`, of which there is at least one.
    fn range(&mut self, begin: u64, end: u64) -> Result<Hash, E> {
        let size = end - begin;
        if size.is_power_of_two() {
            let level = size.trailing_zeros();
            return (self.node)(level, begin >> level);
        }
        let middle = begin + split(size);
        Ok(node_hash(&self.range(begin, middle)?, &self.range(middle, end)?))
    }
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

/// Checks an inclusion proof (RFC 9162, 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut node) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            node = node_hash(sibling, &node);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            node = node_hash(&node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && node == *root
}

/// Checks a consistency proof (RFC 9162, 2.1.4.2) between the trees `(size, root)`.
pub fn verify_consistency(old: (u64, &Hash), new: (u64, &Hash), proof: &[Hash]) -> bool {
    let ((old, old_root), (new, new_root)) = (old, new);
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old > new {
        return false;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let mut proof = proof.iter();
    let seed = if old.is_power_of_two() { Some(old_root) } else { proof.next() };
    let Some(seed) = seed else { return false };
    let (mut old_node, mut new_node) = (*seed, *seed);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            old_node = node_hash(sibling, &old_node);
            new_node = node_hash(sibling, &new_node);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            new_node = node_hash(&new_node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && old_node == *old_root && new_node == *new_root
}

/// Root of the tree of these leaf hashes, of which there may be none.
pub fn subtree(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) =
                leaves.split_at(usize::try_from(split(leaves.len() as u64)).unwrap_or(leaves.len()));
            node_hash(&subtree(left), &subtree(right))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Leaf inputs and roots of the certificate-transparency project's reference test.
    const LEAVES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    /// Inclusion proofs of the same test: entry, tree size, path (entries counted from 0).
    const PATHS: [(u64, u64, &[&str]); 4] = [
        (0, 1, &[]),
        (
            0,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            &[
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    ];
    /// Consistency proofs of the same test: old size, new size, path.
    const CONSISTENCY: [(u64, u64, &[&str]); 4] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            &[
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];

    fn hash(text: &str) -> Hash {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    fn prover(leaves: &[Hash]) -> Prover<impl FnMut(u32, u64) -> Result<Hash, Infallible> + '_> {
        Prover::new(|level, index| {
            let begin = usize::try_from(index << level).unwrap();
            Ok(subtree(&leaves[begin..begin + (1 << level)]))
        })
    }

    #[test]
    fn published_roots_and_proofs_hold() {
        let leaves: Vec<Hash> = LEAVES.iter().map(|leaf| leaf_hash(&hex::decode(leaf).unwrap())).collect();
        let mut frontier = Frontier::default();
        for (leaf, root) in leaves.iter().zip(ROOTS) {
            frontier.push(*leaf);
            assert_eq!(hex::encode(frontier.root()), root);
        }
        let root = |size: u64| hash(ROOTS[usize::try_from(size).unwrap() - 1]);
        for (index, size, path) in PATHS {
            let path: Vec<Hash> = path.iter().map(|node| hash(node)).collect();
            assert_eq!(prover(&leaves).inclusion(index, size), Ok(path.clone()), "{index} of {size}");
            let leaf = &leaves[usize::try_from(index).unwrap()];
            assert!(verify_inclusion(leaf, index, size, &path, &root(size)));
        }
        for (old, new, path) in CONSISTENCY {
            let path: Vec<Hash> = path.iter().map(|node| hash(node)).collect();
            assert_eq!(prover(&leaves).consistency(old, new), Ok(path.clone()), "{old} to {new}");
            assert!(verify_consistency((old, &root(old)), (new, &root(new)), &path));
        }
    }

    fn tree(size: u64) -> Vec<Hash> {
        (0..size).map(|n| leaf_hash(&n.to_be_bytes())).collect()
    }

    proptest::proptest! {
        #[test]
        fn inclusion_proofs_hold_for_their_entry_only(size in 1_u64..70, index in 0_u64..70) {
            let leaves = tree(size);
            let mut frontier = Frontier::default();
            leaves.iter().for_each(|leaf| frontier.push(*leaf));
            let root = subtree(&leaves);
            proptest::prop_assert_eq!(frontier.root(), root);
            proptest::prop_assert_eq!(prover(&leaves).root(size), Ok(root));
            let index = index % size;
            let mut proof = prover(&leaves).inclusion(index, size).unwrap();
            let leaf = leaves[usize::try_from(index).unwrap()];
            let holds = |proof: &[Hash], at: u64| verify_inclusion(&leaf, at, size, proof, &root);
            proptest::prop_assert!(holds(&proof, index));
            proptest::prop_assert!(!holds(&proof, index + 1));
            if let Some(first) = proof.first_mut() {
                first[0] ^= 1;
                proptest::prop_assert!(!holds(&proof, index));
            }
        }

        #[test]
        fn consistency_proofs_hold_for_a_true_prefix_only(new in 1_u64..70, old in 0_u64..70, bit in 0_usize..256) {
            let old = old % (new + 1);
            let leaves = tree(new);
            let root = |size: u64| subtree(&leaves[..usize::try_from(size).unwrap()]);
            let (old_root, new_root) = (root(old), root(new));
            let mut proof = prover(&leaves).consistency(old, new).unwrap();
            proptest::prop_assert!(verify_consistency((old, &old_root), (new, &new_root), &proof));
            let mut other = old_root;
            other[bit / 8] ^= 1 << (bit % 8);
            proptest::prop_assert!(!verify_consistency((old, &other), (new, &new_root), &proof));
            if !proof.is_empty() {
                let at = bit % proof.len();
                proof[at][bit / 8] ^= 1 << (bit % 8);
                proptest::prop_assert!(!verify_consistency((old, &old_root), (new, &new_root), &proof));
            }
        }
    }
}
