//! What the mesh counts, in the text format of Prometheus.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::tunnel::Carried;

/// Which way connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From peers to the application.
    Ingress,
    /// From the application to peers.
    Egress,
}

/// Reasons of `HandshakeError::kind`, and those that come before and after a handshake.
const FAILURES: [&str; 12] = [
    "no_certificate",
    "peer_not_allowed",
    "counts_no_more",
    "expired",
    "bad_certificate",
    "refused_by_peer",
    "not_tls",
    "lost",
    "timeout",
    "too_many",
    "unreachable",
    "cut_off",
];

/// Counters of one way.
#[derive(Default)]
pub(crate) struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    out: AtomicU64,
    into: AtomicU64,
    failed: [AtomicU64; FAILURES.len()],
}

/// All counters.
#[derive(Default)]
pub(crate) struct Metrics {
    ingress: Counters,
    egress: Counters,
}

impl Metrics {
    pub(crate) fn of(&self, way: Way) -> &Counters {
        match way {
            Way::Ingress => &self.ingress,
            Way::Egress => &self.egress,
        }
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, labels: &str, value: u64| {
            let _ = writeln!(text, "contrast_mesh_{name}{{{labels}}} {value}"); // a String takes it all
        };
        for (way, counters) in [("ingress", &self.ingress), ("egress", &self.egress)] {
            let labels = format!("way=\"{way}\"");
            let (opened, closed) = (counters.opened.load(Relaxed), counters.closed.load(Relaxed));
            line("connections_total", &labels, opened);
            line("connections_open", &labels, opened.saturating_sub(closed));
            line("bytes_total", &format!("{labels},to=\"peer\""), counters.out.load(Relaxed));
            line("bytes_total", &format!("{labels},to=\"application\""), counters.into.load(Relaxed));
            for (reason, count) in FAILURES.iter().zip(&counters.failed) {
                line("failures_total", &format!("{labels},reason=\"{reason}\""), count.load(Relaxed));
            }
        }
        text
    }
}

impl Counters {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self, carried: Carried) {
        self.closed.fetch_add(1, Relaxed);
        self.out.fetch_add(carried.out, Relaxed);
        self.into.fetch_add(carried.into, Relaxed);
    }

    /// `reason` is one of [`FAILURES`].
    pub(crate) fn failed(&self, reason: &str) {
        let known = FAILURES.iter().position(|known| *known == reason);
        if let Some(count) = known.and_then(|place| self.failed.get(place)) {
            count.fetch_add(1, Relaxed);
        }
    }
}
