//! Follows the control stream: at once when the store tells of an append, and regularly in any case,
//! because news may be lost and because the age of the view is what issuing depends on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actors::{Append, Follow, LedgerError, Phase};
use manifest::RequestId;
use storage_schema::{Fact, LogError, StoreError};

use crate::wiring::Actors;

/// Longest time between two looks at the control stream.
const REGULARLY: Duration = Duration::from_secs(1);

pub(super) async fn keep(actors: &Actors) {
    let mut news = actors.standing.news();
    let mut last_error = String::new();
    loop {
        let asked = Instant::now();
        let error = match actors.ledger.ask_own(Follow).await {
            Ok(Ok(events)) => {
                actors.standing.confirm(asked, events);
                String::new()
            }
            Ok(Err(error)) => {
                if is_dishonest(&error) {
                    actors.standing.revoke();
                    actors.standing.alarm(error.to_string());
                }
                error.to_string()
            }
            Err(error) => error.to_string(),
        };
        if !error.is_empty() && error != last_error {
            tracing::warn!(%error, "cannot follow the control stream");
        }
        last_error = error;
        record_alarms(actors).await;
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

/// Whether an error means that the store shows what it must not, rather than nothing.
fn is_dishonest(error: &LedgerError) -> bool {
    match error {
        LedgerError::Log(LogError::Store(error)) | LedgerError::Store(error) => {
            use StoreError::{BlobChanged, Diverged, Gap, Trimmed};
            matches!(error, Diverged { .. } | BlobChanged(_) | Gap { .. } | Trimmed { .. })
        }
        LedgerError::Log(_) | LedgerError::Rewritten { .. } => true,
        _ => false,
    }
}

/// Alarms become events as soon as there is a stream to write them to.
async fn record_alarms(actors: &Actors) {
    let alarms = actors.standing.unrecorded();
    let phase = actors.snapshot.borrow().phase.clone();
    let Phase::Active(active) = phase else { return };
    if alarms.is_empty() {
        return;
    }
    let count = alarms.len();
    let facts = alarms.into_iter().map(|reason| Fact::StorageRefused { reason }).collect();
    let (engine, request) = (Arc::clone(&active.engine), RequestId::from_bytes([0; 16]));
    let append = Append { facts, blobs: Vec::new(), request, engine };
    if let Ok(Ok(())) = actors.journal.ask(append).await {
        actors.standing.recorded(count);
    }
}
