//! What counts once: nonces that this deployment gave out, and sealed messages with a seed.
//!
//! A nonce is good for a minute, and once at each replica. Nonces carry their own proof, a MAC over their time with a key that all replicas derive from the seed. So
//! asking for nonces costs no memory, and a caller may be given one by one replica and use it at another.
//! Only those that were used well are remembered, until they expire. What a nonce stands for is fresh evidence
//! over the caller's own key, so using one twice within the minute gains nobody anything but certificates for
//! that key.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use keys::SeedEngine;
use manifest::Timestamp;

/// How long a nonce is good.
const LIFETIME: Duration = Duration::from_mins(1);
/// How far the clocks of two replicas may differ.
const SKEW: Duration = Duration::from_secs(5);
/// Most nonces that are remembered as used.
const MAX_USED: usize = 100_000;

#[derive(Default)]
pub(crate) struct Challenges {
    used: Mutex<BTreeSet<[u8; 32]>>,
}

/// A new nonce: its time, random bytes, and a MAC over both.
pub(super) fn fresh(engine: &SeedEngine, now: Timestamp) -> Result<[u8; 32], keys::KeyError> {
    let mut nonce = [0; 32];
    nonce[..8].copy_from_slice(&now.as_millis().to_be_bytes());
    nonce[8..16].copy_from_slice(&keys::random::<8>()?);
    let mac = engine.challenge_mac(&nonce[..16]);
    nonce[16..].copy_from_slice(&mac[..16]);
    Ok(nonce)
}

impl Challenges {
    /// Whether the nonce is one of ours, is not too old, and was not used.
    pub(super) fn is_good(&self, engine: &SeedEngine, nonce: &[u8; 32], now: Timestamp) -> bool {
        let made = made(nonce);
        keys::equal(&engine.challenge_mac(&nonce[..16])[..16], &nonce[16..])
            && made <= now.plus(SKEW)
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

/// Sealed messages with parts of the seed that were accepted. A proxy that ends TLS keeps what passes through it;
/// it must not bring a replica back with such a message after the manifest has shut that replica out.
#[derive(Default)]
pub(crate) struct AcceptedRecoveries(Mutex<Vec<Vec<u8>>>);

impl AcceptedRecoveries {
    pub(super) fn contains(&self, message: &[u8]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == message)
    }

    /// They are few, because each was signed by an owner of the seed.
    pub(super) fn add(&self, message: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }
}

fn made(nonce: &[u8; 32]) -> Timestamp {
    let mut millis = [0; 8];
    millis.copy_from_slice(&nonce[..8]);
    Timestamp::from_millis(u64::from_be_bytes(millis))
}

#[cfg(test)]
mod tests {
    use keys::{Salt, Seed};

    use super::*;

    #[test]
    fn a_nonce_is_good_once_for_a_minute_and_within_the_deployment_only() {
        let engine = |byte| {
            let (seed, salt) = (Seed::from_bytes(&[byte; 64]).unwrap(), Salt::from_bytes(&[1; 32]).unwrap());
            SeedEngine::new(seed, salt).unwrap()
        };
        let (ours, others) = (engine(1), engine(2));
        let (here, there) = (Challenges::default(), Challenges::default());
        let now = Timestamp::from_millis(1_800_000_000_000);
        let nonce = fresh(&ours, now).unwrap();
        assert!(here.is_good(&ours, &nonce, now) && !here.is_good(&others, &nonce, now));
        assert!(!here.is_good(&ours, &nonce, now.plus(LIFETIME)));
        let mut later = nonce;
        later[7] ^= 1;
        assert!(!here.is_good(&ours, &later, now));
        assert!(here.use_up(nonce, now) && !here.use_up(nonce, now));
        assert!(!here.is_good(&ours, &nonce, now));
        assert!(there.is_good(&ours, &nonce, now), "another replica takes it");
        let early = fresh(&ours, now.plus(SKEW)).unwrap();
        assert!(there.is_good(&ours, &early, now), "from a replica whose clock is ahead");
        let next = fresh(&ours, now.plus(LIFETIME)).unwrap();
        assert!(!there.is_good(&ours, &next, now));
        assert!(here.use_up(next, now.plus(LIFETIME)));
        assert_eq!(here.used().len(), 1, "what expired is forgotten");
    }
}
