//! Seed shares of which several are needed: Shamir's scheme over GF(2^8), byte by byte.
//!
//! Each share is committed to when it is made, so that a wrong one is named when it comes back and
//! not only noticed in the end. A commitment is a hash: a share is 64 uniformly random bytes, which
//! nobody finds from it.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};
use vsss_rs::Gf256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{KeyError, Salt, Seed};

/// Separates this use of the hash from every other.
const CONTEXT: &[u8] = b"contrast seed share commitment v1";

/// One of several parts of the seed: its number from 1, then as many bytes as the seed has.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PartialSeed(Vec<u8>);

impl PartialSeed {
    /// Takes over a share that somebody sent: 33 to 65 bytes, of which the first is not 0.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if !(33..=65).contains(&bytes.len()) {
            let found = bytes.len();
            return Err(KeyError::Length { what: "seed share", found, expected: "33 to 65" });
        }
        if bytes[0] == 0 {
            return Err(KeyError::Malformed {
                what: "seed share",
                expected: "a number from 1, then the share",
            });
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The secret bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// What identifies this share without giving it away.
    pub fn commitment(&self, salt: &Salt) -> [u8; 32] {
        crate::sha256(&[CONTEXT, salt.as_bytes(), &self.0])
    }
}

/// Splits a seed so that any `needed` of `owners` shares give it back; 2 up to 255.
pub fn split_seed(seed: &Seed, needed: usize, owners: usize) -> Result<Vec<PartialSeed>, KeyError> {
    let shares = Gf256::split_bytes(needed, owners, seed.expose(), SystemRng);
    Ok(shares.map_err(|_| KeyError::Library("splitting the seed"))?.into_iter().map(PartialSeed).collect())
}

/// Puts a seed together. Shares of another seed, or too few, give *some* seed: whoever calls this
/// checks what the seed yields.
pub fn combine_seed(shares: &[PartialSeed]) -> Result<Seed, KeyError> {
    let shares: Zeroizing<Vec<Vec<u8>>> =
        Zeroizing::new(shares.iter().map(|share| share.0.clone()).collect());
    let seed = Gf256::combine_bytes(shares.as_slice()).map(Zeroizing::new);
    Seed::from_bytes(&seed.map_err(|_| KeyError::Library("putting the seed together"))?)
}

/// The operating system's generator, in the form that the scheme's library wants.
struct SystemRng;

impl TryRng for SystemRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes).map(|()| u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes).map(|()| u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        // The library has no way to say that there is no randomness, and going on would be worse.
        #[expect(clippy::panic, reason = "aws-lc aborts itself when the system's generator is gone")]
        aws_lc_rs::rand::fill(bytes)
            .unwrap_or_else(|_| panic!("the random number generator is not available"));
        Ok(())
    }
}

impl TryCryptoRng for SystemRng {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_of_three_give_the_seed_and_one_does_not() {
        let seed = Seed::generate().unwrap();
        let shares = split_seed(&seed, 2, 3).unwrap();
        for pair in [[0, 1], [0, 2], [2, 1]] {
            let pair = pair.map(|index| PartialSeed::from_bytes(shares[index].expose()).unwrap());
            assert!(combine_seed(&pair).unwrap() == seed);
        }
        assert!(combine_seed(&shares[..1]).map_or(true, |found| found != seed));
        let other = split_seed(&Seed::generate().unwrap(), 2, 3).unwrap();
        assert!(combine_seed(&[shares[0].clone(), other[1].clone()]).unwrap() != seed);
    }

    #[test]
    fn a_changed_share_does_not_meet_its_commitment() {
        let salt = Salt::generate().unwrap();
        let share = split_seed(&Seed::generate().unwrap(), 2, 2).unwrap().remove(0);
        let mut changed = share.expose().to_vec();
        changed[9] ^= 1;
        assert_ne!(PartialSeed::from_bytes(&changed).unwrap().commitment(&salt), share.commitment(&salt));
        assert!(PartialSeed::from_bytes(&[0; 65]).is_err());
        assert!(PartialSeed::from_bytes(&[1; 66]).is_err());
    }
}
