//! Watches over what outlasts requests: whether the event store takes writes, and what memory was freed.

use std::{sync::Arc, time::Duration};

use storage_schema::EventStore as _;
use tokio::sync::watch;

use crate::desk::{Desk, Readiness};

/// How soon readiness and `contrast status` tell that the store fails, and that it works again.
const LOOK: Duration = Duration::from_millis(500);

/// How often freed memory is given back.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// Tells whoever reads the log how it stands and what it waits for, each time that changes.
fn say(readiness: Readiness) {
    let state = readiness.word();
    match readiness {
        Readiness::Ready => tracing::info!(state, "serving"),
        Readiness::NoManifest => tracing::info!(state, "waiting for the first manifest: `contrast set`"),
        Readiness::NeedsRecovery => tracing::warn!(
            state,
            "waiting for its seed, and serving nobody: a seedshare owner has to run `contrast recover`, unless another replica \
             gives it"
        ),
        Readiness::Stale | Readiness::NoWrites => {
            tracing::warn!(state, "issuing nothing: `contrast status` says what the event store answers");
        }
    }
}

/// Watches until stopped.
pub(crate) async fn watch(desk: Desk, mut stop: watch::Receiver<bool>) {
    let look = async {
        let mut said = None;
        loop {
            let readiness = desk.readiness();
            if said.replace(readiness) != Some(readiness) {
                say(readiness);
            }
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
