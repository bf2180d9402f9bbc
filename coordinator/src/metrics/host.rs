//! What the kernel says of this process and of the disk: names and meaning are those that Prometheus' own clients use.

use std::{path::Path, sync::OnceLock};

use prometheus_client::{
    metrics::gauge::ConstGauge,
    registry::{Registry, Unit},
};
use rustix::process::Resource;

/// In which the kernel tells times to programs, whatever its own are.
const TICKS_PER_SECOND: f64 = 100.0;

/// Registers what can be read. What cannot is left out: a dashboard shows a gap, not a wrong number.
pub(super) fn register(registry: &mut Registry, state_dir: &Path) {
    if let Some(bytes) = resident() {
        let help = "Memory of the process that is in RAM";
        registry.register_with_unit("process_resident_memory", help, Unit::Bytes, ConstGauge::new(bytes));
    }
    if let Some(start) = started() {
        let help = "When the process started, since 1970";
        registry.register_with_unit("process_start_time", help, Unit::Seconds, ConstGauge::new(start));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let open = i64::try_from(open.count()).unwrap_or(i64::MAX);
        registry.register("process_open_fds", "Open file descriptors", ConstGauge::new(open));
    }
    if let Some(limit) = rustix::process::getrlimit(Resource::Nofile).current {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        registry.register(
            "process_max_fds",
            "Most file descriptors that may be open",
            ConstGauge::new(limit),
        );
    }
    if let Ok(disk) = rustix::fs::statvfs(state_dir) {
        let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX);
        let (name, help) = ("contrast_coordinator_state_disk_free", "Room left where the event log is");
        registry.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes(disk.f_bavail)));
        let (name, help) =
            ("contrast_coordinator_state_disk_size", "Size of the disk where the event log is");
        registry.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes(disk.f_blocks)));
    }
}

fn resident() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Seconds since 1970.
fn started() -> Option<f64> {
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name in brackets may hold anything; the 22nd field counts from its end on.
        let ticks: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: u32 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(f64::from(boot) + f64::from(ticks) / TICKS_PER_SECOND)
    })
}
