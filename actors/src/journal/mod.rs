//! `Journal`: the writer of this incarnation's stream.
//!
//! Group commit: whatever waits while the last commit is under way becomes the next segment. The
//! journal gathers, a [`Writer`] on a thread of its own appends and flushes, and only then is
//! anybody answered.

mod refusals;

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler, Message, ResponseFuture,
    Supervised, SyncContext, WrapFuture as _,
};
use keys::SeedEngine;
use manifest::{EvidenceHash, ReplicaId, RequestId};
use storage_schema::{
    AppendError, Archive, Event, EventStore, Fact, LogError, Signer, StoreError, StreamId, Trouble,
};
use tokio::sync::oneshot;

use self::refusals::Refusals;
use crate::{Clock, ReplicaKey, Traced, supervision::rebuild_on_panic};

/// Why events were not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The stream cannot be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The stream cannot be trusted.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The engine.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The actor or its writer is being rebuilt.
    #[error("the event journal is restarting; try again")]
    Restarting,
}

impl JournalError {
    /// What follows from this error.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Append(error) => error.trouble(),
            Self::Log(error) => error.trouble(),
            Self::Store(error) => error.trouble(),
            Self::Restarting => Trouble::Unavailable,
        }
    }
}

/// Records facts; they are durable when the answer is there.
#[derive(Message)]
#[rtype(result = "Result<(), JournalError>")]
pub struct Append {
    /// What happened.
    pub facts: Vec<Fact>,
    /// Content that the facts name by hash.
    pub blobs: Vec<Vec<u8>>,
    /// The request that caused it.
    pub request: RequestId,
    /// Whose log key signs.
    pub engine: Arc<SeedEngine>,
}

/// Records that a workload was refused; only counted when its source, or everybody together, had too
/// many of late.
#[derive(Message)]
#[rtype(result = "Result<(), JournalError>")]
pub struct RecordRefusal {
    /// Address it came from.
    pub source: String,
    /// Each failed check.
    pub reason: String,
    /// Hash of the evidence.
    pub evidence: Option<EvidenceHash>,
    /// The request.
    pub request: RequestId,
    /// Whose log key signs.
    pub engine: Arc<SeedEngine>,
}

/// One group commit, for whoever measures.
#[derive(Clone, Copy, Debug)]
pub struct CommitSeen {
    /// From the first byte to the end of the flush.
    pub took: Duration,
    /// How many events.
    pub events: usize,
}

/// Is told of each group commit.
pub type OnCommit = Arc<dyn Fn(CommitSeen) + Send + Sync>;

type Waiting = (Append, oneshot::Sender<Result<(), JournalError>>);

/// Gathers events for the next commit.
pub struct Journal<S: EventStore, C: Clock + Unpin> {
    writer: Addr<Writer<S, C>>,
    waiting: Vec<Waiting>,
    committing: bool,
    clock: C,
    refusals: Refusals,
}

impl<S: EventStore, C: Clock + Unpin> Journal<S, C> {
    /// A journal whose stream is named by this incarnation. It writes through the archive's reader of that
    /// stream, so that nobody reads back what was written here.
    ///
    /// `replica_key` signs its segments beside the log's key.
    pub fn new(
        archive: &Arc<Archive<S>>,
        clock: C,
        replica: ReplicaId,
        replica_key: Option<Arc<ReplicaKey>>,
        on_commit: OnCommit,
    ) -> Self
    where
        C: Clone,
    {
        let archive = Arc::clone(archive);
        let for_writer = clock.clone();
        let writer = actix::SyncArbiter::start(1, move || Writer {
            archive: Arc::clone(&archive),
            clock: for_writer.clone(),
            replica,
            replica_key: replica_key.clone(),
            on_commit: Arc::clone(&on_commit),
        });
        Self { writer, waiting: Vec::new(), committing: false, clock, refusals: Refusals::default() }
    }

    fn append(
        &mut self,
        append: Append,
        ctx: &mut Context<Self>,
    ) -> ResponseFuture<Result<(), JournalError>> {
        let (reply, answer) = oneshot::channel();
        self.waiting.push((append, reply));
        self.commit_waiting(ctx);
        Box::pin(async { answer.await.unwrap_or(Err(JournalError::Restarting)) })
    }

    fn commit_waiting(&mut self, ctx: &mut Context<Self>) {
        if self.committing || self.waiting.is_empty() {
            return;
        }
        self.committing = true;
        let (batch, replies): (Vec<_>, Vec<_>) = self.waiting.drain(..).unzip();
        let commit = self.writer.send(Commit(batch));
        ctx.spawn(commit.into_actor(self).map(|outcome, journal, ctx| {
            let outcome = outcome.unwrap_or(Err(JournalError::Restarting));
            for reply in replies {
                // Whoever hung up in the meantime is not owed an answer.
                let _ = reply.send(outcome.clone());
            }
            journal.committing = false;
            journal.commit_waiting(ctx);
        }));
    }
}

impl<S: EventStore, C: Clock + Unpin> Actor for Journal<S, C> {
    type Context = Context<Self>;
}

impl<S: EventStore, C: Clock + Unpin> Supervised for Journal<S, C> {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.waiting.clear();
        self.committing = false;
    }
}

impl<S: EventStore, C: Clock + Unpin> Handler<Traced<Append>> for Journal<S, C> {
    type Result = ResponseFuture<Result<(), JournalError>>;

    fn handle(&mut self, msg: Traced<Append>, ctx: &mut Self::Context) -> Self::Result {
        self.append(msg.message, ctx)
    }
}

impl<S: EventStore, C: Clock + Unpin> Handler<Traced<RecordRefusal>> for Journal<S, C> {
    type Result = ResponseFuture<Result<(), JournalError>>;

    fn handle(&mut self, msg: Traced<RecordRefusal>, ctx: &mut Self::Context) -> Self::Result {
        let Some(left_out) = self.refusals.admit(&msg.message.source, self.clock.now()) else {
            return Box::pin(async { Ok(()) });
        };
        let RecordRefusal { source, reason, evidence, request, engine } = msg.message;
        let facts = vec![Fact::AttestationRefused { source, reason, evidence, left_out }];
        self.append(Append { facts, blobs: Vec::new(), request, engine }, ctx)
    }
}

/// Appends and flushes. Its stream begins with the first event, because there is no key before.
struct Writer<S: EventStore, C> {
    archive: Arc<Archive<S>>,
    clock: C,
    replica: ReplicaId,
    replica_key: Option<Arc<ReplicaKey>>,
    on_commit: OnCommit,
}

#[derive(Message)]
#[rtype(result = "Result<(), JournalError>")]
struct Commit(Vec<Append>);

impl<S: EventStore, C: Clock + Unpin> Actor for Writer<S, C> {
    type Context = SyncContext<Self>;
}

impl<S: EventStore, C: Clock + Unpin> Handler<Commit> for Writer<S, C> {
    type Result = Result<(), JournalError>;

    fn handle(&mut self, Commit(batch): Commit, ctx: &mut Self::Context) -> Self::Result {
        rebuild_on_panic(ctx, || self.commit(batch)).unwrap_or(Err(JournalError::Restarting))
    }
}

impl<S: EventStore, C: Clock + Unpin> Writer<S, C> {
    fn commit(&mut self, batch: Vec<Append>) -> Result<(), JournalError> {
        let Some(engine) = batch.first().map(|append| Arc::clone(&append.engine)) else { return Ok(()) };
        let started = Instant::now();
        let (at, replica) = (self.clock.now(), self.replica);
        let reader = self.archive.reader(StreamId::Replica(replica), Some(engine.log_key().public()))?;
        let mut log = reader.lock().unwrap_or_else(PoisonError::into_inner);
        if log.is_poisoned() {
            log.catch_up(|_, _| {})?;
        }
        let mut events = Vec::new();
        if log.head().size == 0 {
            let fact = Fact::ReplicaStarted { version: env!("CARGO_PKG_VERSION").to_owned() };
            events.push(Event { at, replica, request: RequestId::from_bytes([0; 16]), fact });
        }
        for Append { facts, blobs, request, .. } in batch {
            for blob in blobs {
                self.archive.store().put_blob(&blob)?;
            }
            events.extend(facts.into_iter().map(|fact| Event { at, replica, request, fact }));
        }
        let replica = self.replica_key.as_ref().map(|own| own.key());
        log.append(&events, Signer { log: engine.log_key(), replica })?;
        (self.on_commit)(CommitSeen { took: started.elapsed(), events: events.len() });
        Ok(())
    }
}
