//! How many connections the pod can carry: bounded by its memory and by the descriptors it may open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most connections at once that are taken without being told so.
const MOST: u64 = 50_000;
/// Fewest: a mesh that takes none is of no use, however small the pod is.
const FEWEST: u64 = 64;
/// What mesh and initializer take when nothing is connected, in bytes.
const AT_REST: u64 = 40 << 20;
/// What a connection takes, in bytes: 10 KiB when it is idle, at most 24 000 bytes in the tests with ten thousand at once.
const CONNECTION: u64 = 24 << 10;
/// Descriptors of the mesh itself.
const OWN_DESCRIPTORS: u64 = 256;
/// A proxied connection has two.
const DESCRIPTORS: u64 = 2;
/// Where the kernel says what memory this container may use: cgroup v2 and v1.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Connections at once: `wanted`, or what fits. Raises the limit of descriptors as far as that needs and is allowed.
pub(crate) fn connections(wanted: Option<usize>) -> usize {
    let memory =
        MEMORY_LIMITS.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    let (connections, of_memory) = match wanted {
        Some(wanted) => (wanted as u64, false),
        None => (fitting(memory), true),
    };
    let needed = connections.saturating_mul(DESCRIPTORS).saturating_add(OWN_DESCRIPTORS);
    let possible = descriptors(needed);
    let carried = possible.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS;
    if of_memory {
        let connections = connections.min(carried.max(FEWEST));
        tracing::info!(
            connections,
            memory,
            descriptors = possible,
            "connections at once that the pod carries"
        );
        return usize::try_from(connections).unwrap_or(usize::MAX);
    }
    if carried < connections {
        tracing::warn!(needed, possible, "fewer descriptors than --max-connections needs");
    }
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// What memory of that many bytes carries; no limit is no bound.
fn fitting(memory: Option<u64>) -> u64 {
    memory.map_or(MOST, |memory| (memory.saturating_sub(AT_REST) / CONNECTION).clamp(FEWEST, MOST))
}

/// Raises the limit to `needed`, or to its maximum. Returns what it is then.
fn descriptors(needed: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(current) = current.filter(|current| *current < needed) else { return needed };
    // More than the maximum takes a capability that containers have not.
    let attempts = [needed, maximum.map_or(needed, |maximum| maximum.min(needed))];
    let set = |limit: &&u64| {
        let maximum = maximum.map(|maximum| maximum.max(**limit));
        setrlimit(Resource::Nofile, Rlimit { current: Some(**limit), maximum }).is_ok()
    };
    attempts.iter().find(set).copied().unwrap_or(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_bounds_connections() {
        assert_eq!(fitting(None), MOST);
        assert_eq!(fitting(Some(u64::MAX)), MOST);
        // What `generate` gives a pod.
        assert_eq!(fitting(Some(128 << 20)), 3754);
        assert_eq!(fitting(Some(1 << 20)), FEWEST);
    }
}
