//! The Merkle tree of RFC 6962, section 2.1.
//!
//! [`Frontier`] is all that appending needs: the roots of the full subtrees, so O(log n) memory.

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

/// The right edge of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the full subtrees, largest first: one for each set bit of `size`.
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds an entry.
    pub fn push(&mut self, entry: &[u8]) {
        let mut node = leaf_hash(entry);
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.subtrees.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.subtrees.push(node);
        self.size += 1;
    }

    /// The tree head: what a signature covers.
    pub fn root(&self) -> Hash {
        let mut right_to_left = self.subtrees.iter().rev();
        match right_to_left.next() {
            Some(last) => right_to_left.fold(*last, |right, left| node_hash(left, &right)),
            None => Sha256::digest([]).into(),
        }
    }
}

/// Proof that the entry at `index` is in the tree of these leaf hashes (RFC 6962, 2.1.1).
pub fn inclusion_proof(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
    if index >= leaves.len() {
        return None;
    }
    if leaves.len() == 1 {
        return Some(Vec::new());
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut proof, sibling) = if index < left.len() {
        (inclusion_proof(left, index)?, subtree(right))
    } else {
        (inclusion_proof(right, index - left.len())?, subtree(left))
    };
    proof.push(sibling);
    Some(proof)
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

/// Root of the tree of these leaf hashes.
pub fn subtree(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(&subtree(left), &subtree(right))
        }
    }
}

/// The largest power of two below `len`, which is at least 2.
fn split(len: usize) -> usize {
    1 << (usize::BITS - 1 - (len - 1).leading_zeros())
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn published_roots_hold() {
        let mut frontier = Frontier::default();
        for (leaf, root) in LEAVES.iter().zip(ROOTS) {
            frontier.push(&hex::decode(leaf).unwrap());
            assert_eq!(hex::encode(frontier.root()), root);
        }
    }

    proptest::proptest! {
        #[test]
        fn frontier_equals_the_whole_tree_and_proofs_hold(size in 1_usize..70, index in 0_usize..70) {
            let mut frontier = Frontier::default();
            let leaves: Vec<Hash> = (0..size).map(|n| {
                frontier.push(&n.to_be_bytes());
                leaf_hash(&n.to_be_bytes())
            }).collect();
            let root = subtree(&leaves);
            proptest::prop_assert_eq!(frontier.root(), root);
            let index = index % size;
            let mut proof = inclusion_proof(&leaves, index).unwrap();
            let holds = |proof: &[Hash], at: usize| {
                verify_inclusion(&leaves[index], at as u64, size as u64, proof, &root)
            };
            proptest::prop_assert!(holds(&proof, index));
            proptest::prop_assert!(!holds(&proof, index + 1));
            if let Some(first) = proof.first_mut() {
                first[0] ^= 1;
                proptest::prop_assert!(!holds(&proof, index));
            }
        }
    }
}
