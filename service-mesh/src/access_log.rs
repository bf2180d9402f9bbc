//! The access log: a line of JSON on standard output for each connection, when it ended or was refused. Names are those
//! of the peer's certificate. A reader that is too slow loses lines, which are counted; connections never wait for it.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use manifest::Timestamp;
use serde_json::json;

use crate::{
    metrics::{Metrics, Way},
    tunnel::Carried,
};

/// Most lines that wait to be written.
const WAITING: usize = 1024;

/// Where lines go; nowhere if it was not asked for.
#[derive(Clone, Default)]
pub(crate) struct AccessLog(Option<SyncSender<String>>);

impl AccessLog {
    /// Writes lines on a thread of its own, as long as the program runs.
    pub(crate) fn to_standard_output() -> Self {
        let (sender, lines) = sync_channel::<String>(WAITING);
        std::thread::spawn(move || {
            for line in lines {
                // Without a reader there is nobody to tell.
                let _ = std::io::stdout().lock().write_all(line.as_bytes());
            }
        });
        Self(Some(sender))
    }

    fn write(&self, line: impl FnOnce() -> serde_json::Value, metrics: &Metrics) {
        let Some(sender) = &self.0 else { return };
        if let Err(TrySendError::Full(_)) = sender.try_send(format!("{}\n", line())) {
            metrics.lines_lost.fetch_add(1, Relaxed);
        }
    }
}

/// A connection, from its acceptance on.
pub(crate) struct Access {
    way: Way,
    /// Port of the application, or name of the egress entry.
    place: String,
    source: Option<SocketAddr>,
    began: Instant,
    shook_hands: Option<Duration>,
    /// Names of the peer's certificate; none: it showed none.
    peer: Option<Vec<String>>,
    log: AccessLog,
    metrics: Arc<Metrics>,
}

impl Access {
    pub(crate) fn new(
        way: Way,
        place: String,
        source: Option<SocketAddr>,
        log: AccessLog,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { way, place, source, began: Instant::now(), shook_hands: None, peer: None, log, metrics }
    }

    /// The handshake is over, with a peer of these names.
    pub(crate) fn shook_hands(&mut self, peer: Option<Vec<String>>) {
        let took = self.began.elapsed();
        (self.shook_hands, self.peer) = (Some(took), peer);
        self.metrics.at(self.way, &self.place).shook_hands(took);
    }

    /// No tunnel came to be.
    pub(crate) fn refused(self, kind: &str, reason: &str) {
        self.metrics.at(self.way, &self.place).failed(kind);
        self.write("refused", Some((kind, reason)), Carried::default());
    }

    /// The tunnel has ended, in order or not.
    pub(crate) fn ended(self, carried: Carried, why: Option<(&str, &str)>) {
        let place = self.metrics.at(self.way, &self.place);
        place.carried(self.peer.as_deref(), carried, self.began.elapsed());
        match why {
            None => self.write("closed", None, carried),
            Some((kind, _)) => {
                place.failed(kind);
                self.write("cut_off", why, carried);
            }
        }
    }

    fn write(&self, outcome: &str, why: Option<(&str, &str)>, carried: Carried) {
        let line = || {
            let (kind, reason) = why.unzip();
            json!({
                "time": now().to_string(),
                "way": self.way.word(),
                "port": self.place,
                "source": self.source.map(|source| source.to_string()),
                "peer": self.peer,
                "outcome": outcome,
                "kind": kind,
                "reason": reason,
                "handshake_seconds": self.shook_hands.map(|took| took.as_secs_f64()),
                "seconds": self.began.elapsed().as_secs_f64(),
                "bytes_to_peer": carried.out,
                "bytes_to_application": carried.into,
            })
        };
        self.log.write(line, &self.metrics);
    }
}

#[expect(clippy::disallowed_methods, reason = "the program's edge, where time enters")]
fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
