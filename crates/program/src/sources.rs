//! How much one source may have under way, so that it cannot take what others need.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts what each source has under way. All that one source has under way shares a `T`, such as a queue.
pub struct Sources<T = ()> {
    most: usize,
    shared: Box<dyn Fn() -> T + Send + Sync>,
    known: Mutex<HashMap<IpAddr, Source<T>>>,
}

struct Source<T> {
    under_way: usize,
    shared: Arc<T>,
}

/// One thing under way; it ends when this is dropped.
pub struct UnderWay<T = ()> {
    sources: Arc<Sources<T>>,
    source: IpAddr,
    amount: usize,
    shared: Arc<T>,
}

impl Sources {
    /// At most `most` for each source.
    pub fn new(most: usize) -> Arc<Self> {
        Self::sharing(most, || ())
    }
}

impl<T> Sources<T> {
    /// The same, where all that a source has under way shares what `shared` makes.
    pub fn sharing(most: usize, shared: impl Fn() -> T + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { most, shared: Box::new(shared), known: Mutex::default() })
    }

    /// `None` when the source has as much under way as it may.
    pub fn begin(self: &Arc<Self>, address: IpAddr) -> Option<UnderWay<T>> {
        self.begin_with(address, 1)
    }

    /// The same for something that counts `amount` times.
    pub fn begin_with(self: &Arc<Self>, address: IpAddr, amount: usize) -> Option<UnderWay<T>> {
        let source = network(address);
        let mut known = self.known();
        let under_way = known.get(&source).map_or(0, |known| known.under_way);
        if amount > self.most - under_way {
            return None;
        }
        let new = || Source { under_way: 0, shared: Arc::new((self.shared)()) };
        let of_source = known.entry(source).or_insert_with(new);
        of_source.under_way += amount;
        let shared = Arc::clone(&of_source.shared);
        Some(UnderWay { sources: Arc::clone(self), source, amount, shared })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<IpAddr, Source<T>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> UnderWay<T> {
    /// What it shares with all else that its source has under way.
    pub fn shared(&self) -> &Arc<T> {
        &self.shared
    }
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        let mut known = self.sources.known();
        if let Some(of_source) = known.get_mut(&self.source) {
            of_source.under_way -= self.amount;
            if of_source.under_way == 0 {
                known.remove(&self.source);
            }
        }
    }
}

/// One host commands a whole /64 of IPv6, so that counts as one source.
pub fn network(address: IpAddr) -> IpAddr {
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
        assert!(sources.known().is_empty(), "nothing is kept about a source that is done");
    }

    #[test]
    fn what_one_source_has_under_way_shares_its_queue() {
        let sources = Sources::sharing(3, || Mutex::new(()));
        let begin = |text: &str| sources.begin(text.parse().unwrap()).unwrap();
        let (first, second, other) = (begin("192.0.2.1"), begin("192.0.2.1"), begin("192.0.2.2"));
        let _turn = first.shared().lock().unwrap();
        assert!(second.shared().try_lock().is_err(), "its other connection waits");
        assert!(other.shared().try_lock().is_ok());
    }
}
