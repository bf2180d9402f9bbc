//! History: the event log as JSON records, read and verified from the store.

use std::sync::Arc;

use actors::Phase;
use manifest::KeyDigest;
use storage_schema::{EventStore as _, Log, StreamId};
use tonic::{Request, Response, Status};
use wire::history::{
    EventRecord, EventsRequest, EventsResponse,
    history_server::{History as Service, HistoryServer},
};

use super::{status::Failure, user_api::caller};
use crate::wiring::{Actors, Store};

/// Most records in one answer; ask again from the next sequence number.
const MAX_RECORDS: usize = 10_000;

pub(crate) struct HistoryApi(Actors);

impl HistoryApi {
    pub(crate) fn service(actors: Actors) -> HistoryServer<Self> {
        HistoryServer::new(Self(actors))
    }
}

#[tonic::async_trait]
impl Service for HistoryApi {
    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<EventsResponse>, Status> {
        let caller = caller(&request);
        let EventsRequest { from, replicas } = request.into_inner();
        let Phase::Active(active) = self.0.snapshot.borrow().phase.clone() else {
            return Err(Failure::NeedsRecovery.into());
        };
        let is_owner = |key: KeyDigest| active.manifest.workload_owner_digests().any(|owner| owner == key);
        if replicas && !caller.is_some_and(is_owner) {
            let reason =
                "certificates and refusals are shown to workload owners only: give a workload owner key";
            return Err(Failure::Refused(reason.into()).into());
        }
        let (store, key) = (Arc::clone(&self.0.store), active.engine.log_key().public());
        let events = tokio::task::spawn_blocking(move || {
            let streams = if replicas { store.streams()? } else { vec![StreamId::Control] };
            let mut events = Vec::new();
            for stream in streams {
                read(&store, stream, key, from, &mut events)?;
            }
            Ok::<_, storage_schema::LogError>(events)
        })
        .await
        .map_err(|error| Failure::Fault(error.to_string()))?
        .map_err(|error| Failure::Fault(error.to_string()))?;
        Ok(Response::new(EventsResponse { events }))
    }
}

fn read(
    store: &Arc<Store>,
    stream: StreamId,
    key: keys::LogPublicKey,
    from: u64,
    events: &mut Vec<EventRecord>,
) -> Result<(), storage_schema::LogError> {
    Log::open(Arc::clone(store), stream, Some(key), |sequence, event| {
        if sequence >= from && events.len() < MAX_RECORDS {
            let json = serde_json::to_string(&event).unwrap_or_default();
            events.push(EventRecord { stream: stream.to_string(), sequence, json });
        }
    })?;
    Ok(())
}
