//! [`EventStore`] over the client.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use prost::Message as _;
use storage_schema::{BlobHash, EventStore, StoreError, StreamId};
use tokio::{runtime::Runtime, sync::watch};
use tonic::Status;

use crate::{
    api::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, StatusRequest,
        TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        maintenance_client::MaintenanceClient,
        range_request::{SortOrder, SortTarget},
        request_op::Request as Op,
        response_op::Response as Answer,
    },
    client::{Client, ConnectError, EtcdOptions, MAX_ANSWER},
    keys::Keys,
    watch::follow,
};

/// Largest value of one key, in bytes; etcd takes requests of up to 1.5 MiB.
const PART_BYTES: usize = 512 << 10;
/// Largest segment that is kept in its own key, in bytes.
const INLINE_BYTES: usize = 64 << 10;
/// Most keys of one answer: together with [`INLINE_BYTES`] a bound on its size.
const PAGE_KEYS: usize = 512;
/// Most that waits for the next append, in bytes.
const WAITING_BYTES: usize = 8 << 20;
/// Operations in one transaction; etcd takes 128.
const TXN_OPS: usize = 100;

/// First byte of a value: the rest is the content.
const INLINE: u8 = 0;
/// First byte of a value: the rest is the SHA-256 of the content, which is a blob.
const BLOB: u8 = 1;

/// An event store on an etcd cluster. Calls block, up to the deadline.
pub struct EtcdStore {
    client: Arc<Client>,
    keys: Keys,
    deadline: Duration,
    news: watch::Receiver<u64>,
    /// Blobs that go with the next append.
    waiting: Mutex<BTreeMap<[u8; 32], Vec<u8>>>,
    health: Mutex<Looked>,
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
}

/// When the cluster was last asked how it is, and whether it takes writes.
#[derive(Default)]
struct Looked {
    at: Option<Instant>,
    /// A write failed since.
    write_failed: bool,
    trouble: Option<StoreError>,
}

/// How often it is asked while nothing fails.
const LOOK: Duration = Duration::from_secs(5);

/// What a cluster says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Members that answered, of all that are configured.
    pub answering: usize,
    /// Members that are configured.
    pub members: usize,
    /// Size of the largest member's database, in bytes; the quota is about this.
    pub bytes: u64,
    /// Part of it that holds something, in bytes; the rest is used again before the file grows.
    pub bytes_in_use: u64,
    /// What members complain about, such as a full quota.
    pub alarms: Vec<String>,
}

impl EtcdStore {
    /// Makes a store; connects when it is first used.
    pub fn new(options: &EtcdOptions) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(ConnectError::Thread)?;
        let entered = runtime.enter();
        let client = Client::new(options)?;
        let keys = Keys::new(&options.prefix);
        let (sender, news) = watch::channel(0);
        runtime.spawn(follow(Arc::clone(&client), keys.clone(), sender));
        drop(entered);
        let (deadline, waiting, health) = (options.deadline, Mutex::default(), Mutex::default());
        Ok(Self { client, keys, deadline, news, waiting, health, runtime: Some(runtime) })
    }

    /// Changes whenever somebody appended, and now and then for no reason.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.clone()
    }

    /// Asks every member for its state.
    pub fn health(&self) -> Result<Health, StoreError> {
        let client = Arc::clone(&self.client);
        self.block(async move {
            let members = client.members();
            let mut health = Health { answering: 0, members, bytes: 0, bytes_in_use: 0, alarms: Vec::new() };
            for member in 0..members {
                let asking = async {
                    let asked = client.asked(member).await?;
                    let request = asked.request(StatusRequest {});
                    MaintenanceClient::new(asked.channel.clone()).status(request).await
                };
                let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(1), asking).await else {
                    continue;
                };
                let answer = answer.into_inner();
                health.answering += 1;
                health.bytes = health.bytes.max(u64::try_from(answer.db_size).unwrap_or_default());
                let in_use = u64::try_from(answer.db_size_in_use).unwrap_or_default();
                health.bytes_in_use = health.bytes_in_use.max(in_use);
                health.alarms.extend(answer.errors);
            }
            Ok(health)
        })
    }

    /// Deletes the segments below `index`, which must be covered by a checkpoint and held by every
    /// live replica. The last one stays, whatever `index` is, because it tells where the stream stands.
    /// Returns how many were deleted.
    pub fn trim(&self, stream: &StreamId, index: u64) -> Result<u64, StoreError> {
        let last = self.last_index(stream)?;
        let below = self.keys.segment(stream, index.min(last.unwrap_or(0)));
        let (mut deleted, mut last_key) = (0, Vec::new());
        loop {
            let page = self.range(RangeRequest {
                key: self.keys.segment(stream, 0),
                range_end: below.clone(),
                limit: i64::try_from(TXN_OPS).unwrap_or(1),
                ..RangeRequest::default()
            })?;
            let Some(last) = page.kvs.last().map(|found| found.key.clone()) else { return Ok(deleted) };
            deleted += page.kvs.len() as u64;
            if last <= last_key || deleted > index {
                return Err(self.unavailable("it shows what was deleted, or more than there ever was"));
            }
            last_key = last;
            // Segments that were too large for a key are blobs. The names go first: who meets one finds its content.
            let content = |value: &[u8]| match Content::read(value) {
                Some(Content::Blob(hash)) => Some(hash),
                Some(Content::Inline(_)) | None => None,
            };
            let blobs: Vec<BlobHash> = page.kvs.iter().filter_map(|found| content(&found.value)).collect();
            self.delete(page.kvs.into_iter().map(|found| (found.key, Vec::new())))?;
            self.remove_blobs(&blobs)?;
        }
    }

    /// Deletes blobs that only trimmed segments name.
    pub fn remove_blobs(&self, blobs: &[BlobHash]) -> Result<(), StoreError> {
        for some in blobs.chunks(TXN_OPS) {
            self.delete(some.iter().map(|hash| (self.keys.blob_part(hash, 0), self.keys.blob_end(hash))))?;
        }
        Ok(())
    }

    /// Deletes ranges of keys, all or none; a range without an end is one key.
    fn delete(&self, ranges: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<(), StoreError> {
        let remove = |(key, range_end)| RequestOp {
            request: Some(Op::RequestDeleteRange(DeleteRangeRequest { key, range_end })),
        };
        let success = ranges.map(remove).collect();
        self.transact(TxnRequest { compare: Vec::new(), success, failure: Vec::new() }).map(drop)
    }

    /// The first segment of a stream that is still here; `None` where there is none at all.
    pub fn first_index(&self, stream: &StreamId) -> Result<Option<u64>, StoreError> {
        let mut request = last_key(&self.keys, stream);
        request.sort_order = SortOrder::Ascend.into();
        let answer = self.range(request)?;
        answer.kvs.first().map(|found| self.index(&found.key)).transpose()
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], Vec<u8>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work on the client's own threads, so that it does not matter which thread asks.
    fn block<R: Send + 'static>(
        &self,
        work: impl Future<Output = Result<R, Status>> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (done, outcome) = mpsc::sync_channel(1);
        let Some(runtime) = &self.runtime else { return Err(self.unavailable("it is being closed")) };
        runtime.spawn(async move {
            // Fails only when nobody waits any more.
            let _ = done.send(work.await);
        });
        match outcome.recv_timeout(self.deadline + Duration::from_secs(4)) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.unavailable(status.message())),
            Err(_) => Err(self.unavailable("no answer in time")),
        }
    }

    fn unavailable(&self, what: &str) -> StoreError {
        StoreError::Unavailable(format!("etcd ({}): {what}", self.client.names.join(", ")))
    }

    fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        let client = Arc::clone(&self.client);
        self.block(async move {
            let asked = client.ask(|asked, _| {
                let request = asked.request(request.clone());
                async move {
                    let mut kv = KvClient::new(asked.channel).max_decoding_message_size(MAX_ANSWER);
                    kv.range(request).await
                }
            });
            Ok(asked.await?.into_inner())
        })
    }

    /// A transaction; says how often it was sent.
    fn transact(&self, request: TxnRequest) -> Result<(TxnResponse, u32), StoreError> {
        let client = Arc::clone(&self.client);
        let outcome = self.block(async move {
            let asked = client.ask(|asked, attempt| {
                let request = asked.request(request.clone());
                async move {
                    let mut kv = KvClient::new(asked.channel).max_decoding_message_size(MAX_ANSWER);
                    Ok((kv.txn(request).await?.into_inner(), attempt + 1))
                }
            });
            asked.await
        });
        if outcome.is_err() {
            self.looked().write_failed = true;
        }
        outcome
    }

    fn looked(&self) -> MutexGuard<'_, Looked> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_index(&self, stream: &StreamId) -> Result<Option<u64>, StoreError> {
        let answer = self.range(last_key(&self.keys, stream))?;
        answer.kvs.first().map(|found| self.index(&found.key)).transpose()
    }

    fn index(&self, key: &[u8]) -> Result<u64, StoreError> {
        Keys::index_of(key).ok_or_else(|| self.unavailable("a segment under a key of unknown shape"))
    }

    /// Writes what waits; what could not be written waits on.
    fn flush(&self) -> Result<(), StoreError> {
        let blobs: Vec<([u8; 32], Vec<u8>)> =
            self.waiting().iter().map(|(hash, bytes)| (*hash, bytes.clone())).collect();
        let (mut ops, mut bytes) = (Vec::new(), 0);
        for (hash, content) in &blobs {
            let hash = BlobHash::from_bytes(*hash);
            let parts = content.chunks(PART_BYTES).chain(content.is_empty().then_some(&[][..]));
            for (part, value) in (0..).zip(parts) {
                if bytes + value.len() > PART_BYTES || ops.len() >= TXN_OPS {
                    self.put(std::mem::take(&mut ops))?;
                    bytes = 0;
                }
                bytes += value.len();
                ops.push((self.keys.blob_part(&hash, part), value.to_vec()));
            }
        }
        self.put(ops)?;
        let mut waiting = self.waiting();
        for (hash, _) in &blobs {
            waiting.remove(hash);
        }
        Ok(())
    }

    fn put(&self, values: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), StoreError> {
        if values.is_empty() {
            return Ok(());
        }
        let success = values.into_iter().map(|(key, value)| put_op(key, value)).collect();
        self.transact(TxnRequest { compare: Vec::new(), success, failure: Vec::new() }).map(drop)
    }

    /// What stands in a key: the content itself, or the name of the blob that has it.
    fn encode(&self, content: &[u8]) -> Result<Vec<u8>, StoreError> {
        if content.len() <= INLINE_BYTES {
            return Ok([&[INLINE], content].concat());
        }
        let hash = self.put_blob(content)?;
        self.flush()?;
        Ok([&[BLOB], hash.as_bytes().as_slice()].concat())
    }

    /// `None`: the content was deleted.
    fn decode(&self, value: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match Content::read(value) {
            Some(Content::Inline(content)) => Ok(Some(content.to_vec())),
            Some(Content::Blob(hash)) => self.get_blob(&hash),
            None => Err(StoreError::Fault("etcd has a value of unknown shape".into())),
        }
    }
}

/// What a value stands for.
enum Content<'a> {
    Inline(&'a [u8]),
    Blob(BlobHash),
}

impl<'a> Content<'a> {
    fn read(value: &'a [u8]) -> Option<Self> {
        match value {
            [INLINE, content @ ..] => Some(Self::Inline(content)),
            [BLOB, hash @ ..] => hash.try_into().ok().map(BlobHash::from_bytes).map(Self::Blob),
            _ => None,
        }
    }
}

/// Reads an answer of etcd as the store does, and gives the number of segments in it whose shape is right. For
/// fuzzing: what a hostile member sends must be an error at worst.
pub fn segments_in(answer: &[u8]) -> Option<usize> {
    let answer = RangeResponse::decode(answer).ok()?;
    let keys = Keys::new("");
    let is_segment = |found: &&crate::api::KeyValue| {
        let _ = keys.stream_of_name(&found.key);
        Keys::index_of(&found.key).is_some() && Content::read(&found.value).is_some()
    };
    Some(answer.kvs.iter().filter(is_segment).count())
}

fn put_op(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Op::RequestPut(PutRequest { key, value, lease: 0 })) }
}

fn last_key(keys: &Keys, stream: &StreamId) -> RangeRequest {
    RangeRequest {
        key: keys.segment(stream, 0),
        range_end: keys.segments_end(stream),
        limit: 1,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Key.into(),
        keys_only: true,
        ..RangeRequest::default()
    }
}

fn get_op(key: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Op::RequestRange(RangeRequest { key, ..RangeRequest::default() })) }
}

fn version_is(key: Vec<u8>, result: CompareResult, version: i64) -> Compare {
    let target_union = Some(TargetUnion::Version(version));
    Compare { result: result.into(), target: CompareTarget::Version.into(), key, target_union }
}

impl EventStore for EtcdStore {
    fn append(&self, stream: &StreamId, index: u64, segment: &[u8]) -> Result<(), StoreError> {
        self.flush()?;
        let key = self.keys.segment(stream, index);
        let value = self.encode(segment)?;
        let mut compare = vec![version_is(key.clone(), CompareResult::Equal, 0)];
        let mut success = vec![put_op(key.clone(), value.clone())];
        match index.checked_sub(1) {
            Some(last) => {
                compare.push(version_is(self.keys.segment(stream, last), CompareResult::Greater, 0));
            }
            None => success.push(put_op(self.keys.name(stream), Vec::new())),
        }
        let last = RequestOp { request: Some(Op::RequestRange(last_key(&self.keys, stream))) };
        let failure = vec![get_op(key), last];
        let (answer, sent) = self.transact(TxnRequest { compare, success, failure })?;
        if answer.succeeded {
            return Ok(());
        }
        let ranges = answer.responses.into_iter().filter_map(|response| match response.response {
            Some(Answer::ResponseRange(range)) => Some(range.kvs),
            _ => None,
        });
        let [found, last] = ranges.collect::<Vec<_>>().try_into().unwrap_or_default();
        match (found.first(), last.first()) {
            // An earlier attempt was heard, though its answer was not.
            (Some(found), _) if sent > 1 && found.value == value => Ok(()),
            (Some(_), _) => Err(StoreError::IndexTaken { stream: *stream, index }),
            (None, Some(last)) => {
                Err(StoreError::Gap { stream: *stream, index, next: self.index(&last.key)? + 1 })
            }
            (None, None) => Err(StoreError::Gap { stream: *stream, index, next: 0 }),
        }
    }

    fn read(
        &self,
        stream: &StreamId,
        index: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let limit = i64::try_from((max_bytes / 4096).clamp(1, PAGE_KEYS)).unwrap_or(1);
        let answer = self.range(RangeRequest {
            key: self.keys.segment(stream, index),
            range_end: self.keys.segments_end(stream),
            limit,
            ..RangeRequest::default()
        })?;
        if let Some(found) = answer.kvs.first() {
            let first = self.index(&found.key)?;
            if first > index {
                return Err(StoreError::Trimmed { stream: *stream, index, first });
            }
        }
        let (mut page, mut bytes) = (Vec::new(), 0);
        for found in answer.kvs {
            if !page.is_empty() && bytes >= max_bytes {
                break;
            }
            let place = self.index(&found.key)?;
            match self.decode(&found.value)? {
                Some(segment) => {
                    bytes += segment.len();
                    page.push((place, segment));
                }
                // The control stream is never trimmed.
                None if *stream == StreamId::Control => {
                    return Err(StoreError::Fault(format!("etcd lacks the content of segment {place}")));
                }
                // Trimmed between the two questions.
                None => {
                    return Err(StoreError::Trimmed { stream: *stream, index: place, first: place + 1 });
                }
            }
        }
        Ok(page)
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<BlobHash, StoreError> {
        let hash = BlobHash::of(bytes);
        let is_much = {
            let mut waiting = self.waiting();
            waiting.insert(*hash.as_bytes(), bytes.to_vec());
            waiting.values().map(Vec::len).sum::<usize>() > WAITING_BYTES
        };
        if is_much {
            self.flush()?;
        }
        Ok(hash)
    }

    fn get_blob(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(bytes) = self.waiting().get(hash.as_bytes()) {
            return Ok(Some(bytes.clone()));
        }
        let answer = self.range(RangeRequest {
            key: self.keys.blob_part(hash, 0),
            range_end: self.keys.blob_end(hash),
            ..RangeRequest::default()
        })?;
        if answer.kvs.is_empty() {
            return Ok(None);
        }
        let bytes = answer.kvs.into_iter().flat_map(|part| part.value).collect::<Vec<u8>>();
        if BlobHash::of(&bytes) == *hash { Ok(Some(bytes)) } else { Err(StoreError::BlobChanged(*hash)) }
    }

    fn put_derived(&self, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let value = self.encode(value)?;
        self.put(vec![(self.keys.derived(name), value)])
    }

    fn get_derived(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let answer = self.range(RangeRequest { key: self.keys.derived(name), ..RangeRequest::default() })?;
        answer.kvs.first().map_or(Ok(None), |found| self.decode(&found.value))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.flush()
    }

    fn failing(&self) -> Option<StoreError> {
        {
            let mut looked = self.looked();
            let is_due = looked.at.is_none_or(|at| at.elapsed() >= LOOK);
            if !is_due && !looked.write_failed && looked.trouble.is_none() {
                return None;
            }
            (looked.at, looked.write_failed) = (Some(Instant::now()), false);
        }
        // Silence is no trouble of this kind: it shows in how old the view of the control stream is.
        let alarms = self.health().map(|health| health.alarms).unwrap_or_default();
        let trouble = (!alarms.is_empty()).then(|| {
            self.unavailable(&format!(
                "{}. Over its quota it takes no writes: see docs/replicas.md, \"When etcd is full\"",
                alarms.join("; ")
            ))
        });
        self.looked().trouble.clone_from(&trouble);
        trouble
    }

    fn streams(&self) -> Result<Vec<StreamId>, StoreError> {
        let (key, range_end) = self.keys.names();
        let answer =
            self.range(RangeRequest { key, range_end, keys_only: true, ..RangeRequest::default() })?;
        let stream = |key: &[u8]| {
            let unknown = || self.unavailable("a stream's name of unknown shape");
            self.keys.stream_of_name(key).ok_or_else(unknown)
        };
        answer.kvs.iter().map(|found| stream(&found.key)).collect()
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Must not wait: the last user may be a task of another runtime.
            runtime.shutdown_background();
        }
    }
}
