//! How much one source may have under way, so that it cannot take what others need.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts what each source has under way.
pub(crate) struct Sources {
    most: usize,
    under_way: Mutex<HashMap<IpAddr, usize>>,
}

/// One thing under way; it ends when this is dropped.
pub(crate) struct UnderWay {
    sources: Arc<Sources>,
    source: IpAddr,
    amount: usize,
}

impl Sources {
    /// At most `most` for each source.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, under_way: Mutex::default() })
    }

    /// `None` when the source has as much under way as it may.
    pub(crate) fn begin(self: &Arc<Self>, address: IpAddr) -> Option<UnderWay> {
        self.begin_with(address, 1)
    }

    /// The same for something that counts `amount` times.
    pub(crate) fn begin_with(self: &Arc<Self>, address: IpAddr, amount: usize) -> Option<UnderWay> {
        let source = network(address);
        let mut under_way = self.under_way();
        let count = under_way.entry(source).or_default();
        if amount > self.most - *count {
            if *count == 0 {
                under_way.remove(&source);
            }
            return None;
        }
        *count += amount;
        Some(UnderWay { sources: Arc::clone(self), source, amount })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.sources.under_way();
        if let Some(count) = under_way.get_mut(&self.source) {
            *count -= self.amount;
            if *count == 0 {
                under_way.remove(&self.source);
            }
        }
    }
}

/// One host commands a whole /64 of IPv6, so that counts as one source.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_bounded_and_others_are_not_affected() {
        let sources = Sources::new(2);
        let begin = |text: &str| sources.begin(text.parse().unwrap());
        let first = begin("2001:db8::1").unwrap();
        let _second = begin("2001:db8::2").unwrap();
        assert!(begin("2001:db8::3").is_none(), "the same /64");
        assert!(begin("2001:db8:0:1::1").is_some());
        assert!(begin("192.0.2.1").is_some() && begin("::ffff:192.0.2.1").is_some());
        drop(first);
        assert!(begin("2001:db8::3").is_some());
        drop(_second);
        assert!(sources.under_way().is_empty(), "nothing is kept about a source that is done");
    }
}
