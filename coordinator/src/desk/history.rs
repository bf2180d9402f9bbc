//! Reading the log: who may see what of it. Readers verify what they get by themselves.

use std::sync::Arc;

use keys::LogPublicKey;
use manifest::{KeyDigest, SerialNumber};
use storage_schema::{
    BlobHash, Checkpoint, EventStore, Head, Inclusion, LogError, StreamId, Trouble, signed_head,
};

use super::{failure::Failure, handles::Desk};

/// Bytes of segments that are read from the store at once.
const PAGE_BYTES: usize = 256 << 10;

/// The head of a stream.
pub(crate) struct SignedHead {
    /// As the log's key signed it in the last segment; empty for an empty stream.
    pub(crate) signed: Vec<u8>,
    /// Proof that it extends the head that was asked about.
    pub(crate) consistency: Vec<[u8; 32]>,
    /// The same head in the form of a checkpoint; empty where the seed is not in memory.
    pub(crate) checkpoint: String,
}

/// What one look at a stream gives.
pub(crate) enum Page {
    Segments(Vec<(u64, Vec<u8>)>),
    /// The shared store does not answer, so there may be more.
    Unknown(Failure),
}

impl<L: EventStore> Desk<L> {
    /// Whether the owner of a key may read everything by the manifest in force.
    pub(crate) fn check_auditor(&self, key: Option<KeyDigest>) -> Result<(), Failure> {
        let snapshot = self.snapshot.borrow();
        let Some(active) = snapshot.active() else {
            return Err(actors::NotInForce::NeedsRecovery.into());
        };
        if key.is_some_and(|key| active.manifest.may_audit(key)) {
            return Ok(());
        }
        let reason = "certificates, refusals and evidence are shown to auditors and workload owners of the manifest \
                      in force: connect with such a key";
        Err(Failure::Denied(reason.into()))
    }

    /// The stream of that name, if the owner of a key may read it. The control stream is for everybody.
    pub(crate) fn readable(&self, stream: &str, key: Option<KeyDigest>) -> Result<StreamId, Failure> {
        let stream: StreamId =
            stream.parse().map_err(|error| Failure::Malformed(format!("stream: {error}")))?;
        self.check_reader(stream, key)?;
        Ok(stream)
    }

    fn check_reader(&self, stream: StreamId, key: Option<KeyDigest>) -> Result<(), Failure> {
        if stream == StreamId::Control { Ok(()) } else { self.check_auditor(key) }
    }

    /// The streams that the owner of a key may read, and the number of those that it may not.
    pub(crate) async fn streams(&self, key: Option<KeyDigest>) -> Result<(Vec<StreamId>, usize), Failure> {
        let mut streams = self
            .blocking(|desk| match desk.archive.streams() {
                Err(error) if error.trouble() == Trouble::Unavailable => Ok(desk.store.local().streams()?),
                answer => Ok(answer?),
            })
            .await?;
        let all = streams.len();
        if self.check_auditor(key).is_err() {
            streams.retain(|stream| *stream == StreamId::Control);
        }
        let hidden = all - streams.len();
        Ok((streams, hidden))
    }

    /// The signed head of a stream with a proof that it extends an older one.
    pub(crate) async fn head(&self, stream: StreamId, extends: u64) -> Result<SignedHead, Failure> {
        let active = self.snapshot.borrow().active().map(Arc::clone);
        let key = active.as_ref().map(|active| active.engine.log_key().public());
        let read = move |desk: &Self| {
            let (head, consistency) = desk.archive.consistency(stream, key, extends)?;
            let Some(last) = head.segments.checked_sub(1) else { return Ok((head, consistency, Vec::new())) };
            let segment = desk.store.read(&stream, last, 1)?.into_iter().next().map(|(_, bytes)| bytes);
            let signed = segment.and_then(|bytes| signed_head(&bytes).map(<[u8]>::to_vec));
            Ok((head, consistency, signed.unwrap_or_default()))
        };
        let (head, consistency, signed) = self.blocking(read).await?;
        let checkpoint = active.map(|active| Checkpoint::sign(&head, active.engine.log_key()));
        Ok(SignedHead { signed, consistency, checkpoint: checkpoint.unwrap_or_default() })
    }

    /// Segments from `from` on. The right to them is looked at for every page: a manifest may have taken it away
    /// since the last one.
    pub(crate) async fn segments(
        &self,
        stream: StreamId,
        from: u64,
        key: Option<KeyDigest>,
    ) -> Result<Page, Failure> {
        self.check_reader(stream, key)?;
        let read = move |desk: &Self| Ok(desk.store.read(&stream, from, PAGE_BYTES)?);
        match self.blocking(read).await {
            Ok(segments) => Ok(Page::Segments(segments)),
            Err(Failure::Log(error)) if error.trouble() == Trouble::Unavailable => {
                Ok(Page::Unknown(error.into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the owner of a key may read these documents: what the manifest history names is for everybody.
    pub(crate) fn check_blobs(&self, hashes: &[BlobHash], key: Option<KeyDigest>) -> Result<(), Failure> {
        let state = Arc::clone(&self.snapshot.borrow().state);
        if hashes.iter().all(|hash| state.names_blob(hash.as_bytes())) {
            return Ok(());
        }
        self.check_auditor(key)
    }

    /// A document by its hash. To be called after [`Self::check_blobs`].
    pub(crate) async fn blob(&self, hash: BlobHash) -> Result<Vec<u8>, Failure> {
        let found = self.blocking(move |desk| Ok(desk.store.get_blob(&hash)?)).await?;
        found.ok_or_else(|| Failure::NotFound(format!("blob {hash}")))
    }

    /// The event that issued a certificate, with its proof and a checkpoint over it.
    pub(crate) async fn prove(
        &self,
        serial: SerialNumber,
        key: Option<KeyDigest>,
    ) -> Result<(Inclusion, String), Failure> {
        self.check_auditor(key)?;
        let log_key = self.log_key();
        let found = self.blocking(move |desk| match desk.archive.locate(&serial, log_key)? {
            Some((stream, sequence)) => Ok(Some(desk.archive.inclusion(stream, log_key, sequence)?)),
            None => Ok(None),
        });
        let Some(inclusion) = found.await? else {
            return Err(Failure::NotFound(format!("no certificate with serial number {serial} was issued")));
        };
        let checkpoint = self.checkpoint(&inclusion.head);
        Ok((inclusion, checkpoint))
    }

    /// The key that signed the log, if the seed is in memory.
    fn log_key(&self) -> Option<LogPublicKey> {
        self.snapshot.borrow().active().map(|active| active.engine.log_key().public())
    }

    fn checkpoint(&self, head: &Head) -> String {
        let snapshot = self.snapshot.borrow();
        snapshot.active().map(|active| Checkpoint::sign(head, active.engine.log_key())).unwrap_or_default()
    }

    /// Runs `work`, which reads the store, where blocking is allowed.
    pub(crate) async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<R, LogError> + Send + 'static,
    ) -> Result<R, Failure> {
        let desk = self.clone();
        let outcome = tokio::task::spawn_blocking(move || work(&desk)).await;
        Ok(outcome.map_err(|error| Failure::Fault(format!("reading the log was cut off: {error}")))??)
    }
}
