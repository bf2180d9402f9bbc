//! Nonces that this process gave out: each is good once, and for a minute.
//!
//! They carry their own proof (a MAC over their time), so that asking for nonces costs no memory; only
//! those that were used well are remembered, until they expire.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use manifest::Timestamp;

/// How long a nonce is good.
const LIFETIME: Duration = Duration::from_mins(1);
/// Most nonces that are remembered as used.
const MAX_USED: usize = 100_000;

pub(super) struct Challenges {
    key: [u8; 32],
    used: Mutex<BTreeSet<[u8; 32]>>,
}

impl Challenges {
    pub(super) fn new() -> Result<Self, keys::KeyError> {
        Ok(Self { key: keys::random()?, used: Mutex::default() })
    }

    /// A new nonce: its time, random bytes, and a MAC over both.
    pub(super) fn fresh(&self, now: Timestamp) -> Result<[u8; 32], keys::KeyError> {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&now.as_millis().to_be_bytes());
        nonce[8..16].copy_from_slice(&keys::random::<8>()?);
        let mac = self.mac(&nonce[..16]);
        nonce[16..].copy_from_slice(&mac[..16]);
        Ok(nonce)
    }

    fn mac(&self, content: &[u8]) -> [u8; 32] {
        keys::hmac_sha256(&self.key, content)
    }

    /// Whether the nonce is one of ours, is not too old, and was not used.
    pub(super) fn is_good(&self, nonce: &[u8; 32], now: Timestamp) -> bool {
        let made = made(nonce);
        keys::equal(&self.mac(&nonce[..16])[..16], &nonce[16..])
            && made <= now
            && now < made.plus(LIFETIME)
            && !self.used().contains(nonce)
    }

    /// Uses a good nonce up; `false` if somebody else just did.
    pub(super) fn use_up(&self, nonce: [u8; 32], now: Timestamp) -> bool {
        let mut used = self.used();
        // They sort by time, so the expired ones are in front.
        while used.first().is_some_and(|first| made(first).plus(LIFETIME) <= now) {
            used.pop_first();
        }
        used.len() < MAX_USED && used.insert(nonce)
    }

    fn used(&self) -> std::sync::MutexGuard<'_, BTreeSet<[u8; 32]>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn made(nonce: &[u8; 32]) -> Timestamp {
    let mut millis = [0; 8];
    millis.copy_from_slice(&nonce[..8]);
    Timestamp::from_millis(u64::from_be_bytes(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_for_a_minute_and_from_here_only() {
        let (challenges, others) = (Challenges::new().unwrap(), Challenges::new().unwrap());
        let now = Timestamp::from_millis(1_800_000_000_000);
        let nonce = challenges.fresh(now).unwrap();
        assert!(challenges.is_good(&nonce, now) && !others.is_good(&nonce, now));
        assert!(!challenges.is_good(&nonce, now.plus(LIFETIME)));
        let mut later = nonce;
        later[7] ^= 1;
        assert!(!challenges.is_good(&later, now));
        assert!(challenges.use_up(nonce, now) && !challenges.use_up(nonce, now));
        assert!(!challenges.is_good(&nonce, now));
        let next = challenges.fresh(now.plus(LIFETIME)).unwrap();
        assert!(challenges.use_up(next, now.plus(LIFETIME)));
        assert_eq!(challenges.used().len(), 1, "what expired is forgotten");
    }
}
