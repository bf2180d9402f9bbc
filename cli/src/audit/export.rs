//! `contrast audit export`: a stream of verified events, in constant memory, resumable.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{File, OpenOptions},
    io::{BufWriter, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use manifest::SerialNumber;
use program::now;
use serde::{Deserialize, Serialize};
use storage_schema::{
    BlobHash, Event, Fact, LogId, Position, StreamId,
    export::Line,
    merkle::{Frontier, leaf_hash},
    signed_head,
};

use super::{
    ocsf,
    record::{self, Filter, Format, KINDS},
};
use crate::{
    history::moment,
    printer::Printer,
    source::{From, Source},
    usage::out_file,
};

/// Segments that are in memory at once.
const CHUNK: u64 = 32;

/// Export the event log as lines of JSON.
///
/// Everything is verified on the way. The format `jsonl` holds all that `contrast audit verify`
/// needs, so that nobody has to trust the exporter; `ocsf` and `cloudevents` are for a SIEM.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to write; stdout if it is not given.
    #[arg(long, short, value_name = "FILE", value_parser = out_file)]
    out: Option<PathBuf>,
    /// Go on where an interrupted or an earlier export to the same file ended.
    #[arg(long, requires = "out")]
    resume: bool,
    /// Dialect.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// Only events from this time on, such as "7 days ago" or 2026-11-24; UTC.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only events before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only events of this kind. Repeatable.
    #[arg(long, value_name = "KIND", value_parser = KINDS)]
    kind: Vec<String>,
    /// Only certificates and secrets of this workload: a name in its certificate, its secret id, or
    /// the beginning of its policy's hash.
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Only what concerns the certificate with this serial number.
    #[arg(long, value_name = "HEX")]
    serial: Option<SerialNumber>,
    #[command(flatten)]
    from: From,
}

/// What `--resume` goes on from; beside the file as `FILE.position`.
#[derive(Default, Serialize, Deserialize)]
struct Resume {
    bytes: u64,
    events: u64,
    streams: BTreeMap<String, Position>,
}

/// A verified segment that waits to be written.
struct Waiting {
    index: u64,
    before: Frontier,
    signed_head: Vec<u8>,
    events: Vec<(u64, Event, Vec<u8>)>,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let time = |text: &Option<String>| text.as_deref().map(|text| moment::parse(text, now())).transpose();
    let filter = Filter {
        since: time(&args.since)?,
        until: time(&args.until)?,
        kinds: args.kind.clone(),
        workload: args.workload.clone(),
        serial: args.serial,
    };
    let (source, key) = args.from.open(printer).await?;
    let mut export = Export::begin(&args, LogId::new(key), filter)?;
    let streams = source.streams(printer).await?;
    let total = source.size(&streams).await?;
    let progress = printer.progress("events", total);
    for stream in streams {
        let known = export.resume.streams.remove(&stream.to_string());
        let mut position = known.unwrap_or_else(|| Position::start(stream, Some(key)));
        ensure!(position.key() == Some(key), "{stream}: exported before from another log");
        loop {
            let (chunk, next) = read_chunk(&source, &position).await?;
            if chunk.is_empty() {
                break;
            }
            let count: usize = chunk.iter().map(|segment| segment.events.len()).sum();
            export.write(stream, chunk, &source).await?;
            position = next;
            export.resume.events += count as u64;
            progress.inc(count as u64);
            export.remember(stream, &position)?;
        }
        export.remember(stream, &position)?;
    }
    let is_whole = export.filter.is_empty();
    let (events, chosen) = export.finish()?;
    progress.finish_and_clear();
    let log = LogId::new(key);
    printer.note(&match (is_whole, chosen) {
        (true, _) => format!("{events} events exported and verified, log {log}"),
        (false, 0) => {
            format!("None of the {events} events is what was asked for; all were verified, log {log}")
        }
        (false, _) => format!("{chosen} of {events} events exported, all verified, log {log}"),
    });
    Ok(())
}

async fn read_chunk(source: &Source, position: &Position) -> anyhow::Result<(Vec<Waiting>, Position)> {
    let (mut next, mut chunk) = (position.clone(), Vec::new());
    let mut before = position.tree().clone();
    let mut index = position.head().segments;
    source
        .each_segment(&mut next, CHUNK, |bytes, events, encoded| {
            let signed_head = signed_head(bytes).context("a segment without a head")?.to_vec();
            let owned = events
                .iter()
                .zip(encoded)
                .map(|((sequence, event), raw)| (*sequence, event.clone(), raw.to_vec()));
            let events: Vec<(u64, Event, Vec<u8>)> = owned.collect();
            let mut after = before.clone();
            events.iter().for_each(|(_, _, raw)| after.push(leaf_hash(raw)));
            let before = std::mem::replace(&mut before, after);
            chunk.push(Waiting { index, before, signed_head, events });
            index += 1;
            Ok(())
        })
        .await?;
    Ok((chunk, next))
}

struct Export {
    out: BufWriter<Box<dyn Write>>,
    file: Option<File>,
    position_file: Option<PathBuf>,
    resume: Resume,
    log: LogId,
    format: Format,
    filter: Filter,
    /// Events that were wanted.
    chosen: u64,
    /// Manifests and policies that are in the file already.
    written: HashSet<BlobHash>,
}

impl Export {
    fn begin(args: &Args, log: LogId, filter: Filter) -> anyhow::Result<Self> {
        let (format, mut resume) = (args.format, Resume::default());
        let (out, file, position_file): (Box<dyn Write>, _, _) = match &args.out {
            None => (Box::new(std::io::stdout()), None, None),
            Some(path) => {
                let position = PathBuf::from(format!("{}.position", path.display()));
                let mut file = if args.resume {
                    let text = std::fs::read(&position)
                        .with_context(|| format!("nothing to resume: cannot read {}", position.display()))?;
                    resume = serde_json::from_slice(&text).with_context(|| position.display().to_string())?;
                    OpenOptions::new().read(true).write(true).open(path)
                } else {
                    OpenOptions::new().write(true).create_new(true).open(path)
                }
                .with_context(|| format!("cannot write {} (to go on with one: --resume)", path.display()))?;
                file.set_len(resume.bytes)?;
                file.seek(SeekFrom::Start(resume.bytes))?;
                (Box::new(file.try_clone()?), Some(file), Some(position))
            }
        };
        let out = BufWriter::with_capacity(1 << 20, out);
        let mut export = Self {
            out,
            file,
            position_file,
            resume,
            log,
            format,
            filter,
            chosen: 0,
            written: HashSet::new(),
        };
        if export.resume.bytes == 0 && format == Format::Jsonl {
            let (log, made) = (log.to_string(), now().to_string());
            let filtered = !export.filter.is_empty();
            export.line(&Line::Export { version: 1, log, made, filtered })?;
        }
        Ok(export)
    }

    fn line(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.out, line).context("cannot write")?;
        self.out.write_all(b"\n").context("cannot write")
    }

    async fn write(&mut self, stream: StreamId, chunk: Vec<Waiting>, source: &Source) -> anyhow::Result<()> {
        let native = self.format == Format::Jsonl;
        let chosen = |filter: &Filter, event: &Event| {
            // What the rest is judged by is never left out of our own format.
            let judges = matches!(
                event.fact,
                Fact::ManifestSet { .. } | Fact::RecoveredByUser { .. } | Fact::ReplicaVouched { .. }
            );
            filter.wants(event) || (native && judges)
        };
        if native {
            let events = chunk.iter().flat_map(|segment| &segment.events);
            let hashes: Vec<BlobHash> = events
                .filter(|(_, event, _)| chosen(&self.filter, event))
                .flat_map(|(_, event, _)| blobs_of(&event.fact))
                .filter(|(hash, once)| !once || self.written.insert(*hash))
                .map(|(hash, _)| hash)
                .collect();
            for (hash, content) in hashes.iter().zip(source.blobs(&hashes).await?) {
                let (hash, content) = (hash.to_string(), BASE64_STANDARD.encode(content));
                self.line(&Line::Blob { hash, content })?;
            }
        }
        for Waiting { index, before, signed_head, events } in chunk {
            let mut leaves = Vec::with_capacity(events.len());
            for (sequence, event, raw) in &events {
                if !chosen(&self.filter, event) {
                    leaves.push(Some(BASE64_STANDARD.encode(leaf_hash(raw))));
                    continue;
                }
                leaves.push(None);
                self.chosen += 1;
                let line = match self.format {
                    Format::Jsonl => record::native(stream, *sequence, event, raw),
                    Format::Ocsf => ocsf::line(&self.log, stream, *sequence, event, raw),
                    Format::Cloudevents => record::cloud_event(&self.log, stream, *sequence, event, raw),
                };
                self.line(&line)?;
            }
            let filtered = !self.filter.is_empty();
            if native && leaves.iter().any(Option::is_none) {
                self.line(&Line::Segment {
                    stream: stream.to_string(),
                    index,
                    signed_head: BASE64_STANDARD.encode(signed_head),
                    before: filtered.then_some(before),
                    leaves: filtered.then_some(leaves),
                })?;
            }
        }
        Ok(())
    }

    /// Makes durable what was written, then notes that it was.
    fn remember(&mut self, stream: StreamId, position: &Position) -> anyhow::Result<()> {
        self.out.flush().context("cannot write")?;
        self.resume.streams.insert(stream.to_string(), position.clone());
        let (Some(file), Some(path)) = (&mut self.file, &self.position_file) else { return Ok(()) };
        self.resume.bytes = file.stream_position()?;
        file.sync_data().context("cannot write")?;
        write_whole(path, &serde_json::to_vec(&self.resume)?)
    }

    /// What was read, and what was wanted of it.
    fn finish(mut self) -> anyhow::Result<(u64, u64)> {
        self.out.flush().context("cannot write")?;
        Ok((self.resume.events, self.chosen))
    }
}

/// Replaces a file in one step.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let temporary = PathBuf::from(format!("{}.new", path.display()));
    let write = || {
        std::fs::write(&temporary, content)?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// What an event names by hash; `true` for what many events may share.
fn blobs_of(fact: &Fact) -> Vec<(BlobHash, bool)> {
    match fact {
        Fact::ManifestSet { manifest, policies, .. } => {
            let policies = policies.iter().map(|hash| (BlobHash::from_bytes(*hash.as_bytes()), true));
            std::iter::once((BlobHash::from_bytes(*manifest.as_bytes()), true)).chain(policies).collect()
        }
        Fact::CertificateIssued { evidence, .. } | Fact::ReplicaVouched { evidence, .. } => {
            vec![(BlobHash::from_bytes(*evidence.as_bytes()), false)]
        }
        _ => Vec::new(),
    }
}
