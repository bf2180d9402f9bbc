//! What the mesh counts, in the text format of Prometheus.
//!
//! Ports and peers are labels, and what others choose must not fill the memory: of each only so many are told apart, and
//! the rest is counted together.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::tunnel::Carried;

/// Which way connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From peers to the application.
    Ingress,
    /// From the application to peers.
    Egress,
}

impl Way {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
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

/// Most places (ports of the application, egress entries) that are told apart.
const MOST_PLACES: usize = 64;
/// Most peers that are told apart at each place.
const MOST_PEERS: usize = 128;
/// Longest name of a peer in a label, in bytes.
const LONGEST_NAME: usize = 128;
/// What is beyond those.
const OTHERS: &str = "(others)";
/// A client without a certificate.
const NOBODY: &str = "(no certificate)";

/// Bounds of handshakes, in seconds.
const HANDSHAKES: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
/// Bounds of connections, in seconds.
const CONNECTIONS: [f64; 8] = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0];

/// Counters of one way.
#[derive(Default)]
pub(crate) struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    out: AtomicU64,
    into: AtomicU64,
    failed: [AtomicU64; FAILURES.len()],
}

/// How long something took, in buckets.
struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [AtomicU64; N],
    all: AtomicU64,
    microseconds: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, counts, all: AtomicU64::new(0), microseconds: AtomicU64::new(0) }
    }

    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            if seconds <= *bound {
                count.fetch_add(1, Relaxed);
            }
        }
        self.all.fetch_add(1, Relaxed);
        self.microseconds.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn render(&self, text: &mut String, name: &str, labels: &str) {
        // A String takes it all.
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {}", count.load(Relaxed));
        }
        let all = self.all.load(Relaxed);
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
        let _ = writeln!(text, "{name}_count{{{labels}}} {all}");
        #[expect(clippy::cast_precision_loss, reason = "microseconds of 100 years are below 2^52")]
        let seconds = self.microseconds.load(Relaxed) as f64 / 1_000_000.0;
        let _ = writeln!(text, "{name}_sum{{{labels}}} {seconds}");
    }
}

/// What came of connections with one peer.
#[derive(Default)]
struct OfPeer {
    connections: AtomicU64,
    out: AtomicU64,
    into: AtomicU64,
}

/// A port of the application, or an egress entry.
pub(crate) struct Place {
    handshakes: Histogram<{ HANDSHAKES.len() }>,
    connections: Histogram<{ CONNECTIONS.len() }>,
    failed: [AtomicU64; FAILURES.len()],
    peers: Mutex<BTreeMap<String, Arc<OfPeer>>>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            handshakes: Histogram::new(HANDSHAKES),
            connections: Histogram::new(CONNECTIONS),
            failed: Default::default(),
            peers: Mutex::default(),
        }
    }
}

impl Place {
    pub(crate) fn shook_hands(&self, took: Duration) {
        self.handshakes.observe(took);
    }

    pub(crate) fn failed(&self, reason: &str) {
        count(&self.failed, reason);
    }

    /// A connection with a peer of these names has ended.
    pub(crate) fn carried(&self, names: Option<&[String]>, carried: Carried, took: Duration) {
        self.connections.observe(took);
        let peer = self.peer(names);
        peer.connections.fetch_add(1, Relaxed);
        peer.out.fetch_add(carried.out, Relaxed);
        peer.into.fetch_add(carried.into, Relaxed);
    }

    fn peer(&self, names: Option<&[String]>) -> Arc<OfPeer> {
        let name = names.map_or(NOBODY, |names| names.first().map_or(OTHERS, String::as_str));
        let name = if name.len() > LONGEST_NAME { OTHERS } else { name };
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_room = peers.len() < MOST_PEERS || peers.contains_key(name);
        Arc::clone(peers.entry(if is_room { name } else { OTHERS }.to_owned()).or_default())
    }
}

fn count(failed: &[AtomicU64], reason: &str) {
    let known = FAILURES.iter().position(|known| *known == reason);
    if let Some(count) = known.and_then(|place| failed.get(place)) {
        count.fetch_add(1, Relaxed);
    }
}

/// All counters.
#[derive(Default)]
pub(crate) struct Metrics {
    ingress: Counters,
    egress: Counters,
    places: Mutex<BTreeMap<(Way, String), Arc<Place>>>,
    /// Lines of the access log that found no room.
    pub(crate) lines_lost: AtomicU64,
}

impl Metrics {
    pub(crate) fn of(&self, way: Way) -> &Counters {
        match way {
            Way::Ingress => &self.ingress,
            Way::Egress => &self.egress,
        }
    }

    /// What is counted of a port, or of an egress entry.
    pub(crate) fn at(&self, way: Way, place: &str) -> Arc<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (way, place.to_owned());
        let is_room = places.len() < MOST_PLACES || places.contains_key(&key);
        let key = if is_room { key } else { (way, OTHERS.to_owned()) };
        Arc::clone(places.entry(key).or_default())
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let ways = [("ingress", &self.ingress), ("egress", &self.egress)];
        let mut family = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&mut Lines<'_>)| {
            let name = format!("contrast_mesh_{name}");
            // A String takes it all.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            lines(&mut Lines { text: &mut text, name: &name });
        };
        family("connections_total", "counter", "Tunnels that were made", &|lines| {
            for (way, counters) in ways {
                lines.line(&format!("way=\"{way}\""), counters.opened.load(Relaxed));
            }
        });
        family("connections_open", "gauge", "Tunnels that stand", &|lines| {
            for (way, counters) in ways {
                let open = counters.opened.load(Relaxed).saturating_sub(counters.closed.load(Relaxed));
                lines.line(&format!("way=\"{way}\""), open);
            }
        });
        family("bytes_total", "counter", "Bytes of tunnels that ended", &|lines| {
            for (way, counters) in ways {
                lines.line(&format!("way=\"{way}\",to=\"peer\""), counters.out.load(Relaxed));
                lines.line(&format!("way=\"{way}\",to=\"application\""), counters.into.load(Relaxed));
            }
        });
        family("failures_total", "counter", "Connections that were refused or cut off", &|lines| {
            for (way, counters) in ways {
                for (reason, count) in FAILURES.iter().zip(&counters.failed) {
                    lines.line(&format!("way=\"{way}\",reason=\"{reason}\""), count.load(Relaxed));
                }
            }
        });
        let places: Vec<(String, Arc<Place>)> = {
            let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let labels =
                |(way, place): &(Way, String)| format!("way=\"{}\",port=\"{}\"", way.word(), escaped(place));
            places.iter().map(|(key, place)| (labels(key), Arc::clone(place))).collect()
        };
        family("handshake_seconds", "histogram", "Handshakes that succeeded", &|lines| {
            places.iter().for_each(|(labels, place)| place.handshakes.render(lines.text, lines.name, labels));
        });
        family("connection_seconds", "histogram", "How long tunnels that ended stood", &|lines| {
            places
                .iter()
                .for_each(|(labels, place)| place.connections.render(lines.text, lines.name, labels));
        });
        family("port_failures_total", "counter", "Connections that were refused or cut off", &|lines| {
            for (labels, place) in &places {
                let reasons =
                    FAILURES.iter().zip(&place.failed).map(|(reason, count)| (reason, count.load(Relaxed)));
                for (reason, count) in reasons.filter(|(_, count)| *count > 0) {
                    lines.line(&format!("{labels},reason=\"{reason}\""), count);
                }
            }
        });
        let peers: Vec<(String, Arc<OfPeer>)> = places
            .iter()
            .flat_map(|(labels, place)| {
                let peers = place.peers.lock().unwrap_or_else(PoisonError::into_inner);
                let labelled = peers
                    .iter()
                    .map(|(name, peer)| (format!("{labels},peer=\"{}\"", escaped(name)), Arc::clone(peer)));
                labelled.collect::<Vec<_>>()
            })
            .collect();
        family("peer_connections_total", "counter", "Tunnels that ended, by peer", &|lines| {
            peers.iter().for_each(|(labels, peer)| lines.line(labels, peer.connections.load(Relaxed)));
        });
        family("peer_bytes_total", "counter", "Bytes of tunnels that ended, by peer", &|lines| {
            for (labels, peer) in &peers {
                lines.line(&format!("{labels},to=\"peer\""), peer.out.load(Relaxed));
                lines.line(&format!("{labels},to=\"application\""), peer.into.load(Relaxed));
            }
        });
        let lost = self.lines_lost.load(Relaxed);
        let help = "Lines of the access log that were not written, because they were not taken fast enough";
        family("access_log_lost_total", "counter", help, &|lines| lines.line("", lost));
        text
    }
}

/// The lines of one family.
struct Lines<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Lines<'_> {
    fn line(&mut self, labels: &str, value: u64) {
        let _ = match labels {
            "" => writeln!(self.text, "{} {value}", self.name),
            labels => writeln!(self.text, "{}{{{labels}}} {value}", self.name),
        };
    }
}

/// The value of a label: names come out of certificates.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
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
        count(&self.failed, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_peers_beyond_the_bounds_are_counted_together() {
        let metrics = Metrics::default();
        for port in 0..200 {
            metrics.at(Way::Ingress, &port.to_string()).failed("expired");
        }
        let place = metrics.at(Way::Ingress, "7");
        for peer in 0..300 {
            let names = [format!("peer-{peer}")];
            place.carried(Some(&names), Carried { out: 1, into: 2 }, Duration::from_millis(20));
        }
        place.carried(Some(&["x".repeat(1000)]), Carried::default(), Duration::ZERO);
        place.carried(None, Carried::default(), Duration::ZERO);
        place.carried(Some(&["a\"b\\".to_owned()]), Carried::default(), Duration::ZERO);
        let text = metrics.render();
        let count = |begin: &str| text.lines().filter(|line| line.starts_with(begin)).count();
        assert_eq!(count("contrast_mesh_port_failures_total{"), MOST_PLACES + 1);
        assert!(
            text.contains(
                "contrast_mesh_port_failures_total{way=\"ingress\",port=\"(others)\",reason=\"expired\"} 136"
            ),
            "{text}"
        );
        assert_eq!(count("contrast_mesh_peer_connections_total{"), MOST_PEERS + 1);
        let of_others =
            "contrast_mesh_peer_connections_total{way=\"ingress\",port=\"7\",peer=\"(others)\"} 175";
        assert!(text.contains(of_others), "{text}");
        assert!(
            text.contains(
                "contrast_mesh_connection_seconds_bucket{way=\"ingress\",port=\"7\",le=\"0.1\"} 303"
            ),
            "{text}"
        );
        assert!(
            text.contains("contrast_mesh_connection_seconds_count{way=\"ingress\",port=\"7\"} 303"),
            "{text}"
        );
    }
}
