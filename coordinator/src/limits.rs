//! How much this Coordinator takes on at once, in connections and in descriptors.

use program::DoorLimits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The door of the probes. Their port must answer whatever happens at the others, because a Coordinator that fails its
/// probes is restarted, and then the seed is gone.
pub(crate) const PROBES: DoorLimits = DoorLimits {
    handshakes: 64,
    handshakes_per_source: 16,
    connections: 64,
    connections_per_source: 16,
    reserved: 0,
};

/// Descriptors that are not connections: the store, etcd, peers, vendors, and what the runtime needs.
const OTHER_DESCRIPTORS: usize = 256;
/// Listeners whose connections the options bound.
const LISTENERS: usize = 4;
/// With fewer connections than this on each listener, a Coordinator is of no use.
const FEWEST_CONNECTIONS: usize = 16;

/// Raises the limit of open descriptors to what `wanted` connections on each listener take. Gives the number that
/// is possible; an error if that is too small to serve.
pub(crate) fn connections_within_descriptors(wanted: usize, reserved: usize) -> anyhow::Result<usize> {
    let fixed = OTHER_DESCRIPTORS + PROBES.connections + LISTENERS * reserved;
    let needed = u64::try_from(fixed + LISTENERS * wanted)?;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    let target = maximum.map_or(needed, |maximum| maximum.min(needed));
    if current.is_some_and(|current| current < target) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum })?;
    }
    let possible = current.map_or(needed, |current| current.max(target));
    let connections = usize::try_from(possible)?.saturating_sub(fixed) / LISTENERS;
    anyhow::ensure!(
        connections >= FEWEST_CONNECTIONS,
        "{possible} open descriptors are possible here, and {} are the least to serve with: raise the limit (ulimit -n)",
        fixed + LISTENERS * FEWEST_CONNECTIONS
    );
    if connections < wanted {
        tracing::warn!(
            wanted,
            connections,
            descriptors = possible,
            "fewer connections than --max-connections: the limit of open descriptors allows no more"
        );
    }
    Ok(connections.min(wanted))
}
