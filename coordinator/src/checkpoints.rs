//! Keeps the event log's checkpoints: the control stream covers what the replica streams hold.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actors::{Active, Append, Phase, RecordHeads, replica_heads};
use manifest::RequestId;
use storage_schema::{Fact, StreamId};
use tokio::sync::watch;

use crate::desk::Desk;

/// Events of a stream between two snapshots of it.
const SNAPSHOT_EVERY: u64 = 50_000;

/// Events between two reopenings of the store: after a crash the next start reads through what was
/// written since the last one, and a reopening stops writes for most of a second.
const REOPEN_EVERY: u64 = 1_000_000;

/// Makes checkpoints until stopped, and when a manifest or the seed comes into force, says that
/// this replica started.
pub(crate) async fn keep(actors: Desk, every: Duration, mut stop: watch::Receiver<bool>) {
    let mut snapshots = HashMap::new();
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut changed = actors.snapshot.clone();
    let (mut started, mut reopened_at) = (false, u64::MAX);
    loop {
        tokio::select! {
            _ = tick.tick(), if started => {
                if let Some(events) = record(&actors, &mut snapshots, SNAPSHOT_EVERY).await {
                    reopened_at = reopened_at.min(events);
                    if events - reopened_at >= REOPEN_EVERY {
                        reopen(&actors).await;
                        reopened_at = events;
                    }
                }
            }
            Ok(()) = changed.changed(), if !started => {
                if let Some(active) = in_force(&actors) {
                    journal(&actors, &active, Vec::new()).await;
                    started = true;
                }
            }
            () = stopped(&mut stop) => return,
        }
    }
}

/// The last events of a replica that stops in order, and a snapshot for the next start.
pub(crate) async fn close(actors: &Desk) {
    let Some(active) = in_force(actors) else { return };
    journal(actors, &active, vec![Fact::ReplicaStopped]).await;
    record(actors, &mut HashMap::new(), 1).await;
    reopen(actors).await;
}

async fn reopen(actors: &Desk) {
    let store = Arc::clone(&actors.store);
    let reopened = tokio::task::spawn_blocking(move || store.local().reopen()).await;
    if !matches!(reopened, Ok(Ok(()))) {
        tracing::warn!("the event log could not be reopened; the next start takes longer");
    }
}

fn in_force(actors: &Desk) -> Option<Arc<Active>> {
    match &actors.snapshot.borrow().phase {
        Phase::Active(active) => Some(Arc::clone(active)),
        Phase::NeedsRecovery | Phase::Uninitialised => None,
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stop.wait_for(|stopped| *stopped).await;
}

async fn journal(actors: &Desk, active: &Arc<Active>, facts: Vec<Fact>) {
    let (engine, request) = (Arc::clone(&active.engine), RequestId::from_bytes([0; 16]));
    let append = Append { facts, blobs: Vec::new(), request, engine };
    match actors.journal.ask(append).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "start or stop of this replica not recorded"),
        Err(error) => tracing::error!(%error, "start or stop of this replica not recorded"),
    }
}

/// Records a checkpoint. Gives the number of events in all replica streams, if they could be read.
async fn record(actors: &Desk, snapshots: &mut HashMap<StreamId, u64>, snapshot_every: u64) -> Option<u64> {
    let active = in_force(actors)?;
    let (archive, engine) = (Arc::clone(&actors.archive), Arc::clone(&active.engine));
    let known = snapshots.clone();
    let state = Arc::clone(&actors.snapshot.borrow().state);
    let heads = tokio::task::spawn_blocking(move || {
        let key = engine.log_key();
        let mut heads = Vec::new();
        for (head, by) in replica_heads(&archive, Some(key.public()))? {
            // Whoever has the log's key alone could have put the others there.
            if state.may_cover(&head.stream, by) {
                heads.push(head);
            }
        }
        let mut made = Vec::new();
        for head in &heads {
            if head.size >= known.get(&head.stream).copied().unwrap_or_default() + snapshot_every {
                match archive.save_snapshot(head.stream, key)? {
                    Ok(()) => made.push((head.stream, head.size)),
                    Err(error) => tracing::warn!(%error, "no snapshot; the next start replays more"),
                }
            }
        }
        Ok::<_, storage_schema::LogError>((heads, made))
    });
    match heads.await {
        Ok(Ok((heads, made))) => {
            snapshots.extend(made);
            let events = heads.iter().map(|head| head.size).sum();
            let request = RequestId::from_bytes([0; 16]);
            match actors.ledger.ask(RecordHeads { heads, request }).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "no checkpoint"),
                Err(error) => tracing::warn!(%error, "no checkpoint; the next one covers more"),
            }
            Some(events)
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "no checkpoint: the store does not give back what was written");
            None
        }
        Err(error) => {
            tracing::error!(%error, "no checkpoint");
            None
        }
    }
}
