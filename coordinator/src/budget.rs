//! One budget of memory for the requests of all listeners.
//!
//! A request takes from it what it announces before it is read, and gives it back when its answer is sent. What is
//! not there is refused with a hint to come again; so however many requests arrive, together they use no more than
//! [`Budget::TOTAL`]. Callers with a right have pools of their own, which strangers cannot use up.

use std::{net::IpAddr, sync::Arc};

use program::{Sources, UnderWay};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::desk::Failure;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// How often a request's bytes are in memory at once: as they came, while they are decoded, and decoded.
const COPIES: usize = 3;
/// What every request costs besides.
const EACH: usize = 4 * KIB;

/// What a request costs that brings the largest manifest with its policies.
const LARGEST: usize = MOST_BYTES * COPIES + EACH;
/// Largest request, in bytes: a manifest and its policies.
pub(crate) const MOST_BYTES: usize = 16 * MIB;
/// Largest request of all other kinds; evidence with its chain, as base64, is the largest of these.
pub(crate) const MOST_SMALL_BYTES: usize = 128 * KIB;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// Nobody in particular.
    Stranger(IpAddr),
    /// The holder of a key that the manifest lists.
    Owner(IpAddr),
    /// A workload with evidence.
    Workload(IpAddr),
    /// A workload with a mesh certificate, at the transit engine.
    Transit(IpAddr),
}

/// The pools. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Budget {
    /// Requests up to [`MOST_SMALL_BYTES`], of anybody.
    small: Pool,
    /// Larger ones, of anybody: owners whose signatures are inside come in this way.
    large: Pool,
    owners: Pool,
    workloads: Pool,
    transit: Pool,
}

/// What a request holds until its answer is sent.
pub(crate) struct Reserved {
    _room: OwnedSemaphorePermit,
    _of_source: UnderWay,
}

#[derive(Clone)]
struct Pool {
    room: Arc<Semaphore>,
    sources: Arc<Sources>,
}

const SMALL: usize = 16 * MIB;
const LARGE: usize = 64 * MIB;
const OWNERS: usize = LARGEST;
const WORKLOADS: usize = 8 * MIB;
const TRANSIT: usize = 32 * MIB;

impl Budget {
    /// What all requests together can hold, in bytes.
    pub(crate) const TOTAL: usize = SMALL + LARGE + OWNERS + WORKLOADS + TRANSIT;

    pub(crate) fn new() -> Self {
        Self {
            small: Pool::new(SMALL, SMALL / 4),
            large: Pool::new(LARGE, LARGEST),
            owners: Pool::new(OWNERS, OWNERS),
            workloads: Pool::new(WORKLOADS, WORKLOADS / 2),
            transit: Pool::new(TRANSIT, TRANSIT),
        }
    }

    /// Room for an answer of `bytes`. The largest answers count as the largest request does, because they must be
    /// possible.
    pub(crate) fn reserve_answer(&self, right: Right, bytes: usize) -> Result<Arc<Reserved>, Failure> {
        self.reserve(right, bytes.min(MOST_BYTES)).map(Arc::new)
    }

    /// Room for a request of `bytes`.
    pub(crate) fn reserve(&self, right: Right, bytes: usize) -> Result<Reserved, Failure> {
        let cost = bytes.saturating_mul(COPIES).saturating_add(EACH);
        let of_anybody = if bytes <= MOST_SMALL_BYTES { &self.small } else { &self.large };
        let reserved = match right {
            Right::Stranger(source) => of_anybody.take(source, cost),
            Right::Owner(source) => of_anybody.take(source, cost).or_else(|| self.owners.take(source, cost)),
            Right::Workload(source) => self.workloads.take(source, cost),
            Right::Transit(source) => self.transit.take(source, cost),
        };
        reserved.ok_or_else(|| {
            Failure::Busy(format!(
                "requests under way leave no room for another one of {bytes} bytes; try again in a second"
            ))
        })
    }
}

impl Pool {
    fn new(bytes: usize, of_one_source: usize) -> Self {
        let room = Arc::new(Semaphore::new(bytes.div_ceil(KIB)));
        Self { room, sources: Sources::new(of_one_source.div_ceil(KIB)) }
    }

    fn take(&self, source: IpAddr, cost: usize) -> Option<Reserved> {
        let kib = u32::try_from(cost.div_ceil(KIB)).ok()?;
        let of_source = self.sources.begin_with(source, kib.try_into().ok()?)?;
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib).ok()?;
        Some(Reserved { _room: room, _of_source: of_source })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn from(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn strangers_leave_room_for_owners_and_for_workloads() {
        let budget = Budget::new();
        let strangers: Vec<_> = (0..=255)
            .flat_map(|last| [MOST_BYTES, 1 << 20, MOST_SMALL_BYTES, 1000].map(|bytes| (last, bytes)))
            .filter_map(|(last, bytes)| budget.reserve(Right::Stranger(from(last)), bytes).ok())
            .collect();
        assert!(budget.reserve(Right::Stranger(from(1)), MOST_SMALL_BYTES).is_err());
        let owner = budget.reserve(Right::Owner(from(1)), MOST_BYTES);
        assert!(owner.is_ok());
        assert!(budget.reserve(Right::Workload(from(1)), 8 << 10).is_ok());
        assert!(budget.reserve(Right::Transit(from(1)), 8 << 20).is_ok());
        drop((strangers, owner));
        assert!(budget.reserve(Right::Stranger(from(1)), MOST_BYTES).is_ok(), "given back");
    }

    #[test]
    fn one_source_does_not_take_what_others_need() {
        let budget = Budget::new();
        let held: Vec<_> =
            std::iter::from_fn(|| budget.reserve(Right::Stranger(from(1)), 64 << 10).ok()).collect();
        assert!(!held.is_empty() && held.len() < 100, "{}", held.len());
        assert!(budget.reserve(Right::Stranger(from(2)), 64 << 10).is_ok());
        let largest = budget.reserve(Right::Stranger(from(1)), MOST_BYTES);
        assert!(largest.is_ok(), "anybody may bring the largest manifest");
        assert!(budget.reserve(Right::Stranger(from(1)), 1 << 20).is_err(), "one at a time");
        assert!(budget.reserve(Right::Stranger(from(2)), 4 << 20).is_ok());
    }
}
