//! Follows the control stream: at once when the store tells of an append, and regularly in any case,
//! because news may be lost and because the age of the view is what issuing depends on.

use std::time::{Duration, Instant};

use actors::Follow;
use storage_schema::{Fact, Trouble};

use crate::desk::Desk;

/// Longest time between two looks at the control stream.
const REGULARLY: Duration = Duration::from_secs(1);

pub(super) async fn keep(desk: &Desk) {
    let mut news = desk.standing.news();
    let mut last_error = String::new();
    loop {
        let asked = Instant::now();
        let error = match desk.ledger.ask_own(Follow).await {
            Ok(Ok(events)) => {
                desk.standing.confirm(asked, events);
                String::new()
            }
            Ok(Err(error)) => {
                if error.trouble() == Trouble::Dishonest {
                    desk.standing.revoke();
                    desk.standing.alarm(error.to_string());
                }
                error.to_string()
            }
            Err(error) => error.to_string(),
        };
        if !error.is_empty() && error != last_error {
            tracing::warn!(%error, "cannot follow the control stream");
        }
        last_error = error;
        record_alarms(desk).await;
        let changed = async {
            if let Some(news) = &mut news
                && news.changed().await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await; // only the clock is left
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(REGULARLY) => {}
        }
    }
}

/// Alarms become events as soon as there is a stream to write them to.
async fn record_alarms(desk: &Desk) {
    let alarms = desk.standing.unrecorded();
    let Ok(active) = desk.in_force() else { return };
    if alarms.is_empty() {
        return;
    }
    let count = alarms.len();
    let facts = alarms.into_iter().map(|reason| Fact::StorageRefused { reason }).collect();
    if desk.record(&active, facts).await.is_ok() {
        desk.standing.recorded(count);
    }
}
