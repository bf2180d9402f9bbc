//! What one source of connections may have, so that it cannot take what others need.
//!
//! Beyond its connections a source is turned away. Beyond its handshakes it waits for its own to end: a peer that
//! begins many at once is slowed, and nobody else is.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Semaphore;

/// What each source has.
pub(crate) struct Sources {
    connections: usize,
    handshakes: usize,
    known: Mutex<HashMap<IpAddr, Source>>,
}

struct Source {
    connections: usize,
    turns: Arc<Semaphore>,
}

/// One connection of a source; it ends when this is dropped.
pub(crate) struct Connected {
    sources: Arc<Sources>,
    source: IpAddr,
    /// The source's places among the handshakes.
    pub(crate) turns: Arc<Semaphore>,
}

impl Sources {
    /// At most so many for each source.
    pub(crate) fn new(connections: usize, handshakes: usize) -> Arc<Self> {
        Arc::new(Self { connections, handshakes, known: Mutex::default() })
    }

    /// `None` when the source has as many connections as it may.
    pub(crate) fn connect(self: &Arc<Self>, address: IpAddr) -> Option<Connected> {
        let source = network(address);
        let mut known = self.known();
        let new = || Source { connections: 0, turns: Arc::new(Semaphore::new(self.handshakes)) };
        let of_source = known.entry(source).or_insert_with(new);
        if of_source.connections >= self.connections {
            return None;
        }
        of_source.connections += 1;
        Some(Connected { sources: Arc::clone(self), source, turns: Arc::clone(&of_source.turns) })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut known = self.sources.known();
        if let Some(of_source) = known.get_mut(&self.source) {
            of_source.connections -= 1;
            if of_source.connections == 0 {
                known.remove(&self.source);
            }
        }
    }
}

/// One host commands a whole /64 of IPv6, so that counts as one source.
fn network(address: IpAddr) -> IpAddr {
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
        let sources = Sources::new(2, 1);
        let connect = |text: &str| sources.connect(text.parse().unwrap());
        let (first, second) = (connect("2001:db8::1").unwrap(), connect("2001:db8::2").unwrap());
        assert!(connect("2001:db8::3").is_none(), "the same /64");
        let turn = first.turns.try_acquire().unwrap();
        assert!(second.turns.try_acquire().is_err(), "its other connection waits");
        drop(turn);
        assert!(second.turns.try_acquire().is_ok());
        let other = connect("2001:db8:0:1::1").unwrap();
        assert!(other.turns.try_acquire().is_ok());
        drop((first, second, other));
        assert!(sources.known().is_empty(), "nothing is kept about a source that is gone");
    }
}
