//! What a process that holds secrets asks of the system at its start: that its memory is nobody else's.

use rustix::{
    mm::MlockAllFlags,
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
};

/// No core dumps, no other process that reads the memory, and none of it on a swap device. Call it first of all, after
/// the log is there; nothing here keeps a program from starting.
pub fn keep_secrets() {
    // A crash under a hostile host's `core_pattern` would be the seed.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!("core dumps cannot be forbidden: {error}");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("other processes of this user can read this one's memory: {error}");
    }
    // Locked memory cannot be given back page by page, and a guest that has no swap has nowhere to write it. So it is
    // locked only where there is a swap device.
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().nth(1).is_none() {
        return;
    }
    // With a limit, a later allocation beyond it would fail, and the program with it.
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let locked = unlimited && rustix::mm::mlockall(flags).is_ok();
    if !locked {
        tracing::warn!(
            "this machine has a swap device, and secrets in memory may be written to it: turn swap off, or give an \
             unlimited RLIMIT_MEMLOCK"
        );
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn the_process_is_not_dumpable_and_leaves_no_core() {
        keep_secrets();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
