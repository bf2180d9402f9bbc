//! Watches over what outlasts requests: whether the event store takes writes, and what memory was freed.

use std::{sync::Arc, time::Duration};

use storage_schema::EventStore as _;
use tokio::sync::watch;

use crate::desk::Desk;

/// How soon readiness and `contrast status` tell that the store fails, and that it works again.
const LOOK: Duration = Duration::from_millis(500);

/// How often freed memory is given back.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// Watches until stopped.
pub(crate) async fn watch(desk: Desk, mut stop: watch::Receiver<bool>) {
    let look = async {
        loop {
            tokio::time::sleep(LOOK).await;
            let store = Arc::clone(&desk.store);
            match tokio::task::spawn_blocking(move || store.failing()).await {
                Ok(trouble) => desk.standing.set_failing(trouble.map(|error| error.to_string())),
                Err(error) => tracing::error!(%error, "asking the event store how it is"),
            }
        }
    };
    let give_back = async {
        loop {
            tokio::time::sleep(GIVE_BACK).await;
            // A panic there would be a bug of the allocator.
            let _ = tokio::task::spawn_blocking(program::memory::give_back).await;
        }
    };
    tokio::select! {
        _ = async { tokio::join!(look, give_back) } => {}
        _ = stop.wait_for(|stopped| *stopped) => {}
    }
}
