//! Metrics, in OpenMetrics text or the older one (docs/spec/control-plane.md, section 8.4). Names and labels are an
//! interface: `deploy/monitoring` uses them, and a test compares.

mod classic;
mod grpc;
mod host;

use std::{path::Path, time::Duration};

use actors::CommitSeen;
use manifest::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

pub(crate) use self::grpc::{CountCalls, GrpcMetrics};

/// Bounds of everything that takes time, in seconds.
const SECONDS: [f64; 11] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Listener {
    pub(crate) listener: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Refusal {
    pub(crate) listener: &'static str,
    pub(crate) reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Route {
    pub(crate) listener: &'static str,
    pub(crate) route: &'static str,
    pub(crate) code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Actor {
    actor: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Authority {
    ca: &'static str,
}

/// Everything that is counted as it happens. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) attestation_failures: Counter,
    pub(crate) verification: Family<Outcome, Histogram>,
    pub(crate) issuing: Family<Outcome, Histogram>,
    pub(crate) connections: Family<Listener, Gauge>,
    pub(crate) handshakes: Family<Listener, Histogram>,
    pub(crate) refused: Family<Refusal, Counter>,
    pub(crate) requests: Family<Route, Counter>,
    pub(crate) grpc: GrpcMetrics,
    commit: Histogram,
    allocations: Counter,
    commit_events: Histogram,
    generation: Gauge,
    ready: Gauge,
    shares: Gauge,
    proposals: Gauge,
    evicted: Gauge,
    queue: Family<Actor, Gauge>,
    storage_refused: Gauge,
    storage_alarms: Gauge,
    incomplete_streams: Gauge,
    view_age: Gauge<f64, std::sync::atomic::AtomicU64>,
}

pub(crate) fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            attestation_failures: Counter::default(),
            verification: Family::new_with_constructor(seconds),
            issuing: Family::new_with_constructor(seconds),
            connections: Family::default(),
            handshakes: Family::new_with_constructor(seconds),
            refused: Family::default(),
            requests: Family::default(),
            grpc: GrpcMetrics::default(),
            allocations: Counter::default(),
            commit: seconds(),
            commit_events: Histogram::new([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]),
            generation: Gauge::default(),
            ready: Gauge::default(),
            shares: Gauge::default(),
            proposals: Gauge::default(),
            evicted: Gauge::default(),
            queue: Family::default(),
            storage_refused: Gauge::default(),
            storage_alarms: Gauge::default(),
            incomplete_streams: Gauge::default(),
            view_age: Gauge::default(),
        }
    }
}

impl Metrics {
    /// What happened to one group commit of the journal.
    pub(crate) fn commit_seen(&self, commit: CommitSeen) {
        self.commit.observe(commit.took.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a batch has no 2^52 events")]
        self.commit_events.observe(commit.events as f64);
    }

    /// Adds how long something took and how it ended.
    pub(crate) fn took(family: &Family<Outcome, Histogram>, outcome: &'static str, took: Duration) {
        family.get_or_create(&Outcome { outcome }).observe(took.as_secs_f64());
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("contrast");
        let info = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("coordinator", "The program", info);
        registry.register(
            "coordinator_manifest_generation",
            "Number of manifests so far, 0 until one is active",
            self.generation.clone(),
        );
        registry.register(
            "coordinator_ready",
            "1 while a manifest is in force, the seed in memory, and the event store takes writes",
            self.ready.clone(),
        );
        registry.register(
            "coordinator_seed_shares_needed",
            "How many seedshare owners it takes to recover",
            self.shares.clone(),
        );
        registry.register(
            "coordinator_proposals",
            "Manifest changes that wait for signatures",
            self.proposals.clone(),
        );
        registry.register(
            "coordinator_evicted",
            "Policies and certificate keys that workload owners shut out of the mesh",
            self.evicted.clone(),
        );
        registry.register(
            "coordinator_queue_depth",
            "Questions that an actor has waiting or under way",
            self.queue.clone(),
        );
        registry.register(
            "coordinator_storage_refused",
            "How often the shared store showed another past than the one that was verified",
            self.storage_refused.clone(),
        );
        registry.register(
            "coordinator_storage_alarms",
            "What the shared store or a peer was caught at since the start",
            self.storage_alarms.clone(),
        );
        registry.register(
            "coordinator_incomplete_streams",
            "Streams of which this replica does not hold everything yet",
            self.incomplete_streams.clone(),
        );
        registry.register_with_unit(
            "coordinator_view_age",
            "Time since the control stream was known to be complete here; 0 without a shared store",
            Unit::Seconds,
            self.view_age.clone(),
        );
        registry.register("coordinator_connections", "Open connections", self.connections.clone());
        registry.register("coordinator_refused", "Connections refused", self.refused.clone());
        registry.register("coordinator_http_requests", "Requests answered over HTTP", self.requests.clone());
        registry.register(
            "meshapi_attestation_failures",
            "Workloads whose evidence was refused",
            self.attestation_failures.clone(),
        );
        registry.register_with_unit(
            "coordinator_verification",
            "Verification of evidence, waiting for a thread included",
            Unit::Seconds,
            self.verification.clone(),
        );
        registry.register_with_unit(
            "coordinator_issuing",
            "Issuing of certificates, the flush of the event included",
            Unit::Seconds,
            self.issuing.clone(),
        );
        registry.register_with_unit(
            "coordinator_handshake",
            "Handshakes, evidence of both sides included",
            Unit::Seconds,
            self.handshakes.clone(),
        );
        registry.register_with_unit(
            "coordinator_commit",
            "Group commits of the event log, the flush included",
            Unit::Seconds,
            self.commit.clone(),
        );
        registry.register(
            "coordinator_commit_events",
            "Events in a group commit",
            self.commit_events.clone(),
        );
        registry.register(
            "coordinator_allocations",
            "Allocations of memory since the start",
            self.allocations.clone(),
        );
        self.grpc.register(&mut registry);
        registry
    }
}

/// Numbers that are looked up when somebody asks for them.
pub(crate) struct Gauges {
    /// Number of manifests so far; 0 while none is in force.
    pub(crate) generation: u64,
    pub(crate) is_ready: bool,
    pub(crate) seed_shares_needed: usize,
    pub(crate) proposals: usize,
    pub(crate) evicted: usize,
    pub(crate) storage_refused: u64,
    pub(crate) storage_alarms: usize,
    pub(crate) incomplete_streams: u32,
    pub(crate) view_age: Option<Duration>,
    /// When certificates expire, with their names; none while no manifest is in force.
    pub(crate) certificates: Vec<(&'static str, Timestamp)>,
    /// When the next of the vendors' revocation lists or collateral expires, if any of it does.
    pub(crate) endorsements: Option<Timestamp>,
    pub(crate) endorsements_expired: usize,
    /// Questions that each actor has waiting or under way.
    pub(crate) queues: Vec<(&'static str, usize)>,
}

/// Which text a scrape gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Classic,
}

impl Format {
    /// What a client asks for by `Accept`; OpenMetrics only if it is named.
    pub(crate) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Classic }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Dates, for those who watch them approach.
fn dates(registry: &mut Registry, gauges: &Gauges) {
    #[expect(clippy::cast_precision_loss, reason = "no date is 2^52 milliseconds away")]
    let seconds = |at: Timestamp| at.as_millis() as f64 / 1000.0;
    let certificates = Family::<Authority, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    for (ca, until) in &gauges.certificates {
        certificates.get_or_create(&Authority { ca }).set(seconds(*until));
    }
    let (name, help) =
        ("contrast_coordinator_ca_expiry_timestamp", "When a CA certificate expires, since 1970");
    registry.register_with_unit(name, help, Unit::Seconds, certificates);
    if let Some(until) = gauges.endorsements {
        let name = "contrast_coordinator_endorsements_expiry_timestamp";
        let help = "When the first revocation list or collateral of AMD or Intel expires, since 1970";
        registry.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(seconds(until)));
    }
    let name = "contrast_coordinator_endorsements_expired";
    let help = "Revocation lists and collateral of AMD and Intel that have expired";
    registry.register(name, help, ConstGauge::new(number(gauges.endorsements_expired)));
}

/// The text that a scrape gets.
pub(crate) fn scrape(metrics: &Metrics, gauges: &Gauges, state_dir: &Path, format: Format) -> String {
    metrics.storage_refused.set(number(gauges.storage_refused));
    metrics.storage_alarms.set(number(gauges.storage_alarms));
    metrics.incomplete_streams.set(i64::from(gauges.incomplete_streams));
    metrics.view_age.set(gauges.view_age.map_or(0.0, |age| age.as_secs_f64()));
    let counted = metrics.allocations.get();
    metrics.allocations.inc_by(program::memory::allocations().saturating_sub(counted));
    metrics.generation.set(number(gauges.generation));
    metrics.ready.set(i64::from(gauges.is_ready));
    metrics.shares.set(number(gauges.seed_shares_needed));
    metrics.proposals.set(number(gauges.proposals));
    metrics.evicted.set(number(gauges.evicted));
    for (actor, depth) in &gauges.queues {
        metrics.queue.get_or_create(&Actor { actor }).set(number(*depth));
    }
    let mut others = Registry::default();
    host::register(&mut others, state_dir);
    dates(&mut others, gauges);
    let mut found = String::new();
    // These fail only if writing to a String does.
    let _ = text::encode_registry(&mut found, &metrics.registry());
    let _ = text::encode_registry(&mut found, &others);
    let _ = text::encode_eof(&mut found);
    match format {
        Format::OpenMetrics => found,
        Format::Classic => classic::from_open_metrics(&found),
    }
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
