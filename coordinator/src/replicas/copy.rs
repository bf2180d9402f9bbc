//! Copies what other replicas wrote: their streams, and the evidence that these name, so that each
//! replica could go on alone and any of them can serve the whole history.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actors::Phase;
use keys::LogPublicKey;
use storage_schema::{BlobHash, EventStore as _, Fact, Log, LogError, StreamId};

use crate::wiring::{Actors, Store};

const EVERY: Duration = Duration::from_secs(10);

type Readers = HashMap<StreamId, Log<Store>>;

pub(super) async fn keep(actors: &Actors) {
    let mut readers = Readers::new();
    loop {
        let phase = actors.snapshot.borrow().phase.clone();
        if let Phase::Active(active) = phase {
            let (store, key) = (Arc::clone(&actors.store), active.engine.log_key().public());
            let taken = std::mem::take(&mut readers);
            let copied = tokio::task::spawn_blocking(move || copy(&store, key, taken)).await;
            match copied {
                Ok((known, outcome)) => {
                    readers = known;
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "not everything could be copied; tried again");
                    }
                }
                Err(error) => tracing::error!(%error, "copying the event log"),
            }
        }
        let mut changed = actors.snapshot.clone();
        changed.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            // Soon after the secrets came, because the copy is what a later lie is held against.
            _ = changed.wait_for(|now| matches!(now.phase, Phase::Active(_))), if readers.is_empty() => {}
        }
    }
}

fn copy(store: &Arc<Store>, key: LogPublicKey, mut readers: Readers) -> (Readers, Result<(), LogError>) {
    let outcome = store.streams().map_err(LogError::from).and_then(|streams| {
        for stream in streams {
            let mut evidence = Vec::new();
            let mut note = |_: u64, event: storage_schema::Event| {
                if let Fact::CertificateIssued { evidence: hash, .. } = event.fact {
                    evidence.push(BlobHash::from_bytes(*hash.as_bytes()));
                }
            };
            match readers.get_mut(&stream) {
                Some(log) => log.catch_up(&mut note)?,
                None => {
                    let log = Log::open(Arc::clone(store), stream, Some(key), &mut note)?;
                    readers.insert(stream, log);
                }
            }
            for hash in evidence {
                store.get_blob(&hash)?;
            }
        }
        Ok(())
    });
    (readers, outcome)
}
