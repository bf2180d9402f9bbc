//! What happens at this program's doors is counted in its metrics.

use program::Doorkeeper;
pub(crate) use program::{Handshake, WhenFull};
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::{Listener, Metrics, Refusal};

pub(crate) type Door = program::Door<Counted>;
pub(crate) type Place = program::Place<Counted>;

/// Counts for one door.
#[derive(Clone)]
pub(crate) struct Counted {
    pub(crate) metrics: Metrics,
    listener: &'static str,
    open: Gauge,
}

impl Counted {
    pub(crate) fn new(metrics: &Metrics, listener: &'static str) -> Self {
        let open = metrics.connections.get_or_create_owned(&Listener { listener });
        Self { metrics: metrics.clone(), listener, open }
    }
}

impl Doorkeeper for Counted {
    fn opened(&self) {
        self.open.inc();
    }

    fn closed(&self) {
        self.open.dec();
    }

    fn refused(&self, reason: &'static str) {
        self.metrics.refused.get_or_create(&Refusal { listener: self.listener, reason }).inc();
    }
}
