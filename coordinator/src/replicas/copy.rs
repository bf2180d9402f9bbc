//! Copies what other replicas wrote: their streams, and the evidence that these name, so that each
//! replica could go on alone and any of them can serve the whole history.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use actors::{Phase, verify_stream};
use keys::LogPublicKey;
use storage_schema::{BlobHash, EventStore as _, Log, LogError, StreamHead, StreamId, named_blobs};

use crate::desk::{Desk, Store};

const EVERY: Duration = Duration::from_secs(10);

type Readers = HashMap<StreamId, Reader>;

/// How far a stream was copied.
struct Reader {
    log: Log<Store>,
    /// Evidence of its events that is still to be fetched.
    missing: Vec<BlobHash>,
}

pub(super) async fn keep(desk: &Desk) {
    let mut readers = Readers::new();
    loop {
        if let Ok(active) = desk.in_force() {
            let (store, key) = (Arc::clone(&desk.store), active.engine.log_key().public());
            let taken = std::mem::take(&mut readers);
            let (archive, own) = (Arc::clone(&desk.archive), StreamId::Replica(desk.replica));
            let copied = tokio::task::spawn_blocking(move || {
                let (known, incomplete) = copy(&store, own, key, taken);
                (known, incomplete, archive.head(own, Some(key)))
            });
            match copied.await {
                Ok((known, incomplete, written)) => {
                    readers = known;
                    let whole = readers.iter().filter(|(_, reader)| reader.missing.is_empty());
                    let mut held: BTreeMap<_, _> =
                        whole.map(|(stream, reader)| (*stream, reader.log.head().segments)).collect();
                    held.extend(written.map(|head| (own, head.segments)));
                    desk.standing.set_held(held, incomplete);
                    verify_late(desk, key).await;
                }
                Err(error) => tracing::error!(%error, "copying the event log"),
            }
        }
        let mut changed = desk.snapshot.clone();
        changed.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            // Soon after the secrets came, because the copy is what a later lie is held against.
            _ = changed.wait_for(|now| matches!(now.phase, Phase::Active(_))), if readers.is_empty() => {}
        }
    }
}

/// Reads on in every stream but the one that this replica writes, which is here anyway. Gives the number of those
/// that could not be read to their end.
fn copy(store: &Arc<Store>, own: StreamId, key: LogPublicKey, mut readers: Readers) -> (Readers, u32) {
    let streams = match store.streams() {
        Ok(streams) => streams,
        Err(error) => {
            tracing::debug!(%error, "nothing could be copied; tried again");
            let known = u32::try_from(readers.len()).unwrap_or(u32::MAX);
            return (readers, known);
        }
    };
    let mut incomplete = 0;
    for stream in streams.into_iter().filter(|stream| *stream != own) {
        if let Err(error) = copy_stream(store, stream, key, &mut readers) {
            tracing::debug!(%stream, %error, "not everything could be copied; tried again");
            incomplete += 1;
        }
    }
    // What was copied is on disk only now, and "held" must survive a kill: etcd may give it up after that.
    if let Err(error) = store.local().sync() {
        tracing::warn!(%error, "the copy cannot be written");
        return (Readers::new(), u32::try_from(readers.len()).unwrap_or(u32::MAX));
    }
    (readers, incomplete)
}

fn copy_stream(
    store: &Arc<Store>,
    stream: StreamId,
    key: LogPublicKey,
    readers: &mut Readers,
) -> Result<(), LogError> {
    let mut evidence = Vec::new();
    let mut note = |_: u64, event: storage_schema::Event| evidence.extend(named_blobs(&event.fact));
    let reader = match readers.remove(&stream) {
        Some(mut reader) => {
            let outcome = reader.log.catch_up(&mut note);
            reader.missing.append(&mut evidence);
            let reader = readers.entry(stream).or_insert(reader);
            outcome?;
            reader
        }
        None => {
            let log = Log::open(Arc::clone(store), stream, Some(key), &mut note)?;
            readers.entry(stream).or_insert(Reader { log, missing: evidence })
        }
    };
    while let Some(hash) = reader.missing.last() {
        // Reading a blob puts it into the copy.
        store.get_blob(hash)?.ok_or_else(|| LogError::Store(missing(hash)))?;
        reader.missing.pop();
    }
    Ok(())
}

fn missing(hash: &BlobHash) -> storage_schema::StoreError {
    storage_schema::StoreError::Fault(format!(
        "evidence {hash} is neither in the shared store nor with a peer"
    ))
}

/// Holds streams that were not here at the start against the checkpoints that cover them.
async fn verify_late(desk: &Desk, key: LogPublicKey) {
    let unverified = desk.standing.unverified();
    if unverified.is_empty() {
        return;
    }
    let (archive, state) = (Arc::clone(&desk.archive), Arc::clone(&desk.snapshot.borrow().state));
    let verified = tokio::task::spawn_blocking(move || {
        let heads: HashMap<StreamId, &StreamHead> = state.heads().map(|head| (head.stream, head)).collect();
        let outcome = |stream: StreamId| {
            let verified = heads.get(&stream).map(|head| verify_stream(&archive, Some(key), head));
            (stream, verified.unwrap_or(Ok(())))
        };
        unverified.into_iter().map(outcome).collect::<Vec<_>>()
    });
    let Ok(verified) = verified.await else { return };
    let mut later = Vec::new();
    for (stream, outcome) in verified {
        match outcome {
            Ok(()) => {}
            Err(error @ actors::LedgerError::Rewritten { .. }) => desk.standing.alarm(error.to_string()),
            Err(_) => later.push(stream),
        }
    }
    desk.standing.set_unverified(later);
}
