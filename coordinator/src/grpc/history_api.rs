//! History: the event log as it is stored, with proofs. Readers check it by themselves.

use std::{sync::Arc, time::Duration};

use manifest::{KeyDigest, SerialNumber};
use storage_schema::{BlobHash, Inclusion, StreamId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, metadata::MetadataValue};
use wire::history::{
    Blob, BlobsRequest, HeadRequest, HeadResponse, ProveRequest, ProveResponse, Segment, SegmentsRequest,
    StreamsRequest, StreamsResponse,
    history_server::{History as Service, HistoryServer},
};

use super::peer::caller;
use crate::desk::{Desk, Failure, Page};

/// Most blobs of one request.
const MAX_BLOBS: usize = 1000;
/// Most requests that stay connected: of auditors, and of anybody else.
const MAX_FOLLOWERS: usize = 32;
/// Most other requests whose answers are longer than one message: of auditors, and of anybody else. Each holds a
/// page, a message that waits, and what the connection buffers.
const MAX_READERS: usize = 16;
/// Longest time for a reader to take what it asked for.
const STALLED: Duration = Duration::from_mins(1);
/// How often these look for news.
const POLL: Duration = Duration::from_millis(250);

pub(crate) struct HistoryApi {
    desk: Desk,
    auditors: Places,
    strangers: Places,
}

struct Places {
    followers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl Places {
    fn new() -> Self {
        Self {
            followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
        }
    }
}

type Items<T> = ReceiverStream<Result<T, Status>>;

/// Hands a reader the next item; false if it is gone, or takes nothing.
async fn deliver<T>(sender: &mpsc::Sender<Result<T, Status>>, item: Result<T, Failure>) -> bool {
    matches!(tokio::time::timeout(STALLED, sender.send(item.map_err(Status::from))).await, Ok(Ok(())))
}

fn nodes(proof: Vec<[u8; 32]>) -> Vec<Vec<u8>> {
    proof.into_iter().map(|node| node.to_vec()).collect()
}

impl HistoryApi {
    pub(crate) fn service(desk: Desk) -> HistoryServer<Self> {
        HistoryServer::new(Self { desk, auditors: Places::new(), strangers: Places::new() })
    }

    /// A place for a reader; those who wait for what is yet to come have places of their own.
    fn place(&self, key: Option<KeyDigest>, follow: bool) -> Result<OwnedSemaphorePermit, Failure> {
        let places = if self.desk.check_auditor(key).is_ok() { &self.auditors } else { &self.strangers };
        let (places, most) = match follow {
            true => (&places.followers, MAX_FOLLOWERS),
            false => (&places.readers, MAX_READERS),
        };
        let permit = Arc::clone(places).try_acquire_owned();
        permit.map_err(|_| Failure::Ask(actors::AskError::Full(most)))
    }
}

#[tonic::async_trait]
impl Service for HistoryApi {
    type SegmentsStream = Items<Segment>;
    type BlobsStream = Items<Blob>;

    #[tracing::instrument(skip_all)]
    async fn streams(&self, request: Request<StreamsRequest>) -> Result<Response<StreamsResponse>, Status> {
        let (streams, hidden) = self.desk.streams(caller(&request)).await?;
        let hidden = u32::try_from(hidden).unwrap_or(u32::MAX);
        let streams = streams.iter().map(StreamId::to_string).collect();
        Ok(Response::new(StreamsResponse { streams, hidden }))
    }

    #[tracing::instrument(skip_all)]
    async fn head(&self, request: Request<HeadRequest>) -> Result<Response<HeadResponse>, Status> {
        let stream = self.desk.readable(&request.get_ref().stream, caller(&request))?;
        let head = self.desk.head(stream, request.get_ref().extends).await?;
        let (signed_head, consistency) = (head.signed, nodes(head.consistency));
        Ok(Response::new(HeadResponse { signed_head, consistency, checkpoint: head.checkpoint }))
    }

    #[tracing::instrument(skip_all)]
    async fn segments(
        &self,
        request: Request<SegmentsRequest>,
    ) -> Result<Response<Self::SegmentsStream>, Status> {
        let key = caller(&request);
        let stream = self.desk.readable(&request.get_ref().stream, key)?;
        let SegmentsRequest { from, follow, .. } = request.into_inner();
        let place = self.place(key, follow)?;
        let (sender, receiver) = mpsc::channel(1);
        let reader = SegmentReader { desk: self.desk.clone(), stream, key, follow, sender, _place: place };
        tokio::spawn(reader.run(from));
        let mut response = Response::new(ReceiverStream::new(receiver));
        if let Some(age) = self.desk.standing.age() {
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
        let key = caller(&request);
        self.desk.check_blobs(&hashes, key)?;
        let place = self.place(key, false)?;
        let (sender, receiver) = mpsc::channel(1);
        let desk = self.desk.clone();
        tokio::spawn(async move {
            let _place = place;
            for hash in hashes {
                // A thread for as long as the reading takes, not for as long as the client does.
                let blob = desk.blob(hash).await.map(|content| Blob { content });
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
        let key = caller(&request);
        self.desk.check_auditor(key)?;
        let serial = SerialNumber::try_from(request.into_inner().serial.as_slice())
            .map_err(|error| Failure::Malformed(format!("serial: {error}")))?;
        let (inclusion, checkpoint) = self.desk.prove(serial, key).await?;
        let Inclusion { head, sequence, event, proof } = inclusion;
        let stream = head.stream.to_string();
        Ok(Response::new(ProveResponse { stream, sequence, event, inclusion: nodes(proof), checkpoint }))
    }
}

/// Sends the segments of one stream to one reader.
struct SegmentReader {
    desk: Desk,
    stream: StreamId,
    key: Option<KeyDigest>,
    /// Whether the reader stays connected for what is yet to come.
    follow: bool,
    sender: mpsc::Sender<Result<Segment, Status>>,
    _place: OwnedSemaphorePermit,
}

impl SegmentReader {
    async fn run(self, mut next: u64) {
        let (follow, mut stop) = (self.follow, self.desk.stop.clone());
        loop {
            let page = match self.desk.segments(self.stream, next, self.key).await {
                Ok(Page::Segments(page)) => page,
                // Everything that is here was sent, and the header says how old it is.
                Ok(Page::Unknown(_)) if !follow && next > 0 => return,
                Ok(Page::Unknown(error)) | Err(error) => {
                    deliver(&self.sender, Err(error)).await;
                    return;
                }
            };
            let nothing = page.is_empty();
            for (index, bytes) in page {
                next = index + 1;
                if !deliver(&self.sender, Ok(Segment { index, bytes })).await {
                    return;
                }
            }
            if nothing && !follow {
                return;
            }
            if nothing {
                tokio::select! {
                    () = tokio::time::sleep(POLL) => {}
                    () = self.sender.closed() => return,
                    _ = stop.wait_for(|stopped| *stopped) => return,
                }
            }
        }
    }
}
