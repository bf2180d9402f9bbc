//! Where the event log is read from: a live Coordinator, a copy of its state directory, an export.
//! Whatever it is, each segment is verified here.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, ensure};
use atls::ConnectionKey;
use coordinator_client::Attested;
use keys::LogPublicKey;
use storage_schema::{
    BlobHash, Event, EventStore as _, LogId, Position, SledStore, StreamId, export::ExportFile,
    open_signed_head,
};
use wire::history::{BlobsRequest, HeadRequest, SegmentsRequest, StreamsRequest, StreamsResponse};

use crate::{
    audit::filtered,
    client::{attested, failure},
    files::read_manifest,
    key_file::read_key,
    printer::{Printer, Refused},
    remembered::{Memory, check, recall},
};

/// Most blobs asked for at once.
const BLOBS: usize = 200;

/// From this age on, in seconds, what a replica shows comes with a warning.
const OLD_SECONDS: u64 = 10;

/// Options that say where to read.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct From {
    /// A live Coordinator, as host:port.
    #[arg(long, short, env = "CONTRAST_COORDINATOR", conflicts_with_all = ["state_dir", "export"])]
    coordinator: Option<String>,
    /// The manifest in force: the Coordinator is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// Private key of an auditor or a workload owner, who may read certificates and refusals. By default the auditor.pem
    /// or the workload-owner.pem beside the manifest, if it is there.
    #[arg(long, visible_alias = "workload-owner-key", value_name = "FILE")]
    auditor_key: Option<PathBuf>,
    /// A copy of a Coordinator's state directory, instead of a live one.
    #[arg(long, value_name = "DIR", conflicts_with = "export")]
    state_dir: Option<PathBuf>,
    /// A file that `contrast audit export` wrote, instead of a live Coordinator.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// The log's verifier key, for offline reading; `contrast verify` prints it. By default that of
    /// the remembered checkpoint.
    #[arg(long, value_name = "KEY")]
    log_key: Option<LogId>,
    #[command(flatten)]
    memory: Memory,
}

/// An opened source.
pub(crate) enum Source {
    /// Over attested TLS.
    Live {
        /// Where.
        coordinator: Box<Attested>,
        /// Whether the caller gave a key, which may show him more.
        with_key: bool,
    },
    /// A sled directory.
    Directory(Arc<SledStore>),
    /// A file of JSON lines.
    Export(PathBuf),
}

/// A verified event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recorded {
    pub(crate) stream: StreamId,
    pub(crate) sequence: u64,
    pub(crate) event: Event,
}

impl From {
    /// Opens the source, and says by which key its segments must be signed. A live Coordinator must
    /// extend the remembered checkpoint.
    pub(crate) async fn open(&self, printer: &Printer) -> anyhow::Result<(Source, LogPublicKey)> {
        let path = self.memory.path(&self.manifest);
        if let (Some(address), true) = (&self.coordinator, self.state_dir.is_some() || self.export.is_some())
        {
            anyhow::bail!(
                "the file of options names the Coordinator {address} and a copy of its log, too: keep one of them"
            );
        }
        if let Some(address) = &self.coordinator {
            let manifest = read_manifest(&self.manifest)?;
            let usual = ["auditor.pem", "workload-owner.pem"].map(|name| self.manifest.with_file_name(name));
            let path_of_key = self.auditor_key.as_ref().or(usual.iter().find(|path| path.exists()));
            let key = path_of_key.map(|path| read_key(path)).transpose()?;
            // One that only happens to be there may be of another deployment, or a public one.
            let key = key.filter(|key| self.auditor_key.is_some() || ConnectionKey::from_pem(key).is_ok());
            let coordinator = attested(address, &manifest, key.as_ref()).await?;
            let known = check(&coordinator, &path).await?;
            let known = known.ok_or_else(|| Refused(format!("{address} has no manifest yet")))?;
            if let Some(expected) = self.log_key.filter(|expected| *expected != known.log) {
                let text = format!("{address} has the log {}, --log-key says {expected}", known.log);
                return Err(Refused(text).into());
            }
            return Ok((Source::live(coordinator, self.auditor_key.is_some()), known.log.key()));
        }
        let source = match (&self.state_dir, &self.export) {
            (Some(directory), _) => {
                ensure!(directory.is_dir(), "{} is not a directory", directory.display());
                Source::Directory(Arc::new(SledStore::open(directory)?))
            }
            (None, Some(file)) => Source::Export(file.clone()),
            (None, None) => {
                anyhow::bail!("where is the log to be read from? Give --coordinator, --state-dir or --export")
            }
        };
        let pinned = match self.log_key {
            Some(log) => Some(log),
            None => recall(&path)?.map(|checkpoint| checkpoint.log),
        };
        if let Some(log) = pinned {
            return Ok((source, log.key()));
        }
        let found = source.own_key().await?;
        printer.warning(&format!(
            "this log names its own key, so a forged one would pass; pin it: --log-key '{}'",
            LogId::new(found)
        ));
        Ok((source, found))
    }
}

impl From {
    /// Where the checkpoint is remembered.
    pub(crate) fn memory_path(&self) -> PathBuf {
        self.memory.path(&self.manifest)
    }
}

impl Source {
    /// A Coordinator that was judged.
    pub(crate) fn live(coordinator: Attested, with_key: bool) -> Self {
        Self::Live { coordinator: Box::new(coordinator), with_key }
    }

    /// Number of events in these streams, where it is known beforehand.
    pub(crate) async fn size(&self, streams: &[StreamId]) -> anyhow::Result<Option<u64>> {
        let Self::Live { coordinator, .. } = self else { return Ok(None) };
        let mut total = 0;
        for stream in streams {
            let request = HeadRequest { stream: stream.to_string(), extends: 0 };
            let answer = coordinator.log().head(request).await.map_err(failure)?.into_inner();
            if let Ok((head, _, _)) = open_signed_head(&answer.signed_head, None) {
                total += head.size;
            }
        }
        Ok(Some(total))
    }

    /// The key that the control stream's first segment names.
    async fn own_key(&self) -> anyhow::Result<LogPublicKey> {
        let mut position = Position::start(StreamId::Control, None);
        self.each_segment(&mut position, 1, |_, _, _| Ok(())).await?;
        position.key().context("there is no event")
    }

    /// Every stream that may be read, the control stream first.
    pub(crate) async fn streams(&self, printer: &Printer) -> anyhow::Result<Vec<StreamId>> {
        let mut streams = match self {
            Self::Live { coordinator, with_key } => {
                let answer = coordinator.log().streams(StreamsRequest {}).await.map_err(failure)?;
                let StreamsResponse { streams, hidden } = answer.into_inner();
                if hidden > 0 && *with_key {
                    let text = "this key is not of an auditor or a workload owner of the manifest in force";
                    return Err(Refused(text.into()).into());
                }
                if hidden > 0 {
                    printer.note(&format!("{hidden} more streams need the key of an auditor: --auditor-key"));
                }
                streams.iter().map(|stream| stream.parse()).collect::<Result<Vec<StreamId>, _>>()?
            }
            Self::Directory(store) => store.streams()?,
            Self::Export(file) => ExportFile(file).streams()?,
        };
        streams.sort();
        Ok(streams)
    }

    /// Verifies up to `limit` segments from `position` on, and hands out each with its events:
    /// place in the store, bytes, events with their sequence numbers and encoding.
    pub(crate) async fn each_segment(
        &self,
        position: &mut Position,
        limit: u64,
        mut take: impl FnMut(&[u8], &[(u64, Event)], &[&[u8]]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let head = position.head();
        let mut verify = |index: u64, bytes: &[u8]| {
            let verified = position.advance(index, bytes)?;
            let decode = |(sequence, event): (u64, &&[u8])| Ok((sequence, Event::from_cbor(event)?));
            let events = (verified.first..).zip(&verified.events).map(decode);
            let events = events.collect::<Result<Vec<_>, storage_schema::CodecError>>()?;
            take(bytes, &events, &verified.events)
        };
        match self {
            Self::Live { coordinator, .. } => {
                let request =
                    SegmentsRequest { stream: head.stream.to_string(), from: head.segments, follow: false };
                let answer = coordinator.log().segments(request).await.map_err(failure)?;
                warn_if_old(answer.metadata());
                let mut segments = answer.into_inner();
                let mut left = limit;
                while let Some(segment) = segments.message().await.map_err(failure)? {
                    if left == 0 {
                        break;
                    }
                    left -= 1;
                    verify(segment.index, &segment.bytes).map_err(refused)?;
                }
            }
            Self::Directory(store) => {
                let (mut next, mut left) = (head.segments, limit);
                loop {
                    let page = store.read(&head.stream, next, 1 << 20)?;
                    if page.is_empty() || left == 0 {
                        break;
                    }
                    for (index, bytes) in page {
                        if left > 0 {
                            left -= 1;
                            verify(index, &bytes).map_err(refused)?;
                            next = index + 1;
                        }
                    }
                }
            }
            Self::Export(file) => {
                let mut left = limit;
                ExportFile(file).each_segment(head.stream, |index, bytes| {
                    if index < head.segments || left == 0 {
                        return Ok(());
                    }
                    left -= 1;
                    verify(index, bytes).map_err(refused)
                })?;
            }
        }
        Ok(())
    }

    /// Whether this is an export in which events were left out.
    pub(crate) fn is_filtered(&self) -> anyhow::Result<bool> {
        match self {
            Self::Export(file) => Ok(ExportFile(file).log()?.1),
            _ => Ok(false),
        }
    }

    /// Every event of a stream; of a filtered export those that are there.
    pub(crate) async fn events(&self, stream: StreamId, key: LogPublicKey) -> anyhow::Result<Vec<Recorded>> {
        if let (Self::Export(file), true) = (self, self.is_filtered()?) {
            return filtered::events(file, stream, key);
        }
        let mut position = Position::start(stream, Some(key));
        let mut all = Vec::new();
        self.each_segment(&mut position, u64::MAX, |_, events, _| {
            let recorded = |(sequence, event): &(u64, Event)| Recorded {
                stream,
                sequence: *sequence,
                event: event.clone(),
            };
            all.extend(events.iter().map(recorded));
            Ok(())
        })
        .await?;
        Ok(all)
    }

    /// Content by hash, in the order asked for; each is checked to have that hash.
    pub(crate) async fn blobs(&self, hashes: &[BlobHash]) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut all = Vec::with_capacity(hashes.len());
        match self {
            Self::Live { coordinator, .. } => {
                for part in hashes.chunks(BLOBS) {
                    let hashes = part.iter().map(|hash| hash.as_bytes().to_vec()).collect();
                    let answer = coordinator.log().blobs(BlobsRequest { hashes }).await;
                    let mut blobs = answer.map_err(failure)?.into_inner();
                    while let Some(blob) = blobs.message().await.map_err(failure)? {
                        all.push(blob.content);
                    }
                }
            }
            Self::Directory(store) => {
                for hash in hashes {
                    all.push(
                        store.get_blob(hash)?.with_context(|| format!("blob {hash} is not in the store"))?,
                    );
                }
            }
            Self::Export(file) => all = ExportFile(file).blobs(hashes)?,
        }
        ensure!(all.len() == hashes.len(), "{} blobs came for {} asked", all.len(), hashes.len());
        for (blob, hash) in all.iter().zip(hashes) {
            if BlobHash::of(blob) != *hash {
                return Err(Refused(format!("blob {hash} does not have that content")).into());
            }
        }
        Ok(all)
    }
}

/// A log that does not verify is a refusal, with its reason.
fn refused(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<storage_schema::LogError>() {
        Ok(error) => Refused(format!("the log does not verify: {error}")).into(),
        Err(error) => error,
    }
}

/// A replica that its store does not answer goes on showing what it has.
fn warn_if_old(answer: &tonic::metadata::MetadataMap) {
    let age = answer.get(wire::VIEW_AGE).and_then(|age| age.to_str().ok()?.parse().ok());
    if let Some(seconds @ OLD_SECONDS..) = age.map(|milliseconds: u64| milliseconds / 1000) {
        tracing::warn!(
            seconds,
            "this replica has not heard from its store for so long: there may be more by now"
        );
    }
}
