//! The one accept loop: bounded in connections and handshakes, together and for each source, and
//! with a pause when accepting fails.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::{AbortHandle, JoinSet},
};

use crate::sources::{Sources, UnderWay, network};

/// Pause after accepting failed: most often there are no descriptors left, and trying at once would only burn the
/// time that others need to give some back.
const PAUSE: Duration = Duration::from_millis(50);

/// How much a door lets in at once.
#[derive(Clone, Copy, Debug)]
pub struct DoorLimits {
    /// Connections whose handshake is not done.
    pub handshakes: usize,
    /// Of these, from one source.
    pub handshakes_per_source: usize,
    /// Connections.
    pub connections: usize,
    /// Of these, from one source.
    pub connections_per_source: usize,
    /// Connections beyond these, for owners alone: who is at the other end is known after the handshake.
    pub reserved: usize,
}

/// What happens to a new connection when every place is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// It is closed.
    Refuse,
    /// The oldest one of the source that has most is closed. For connections that last a moment if they are honest: who
    /// has one keeps it, however many others hold theirs.
    EndOldest,
}

/// Who counts what happens at a door.
pub trait Doorkeeper: Clone + Send + Sync + Unpin + 'static {
    /// A connection has its place.
    fn opened(&self);
    /// A connection that had a place has ended.
    fn closed(&self);
    /// A connection was closed at once, for this reason.
    fn refused(&self, reason: &'static str);
}

/// Where connections come in.
#[derive(Clone)]
pub struct Door<K> {
    /// What log lines call it.
    pub name: &'static str,
    /// How much it lets in.
    pub limits: DoorLimits,
    /// What happens beyond that.
    pub when_full: WhenFull,
    /// Who counts.
    pub keeper: K,
    /// Says when to stop; so does a sender that is gone.
    pub stop: watch::Receiver<bool>,
}

/// What a connection holds for as long as it is open.
pub struct Place<K: Doorkeeper> {
    /// One of those that only owners may keep.
    pub is_reserved: bool,
    keeper: K,
    _permit: OwnedSemaphorePermit,
    _source: UnderWay,
}

impl<K: Doorkeeper> Drop for Place<K> {
    fn drop(&mut self) {
        self.keeper.closed();
    }
}

/// What a connection holds until its handshake is done.
pub struct Handshake {
    _permit: OwnedSemaphorePermit,
    _source: UnderWay,
}

impl<K: Doorkeeper> Door<K> {
    /// Accepts until stopped, gives each connection to `each`, and returns when all of these have ended.
    pub async fn serve<F>(
        self,
        socket: TcpListener,
        each: impl Fn(TcpStream, SocketAddr, Place<K>, Handshake) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let limits = self.limits;
        let places = Arc::new(Semaphore::new(limits.connections));
        let reserved = Arc::new(Semaphore::new(limits.reserved));
        let handshakes = Arc::new(Semaphore::new(limits.handshakes));
        let open_from = Sources::new(limits.connections_per_source);
        let handshakes_from = Sources::new(limits.handshakes_per_source);
        let (mut tasks, mut oldest) = (JoinSet::new(), VecDeque::<(IpAddr, AbortHandle)>::new());
        let mut stop = self.stop.clone();
        loop {
            let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = stop.wait_for(|stopped| *stopped) => break,
            };
            while tasks.try_join_next().is_some() {}
            let (stream, source) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(listener = self.name, %error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let from_there = open_from.begin(source.ip()).zip(handshakes_from.begin(source.ip()));
            let Some((place_of_source, handshake_of_source)) = from_there else {
                self.refused("too many from one source");
                continue;
            };
            let (permit, is_reserved) = match Arc::clone(&places).try_acquire_owned() {
                Ok(permit) => (permit, false),
                Err(_) if self.when_full == WhenFull::EndOldest => {
                    self.refused("too many at once");
                    end_one(&mut oldest);
                    let Ok(permit) = Arc::clone(&places).acquire_owned().await else { return };
                    (permit, false)
                }
                Err(_) => match Arc::clone(&reserved).try_acquire_owned() {
                    Ok(permit) => (permit, true),
                    Err(_) => {
                        self.refused("too many at once");
                        continue;
                    }
                },
            };
            let _ = stream.set_nodelay(true); // only a matter of speed
            self.keeper.opened();
            let keeper = self.keeper.clone();
            let place = Place { is_reserved, keeper, _permit: permit, _source: place_of_source };
            let handshake = Handshake { _permit: handshake, _source: handshake_of_source };
            let task = tasks.spawn(each(stream, source, place, handshake));
            if self.when_full == WhenFull::EndOldest {
                if oldest.len() >= 2 * limits.connections {
                    oldest.retain(|(_, task)| !task.is_finished());
                }
                oldest.push_back((network(source.ip()), task));
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Counts a connection that was closed for a reason.
    pub fn refused(&self, reason: &'static str) {
        self.keeper.refused(reason);
    }
}

/// Ends the oldest connection of the source that has most.
fn end_one(oldest: &mut VecDeque<(IpAddr, AbortHandle)>) {
    oldest.retain(|(_, task)| !task.is_finished());
    let mut open = HashMap::<IpAddr, usize>::new();
    for (source, _) in oldest.iter() {
        *open.entry(*source).or_default() += 1;
    }
    let most =
        |(at, (source, _)): &(usize, &(IpAddr, AbortHandle))| (open.get(source).copied(), Reverse(*at));
    let place = oldest.iter().enumerate().max_by_key(most).map(|(at, _)| at);
    if let Some((_, task)) = place.and_then(|at| oldest.remove(at)) {
        task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_holds_most_gives_way_and_who_has_one_keeps_it() {
        let mut tasks = JoinSet::new();
        let mut open =
            |last: u8| (IpAddr::from([192, 0, 2, last]), tasks.spawn(std::future::pending::<()>()));
        let mut oldest: VecDeque<_> = [1, 2, 3, 3, 2, 3].map(&mut open).into();
        let left = |oldest: &VecDeque<(IpAddr, AbortHandle)>| -> Vec<u8> {
            oldest
                .iter()
                .map(|(source, _)| source.to_string().rsplit('.').next().unwrap().parse().unwrap())
                .collect()
        };
        end_one(&mut oldest);
        assert_eq!(left(&oldest), [1, 2, 3, 2, 3]);
        end_one(&mut oldest);
        assert_eq!(left(&oldest), [1, 3, 2, 3], "of those that have as many, the oldest");
        end_one(&mut oldest);
        assert_eq!(left(&oldest), [1, 2, 3]);
        end_one(&mut oldest);
        assert_eq!(left(&oldest), [2, 3], "one each: the oldest");
        oldest.clear();
        end_one(&mut oldest);
    }
}
