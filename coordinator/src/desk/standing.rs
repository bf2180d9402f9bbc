//! What this replica knows about its own place: how old its view is, what it caught others at.
//!
//! A replica that may be behind must not give anything away, because a manifest that it has not heard of may
//! have taken the right to it. That is a matter of types here: [`Current`] and [`Confirmed`] can be made in this
//! file only, and everything that issues, hands over or uses keys for others demands one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use actors::{Active, Snapshot};
use etcd_store::EtcdStore;
use storage_schema::StreamId;
use tokio::sync::watch;

use super::failure::Failure;

/// A replica that does not know for longer than this whether a manifest was set elsewhere issues nothing:
/// the bound on certificates under a manifest that was replaced.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(10);

/// Most alarms that are kept; further ones are only counted.
const ALARMS: usize = 32;

/// The manifest in force, at a moment when this replica knew that no other one had replaced it, and that there
/// is one history only. It is not `Clone`, so that nobody keeps one for later.
pub(crate) struct Current(Arc<Active>);

/// The same, except that two histories may have been seen. Only secrets for another Coordinator may be given
/// away on the strength of this one.
pub(crate) struct Confirmed(Arc<Active>);

impl Deref for Current {
    type Target = Arc<Active>;

    fn deref(&self) -> &Arc<Active> {
        &self.0
    }
}

impl Deref for Confirmed {
    type Target = Arc<Active>;

    fn deref(&self) -> &Arc<Active> {
        &self.0
    }
}

/// The place of this replica among the others.
pub(crate) struct Standing {
    etcd: Option<Arc<EtcdStore>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// When it was last asked whether the control stream is complete here, and it was.
    confirmed: Option<Instant>,
    control_events: u64,
    alarms: Vec<String>,
    /// Alarms that are not in the event log yet.
    unrecorded: Vec<String>,
    /// When two histories with one key were last seen: nobody can tell here which one is right.
    forked: Option<Instant>,
    peers: BTreeMap<String, Peer>,
    /// Segments of each stream that are here with all their evidence.
    held: BTreeMap<StreamId, u64>,
    /// Number of streams that were not here to their end at the last look.
    incomplete: Option<u32>,
    /// Streams that were not held against their last checkpoint at the start, because they were not here.
    unverified: BTreeSet<StreamId>,
    /// Why the store does not take writes.
    failing: Option<String>,
}

/// What is known of a peer.
#[derive(Clone, Default)]
pub(crate) struct Peer {
    pub(crate) replica: String,
    pub(crate) control_events: u64,
    pub(crate) answered: Option<Instant>,
    pub(crate) error: String,
}

impl Standing {
    pub(crate) fn alone() -> Self {
        Self { etcd: None, inner: Mutex::default() }
    }

    pub(crate) fn shared(etcd: Arc<EtcdStore>) -> Self {
        Self { etcd: Some(etcd), inner: Mutex::default() }
    }

    pub(crate) fn etcd(&self) -> Option<&Arc<EtcdStore>> {
        self.etcd.as_ref()
    }

    /// Tells of appends by others.
    pub(crate) fn news(&self) -> Option<watch::Receiver<u64>> {
        self.etcd.as_ref().map(|etcd| etcd.news())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At `asked`, everything in the shared control stream was known here.
    pub(crate) fn confirm(&self, asked: Instant, events: u64) {
        let mut inner = self.inner();
        (inner.confirmed, inner.control_events) = (Some(asked), events);
    }

    /// Whether everything that was in the shared control stream at `moment` is known here.
    pub(crate) fn knows_what_was_there(&self, moment: Instant) -> bool {
        self.inner().confirmed.is_some_and(|asked| asked > moment)
    }

    /// Number of events of the control stream at that time.
    pub(crate) fn control_events(&self) -> u64 {
        self.inner().control_events
    }

    /// The shared store was caught at showing another past: what was confirmed is void.
    pub(crate) fn revoke(&self) {
        self.inner().confirmed = None;
    }

    /// How old the view of the control stream is; `None`: there never was one.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.inner().confirmed.map(|at| at.elapsed())
    }

    /// Takes note of why the store does not take writes, or that it does.
    pub(crate) fn set_failing(&self, failing: Option<String>) {
        let mut inner = self.inner();
        match (&inner.failing, &failing) {
            (None, Some(error)) => {
                tracing::error!(%error, "the event store takes no writes: nothing is issued");
            }
            (Some(_), None) => tracing::info!("the event store takes writes again"),
            _ => {}
        }
        inner.failing = failing;
    }

    /// Why the store does not take writes.
    pub(crate) fn failing(&self) -> Option<String> {
        self.inner().failing.clone()
    }

    /// Whether certificates may be issued. To decide on that, ask for a [`Current`].
    pub(crate) fn is_current(&self) -> bool {
        self.inner().forked.is_none() && self.is_confirmed()
    }

    /// Whether the store was heard of lately, and shows what follows on what was known.
    fn is_confirmed(&self) -> bool {
        self.etcd.is_none() || self.inner().confirmed.is_some_and(|at| at.elapsed() < STALE_AFTER)
    }

    /// The manifest in force, if this replica knows that it still is: what issuing a certificate takes.
    pub(super) fn current(&self, snapshot: &watch::Receiver<Snapshot>) -> Result<Current, Failure> {
        // In this order: news that arrive in between make the manifest newer than the view had to be.
        if !self.is_current() {
            return Err(self.too_old());
        }
        Ok(Current(Arc::clone(snapshot.borrow().require()?)))
    }

    /// The manifest in force, for a peer that asks for the secrets. A fork does not count against it: it ends
    /// when all peers agree, and a peer whose disk an operator emptied can agree only when it has joined.
    pub(super) fn confirmed(&self, snapshot: &watch::Receiver<Snapshot>) -> Result<Confirmed, Failure> {
        if !self.is_confirmed() {
            return Err(self.too_old());
        }
        Ok(Confirmed(Arc::clone(snapshot.borrow().require()?)))
    }

    fn too_old(&self) -> Failure {
        let mut text = "this replica has not heard from the event store for too long to know whether the \
                        manifest is still in force; try another replica, or again"
            .to_owned();
        if let Some(alarm) = self.inner().alarms.last() {
            text += &format!(". Its last alarm: {alarm}");
        }
        Failure::Stale(text)
    }

    /// Two histories have the signature of this deployment.
    pub(crate) fn forked(&self) {
        self.inner().forked = Some(Instant::now());
    }

    /// Every peer shows the history that is known here; whoever showed another one was last heard before
    /// `since`. So a person has decided which one is right, and this replica goes on.
    pub(crate) fn agreed(&self, since: Instant) {
        let mut inner = self.inner();
        if inner.forked.is_some_and(|at| at < since) {
            tracing::warn!("all peers show the history of this replica again: it serves");
            inner.forked = None;
        }
    }

    /// Reports something that needs a person, once for each text.
    pub(crate) fn alarm(&self, text: String) {
        let mut inner = self.inner();
        if inner.alarms.contains(&text) || inner.alarms.len() >= ALARMS {
            return;
        }
        tracing::error!(alarm = %text, "the event store or a peer is not honest, or was restored wrongly");
        inner.unrecorded.push(text.clone());
        inner.alarms.push(text);
    }

    pub(crate) fn alarms(&self) -> Vec<String> {
        self.inner().alarms.clone()
    }

    /// Alarms for the event log.
    pub(crate) fn unrecorded(&self) -> Vec<String> {
        self.inner().unrecorded.clone()
    }

    pub(crate) fn recorded(&self, count: usize) {
        self.inner().unrecorded.drain(..count);
    }

    pub(crate) fn peer(&self, address: &str, peer: Result<Peer, String>) {
        let mut inner = self.inner();
        let known = inner.peers.entry(address.to_owned()).or_default();
        match peer {
            Ok(peer) => *known = peer,
            Err(error) => known.error = error,
        }
    }

    /// Forgets peers that discovery does not name any more.
    pub(crate) fn retain_peers(&self, addresses: &[String]) {
        self.inner().peers.retain(|address, _| addresses.contains(address));
    }

    /// What was found by a look at all streams.
    pub(crate) fn set_held(&self, held: BTreeMap<StreamId, u64>, incomplete: u32) {
        let mut inner = self.inner();
        (inner.held, inner.incomplete) = (held, Some(incomplete));
    }

    /// How many segments of a stream are here with all their evidence.
    pub(crate) fn held(&self, stream: &StreamId) -> u64 {
        self.inner().held.get(stream).copied().unwrap_or_default()
    }

    /// Number of streams that were not here to their end at the last look.
    pub(crate) fn incomplete(&self) -> Option<u32> {
        self.inner().incomplete
    }

    /// Streams that are to be held against their checkpoints once they are here.
    pub(crate) fn unverified(&self) -> Vec<StreamId> {
        self.inner().unverified.iter().copied().collect()
    }

    /// Notes what the start could not verify, or removes what was verified since.
    pub(crate) fn set_unverified(&self, streams: impl IntoIterator<Item = StreamId>) {
        self.inner().unverified = streams.into_iter().collect();
    }

    pub(crate) fn peers(&self) -> BTreeMap<String, Peer> {
        self.inner().peers.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_current_for_a_bounded_time_and_not_after_a_fork() {
        assert!(Standing::alone().is_current());
        let options = etcd_store::EtcdOptions {
            endpoints: vec!["http://127.0.0.1:9".into()],
            prefix: "p/".into(),
            tls: None,
            user: None,
            deadline: Duration::from_millis(1),
        };
        let standing = Standing::shared(Arc::new(EtcdStore::new(&options).unwrap()));
        assert!(!standing.is_current(), "nothing was ever confirmed");
        standing.confirm(Instant::now(), 1);
        assert!(standing.is_current());
        if let Some(long_ago) = Instant::now().checked_sub(STALE_AFTER) {
            standing.confirm(long_ago, 1);
            assert!(!standing.is_current());
        }
        standing.confirm(Instant::now(), 1);
        standing.forked();
        assert!(!standing.is_current());
        let before = Instant::now();
        standing.forked();
        standing.agreed(before);
        assert!(!standing.is_current(), "the other history was heard of since");
        standing.agreed(Instant::now());
        assert!(standing.is_current());
        standing.alarm("once".into());
        standing.alarm("once".into());
        assert_eq!(standing.unrecorded(), ["once"]);
    }
}
