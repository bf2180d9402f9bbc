//! History: the event log as it is stored, with proofs. Who reads checks it himself.

use std::{sync::Arc, time::Duration};

use actors::Phase;
use keys::LogPublicKey;
use manifest::{KeyDigest, SerialNumber};
use storage_schema::{
    BlobHash, Checkpoint, EventStore as _, Head, Inclusion, LogError, StoreError, StreamId, signed_head,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, metadata::MetadataValue};
use wire::history::{
    Blob, BlobsRequest, HeadRequest, HeadResponse, ProveRequest, ProveResponse, Segment, SegmentsRequest,
    StreamsRequest, StreamsResponse,
    history_server::{History as Service, HistoryServer},
};

use super::{status::Failure, user_api::caller};
use crate::wiring::Actors;

/// Bytes of segments that are read from the store at once.
const PAGE_BYTES: usize = 1 << 20;
/// Most blobs of one request.
const MAX_BLOBS: usize = 1000;
/// Most requests that stay connected: of auditors, and of anybody else.
const MAX_FOLLOWERS: usize = 64;
/// Longest time for a reader to take what it asked for.
const STALLED: Duration = Duration::from_mins(1);
/// How often these look for news.
const POLL: Duration = Duration::from_millis(250);

pub(crate) struct HistoryApi {
    actors: Actors,
    auditors: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// Whether the owner of a key may read everything by the manifest in force.
fn check_auditor(actors: &Actors, key: Option<KeyDigest>) -> Result<(), Failure> {
    let Phase::Active(active) = &actors.snapshot.borrow().phase else { return Err(Failure::NeedsRecovery) };
    if key.is_some_and(|key| active.manifest.may_audit(key)) {
        return Ok(());
    }
    let reason = "certificates, refusals and evidence are shown to auditors and workload owners of the manifest in \
                  force: connect with such a key";
    Err(Failure::Refused(reason.into()))
}

/// Hands a reader the next item; false if it is gone, or takes nothing.
async fn deliver<T>(sender: &mpsc::Sender<Result<T, Status>>, item: Result<T, Status>) -> bool {
    matches!(tokio::time::timeout(STALLED, sender.send(item)).await, Ok(Ok(())))
}

impl HistoryApi {
    pub(crate) fn service(actors: Actors) -> HistoryServer<Self> {
        let places = || Arc::new(Semaphore::new(MAX_FOLLOWERS));
        HistoryServer::new(Self { actors, auditors: places(), strangers: places() })
    }

    /// The key that signed the log, if the seed is in memory.
    fn log_key(&self) -> Option<LogPublicKey> {
        match &self.actors.snapshot.borrow().phase {
            Phase::Active(active) => Some(active.engine.log_key().public()),
            Phase::NeedsRecovery | Phase::Uninitialised => None,
        }
    }

    /// Whether the caller may read everything.
    fn may_audit<T>(&self, request: &Request<T>) -> Result<(), Failure> {
        check_auditor(&self.actors, caller(request))
    }

    fn readable<T>(&self, request: &Request<T>, stream: &str) -> Result<StreamId, Failure> {
        let stream: StreamId =
            stream.parse().map_err(|error| Failure::Malformed(format!("stream: {error}")))?;
        if stream != StreamId::Control {
            self.may_audit(request)?;
        }
        Ok(stream)
    }

    /// Runs `work`, which reads the store, where blocking is allowed.
    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Actors) -> Result<R, LogError> + Send + 'static,
    ) -> Result<R, Failure> {
        let actors = self.actors.clone();
        let outcome = tokio::task::spawn_blocking(move || work(&actors)).await;
        outcome.map_err(|error| Failure::Fault(error.to_string()))?.map_err(Failure::Log)
    }

    fn checkpoint(&self, head: &Head) -> String {
        match &self.actors.snapshot.borrow().phase {
            Phase::Active(active) => Checkpoint::sign(head, active.engine.log_key()),
            Phase::NeedsRecovery | Phase::Uninitialised => String::new(),
        }
    }
}

/// The signed head of a stream with a proof that it extends an older one. `None` for an error: the work
/// was cut off.
pub(crate) async fn control_head(
    actors: &Actors,
    stream: StreamId,
    extends: u64,
) -> Result<HeadResponse, Option<LogError>> {
    let active = match &actors.snapshot.borrow().phase {
        Phase::Active(active) => Some(Arc::clone(active)),
        Phase::NeedsRecovery | Phase::Uninitialised => None,
    };
    let key = active.as_ref().map(|active| active.engine.log_key().public());
    let reader = actors.clone();
    let read = move || {
        let (head, proof) = reader.archive.consistency(stream, key, extends)?;
        let Some(last) = head.segments.checked_sub(1) else { return Ok((head, proof, Vec::new())) };
        let segment = reader.store.read(&stream, last, 1)?.into_iter().next().map(|(_, bytes)| bytes);
        let signed = segment.and_then(|bytes| signed_head(&bytes).map(<[u8]>::to_vec));
        Ok::<_, LogError>((head, proof, signed.unwrap_or_default()))
    };
    let (head, proof, signed_head) =
        tokio::task::spawn_blocking(read).await.map_err(|_| None)?.map_err(Some)?;
    let checkpoint = active.map(|active| Checkpoint::sign(&head, active.engine.log_key()));
    let (consistency, checkpoint) = (nodes(proof), checkpoint.unwrap_or_default());
    Ok(HeadResponse { signed_head, consistency, checkpoint })
}

fn is_unavailable(error: &LogError) -> bool {
    matches!(error, LogError::Store(StoreError::Unavailable(_)))
}

fn nodes(proof: Vec<[u8; 32]>) -> Vec<Vec<u8>> {
    proof.into_iter().map(|node| node.to_vec()).collect()
}

type Items<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Service for HistoryApi {
    type SegmentsStream = Items<Segment>;
    type BlobsStream = Items<Blob>;

    #[tracing::instrument(skip_all)]
    async fn streams(&self, request: Request<StreamsRequest>) -> Result<Response<StreamsResponse>, Status> {
        let streams = |actors: &Actors| match actors.archive.streams() {
            Err(error) if is_unavailable(&error) => Ok(actors.store.local().streams()?),
            answer => answer,
        };
        let mut streams = self.blocking(streams).await?;
        let all = streams.len();
        if self.may_audit(&request).is_err() {
            streams.retain(|stream| *stream == StreamId::Control);
        }
        let hidden = u32::try_from(all - streams.len()).unwrap_or(u32::MAX);
        let streams = streams.iter().map(StreamId::to_string).collect();
        Ok(Response::new(StreamsResponse { streams, hidden }))
    }

    #[tracing::instrument(skip_all)]
    async fn head(&self, request: Request<HeadRequest>) -> Result<Response<HeadResponse>, Status> {
        let stream = self.readable(&request, &request.get_ref().stream)?;
        let head = control_head(&self.actors, stream, request.get_ref().extends).await;
        Ok(Response::new(head.map_err(|error| match error {
            Some(error) => Failure::Log(error),
            None => Failure::Fault("reading the log was cut off".into()),
        })?))
    }

    #[tracing::instrument(skip_all)]
    async fn segments(
        &self,
        request: Request<SegmentsRequest>,
    ) -> Result<Response<Self::SegmentsStream>, Status> {
        let stream = self.readable(&request, &request.get_ref().stream)?;
        let key = caller(&request);
        let places = if self.may_audit(&request).is_ok() { &self.auditors } else { &self.strangers };
        let SegmentsRequest { from, follow, .. } = request.into_inner();
        let follower = match follow {
            true => {
                let permit = Arc::clone(places).try_acquire_owned();
                Some(permit.map_err(|_| Failure::Ask(actors::AskError::Full(MAX_FOLLOWERS)))?)
            }
            false => None,
        };
        let (sender, receiver) = mpsc::channel(4);
        let (actors, mut stop) = (self.actors.clone(), self.actors.stop.clone());
        tokio::spawn(async move {
            let _follower = follower;
            let mut next = from;
            loop {
                // A manifest may have taken the right away since the last page.
                if stream != StreamId::Control
                    && let Err(refusal) = check_auditor(&actors, key)
                {
                    deliver(&sender, Err(refusal.into())).await;
                    return;
                }
                let store = Arc::clone(&actors.store);
                let page = tokio::task::spawn_blocking(move || store.read(&stream, next, PAGE_BYTES)).await;
                let page = match page {
                    Ok(Ok(page)) => page,
                    // Everything that is here was sent, and the header says how old it is.
                    Ok(Err(StoreError::Unavailable(_))) if !follow && next > 0 => return,
                    Ok(Err(error)) => {
                        deliver(&sender, Err(Failure::Log(error.into()).into())).await;
                        return;
                    }
                    Err(error) => {
                        deliver(&sender, Err(Failure::Fault(error.to_string()).into())).await;
                        return;
                    }
                };
                let nothing = page.is_empty();
                for (index, bytes) in page {
                    next = index + 1;
                    if !deliver(&sender, Ok(Segment { index, bytes })).await {
                        return;
                    }
                }
                if nothing && !follow {
                    return;
                }
                if nothing {
                    tokio::select! {
                        () = tokio::time::sleep(POLL) => {}
                        () = sender.closed() => return,
                        _ = stop.wait_for(|stopped| *stopped) => return,
                    }
                }
            }
        });
        let mut response = Response::new(ReceiverStream::new(receiver));
        if let Some(age) = self.actors.standing.age() {
            let age = MetadataValue::from(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            response.metadata_mut().insert(wire::VIEW_AGE, age);
        }
        Ok(response)
    }

    #[tracing::instrument(skip_all)]
    async fn blobs(&self, request: Request<BlobsRequest>) -> Result<Response<Self::BlobsStream>, Status> {
        let hashes = &request.get_ref().hashes;
        if hashes.len() > MAX_BLOBS {
            let text = format!("{} hashes, at most {MAX_BLOBS} are accepted", hashes.len());
            return Err(Failure::Malformed(text).into());
        }
        let parse = |hash: &Vec<u8>| hash.as_slice().try_into().map(BlobHash::from_bytes);
        let hashes: Vec<BlobHash> = hashes
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map_err(|_| Failure::Malformed("a hash is not 32 bytes long".into()))?;
        let state = Arc::clone(&self.actors.snapshot.borrow().state);
        if !hashes.iter().all(|hash| state.names_blob(hash.as_bytes())) {
            self.may_audit(&request)?;
        }
        let (sender, receiver) = mpsc::channel(4);
        let store = Arc::clone(&self.actors.store);
        tokio::spawn(async move {
            for hash in hashes {
                let store = Arc::clone(&store);
                // A thread for as long as the reading takes, not for as long as the client does.
                let found = tokio::task::spawn_blocking(move || store.get_blob(&hash)).await;
                let blob = match found {
                    Ok(Ok(Some(content))) => Ok(Blob { content }),
                    Ok(Ok(None)) => Err(Status::not_found(format!("blob {hash}"))),
                    Ok(Err(error)) => Err(Failure::Log(error.into()).into()),
                    Err(error) => Err(Failure::Fault(error.to_string()).into()),
                };
                let last = blob.is_err();
                if !deliver(&sender, blob).await || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    #[tracing::instrument(skip_all)]
    async fn prove(&self, request: Request<ProveRequest>) -> Result<Response<ProveResponse>, Status> {
        self.may_audit(&request)?;
        let key = self.log_key();
        let serial = SerialNumber::try_from(request.into_inner().serial.as_slice())
            .map_err(|error| Failure::Malformed(format!("serial: {error}")))?;
        let found = self.blocking(move |actors| match actors.archive.locate(&serial, key)? {
            Some((stream, sequence)) => actors.archive.inclusion(stream, key, sequence).map(Some),
            None => Ok(None),
        });
        let Some(Inclusion { head, sequence, event, proof }) = found.await? else {
            return Err(Status::not_found(format!("no certificate with serial number {serial} was issued")));
        };
        let checkpoint = self.checkpoint(&head);
        let stream = head.stream.to_string();
        Ok(Response::new(ProveResponse { stream, sequence, event, inclusion: nodes(proof), checkpoint }))
    }
}
