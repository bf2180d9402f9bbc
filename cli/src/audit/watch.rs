//! `contrast audit watch`: events as they are recorded.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use keys::LogPublicKey;
use storage_schema::{Event, LogId, Position, StreamId};
use tokio::sync::mpsc;
use wire::history::{Segment, SegmentsRequest};

use super::{
    export::write_whole,
    record::{self, Format},
};
use crate::{
    client::{Coordinator, failure},
    printer::{Printer, Refused},
    source::{From, Source},
};

/// How often streams of new replicas are looked for.
const DISCOVER: Duration = Duration::from_secs(2);

/// Follow the event log live, one line of JSON an event, verified.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to note how far it came, and to go on from after a restart. Without it, it begins at the
    /// beginning.
    #[arg(long, value_name = "FILE")]
    position: Option<PathBuf>,
    /// Dialect.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// End when this many events were printed.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    #[command(flatten)]
    from: From,
}

type Positions = BTreeMap<String, Position>;

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let (source, key) = args.from.open(printer).await?;
    let Source::Live(coordinator) = &source else { bail!("only a live Coordinator can be watched") };
    let mut positions: Positions = match &args.position {
        Some(path) if path.exists() => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| path.display().to_string())?
        }
        _ => Positions::new(),
    };
    let (sender, mut segments) = mpsc::channel(16);
    let mut followed: HashMap<StreamId, ()> = HashMap::new();
    let mut discover = tokio::time::interval(DISCOVER);
    let mut printed = 0;
    loop {
        tokio::select! {
            _ = discover.tick() => {
                for stream in source.streams(printer).await? {
                    if followed.insert(stream, ()).is_none() {
                        let known = positions.entry(stream.to_string());
                        let position = known.or_insert_with(|| Position::start(stream, Some(key)));
                        if position.key() != Some(key) {
                            bail!("{stream}: the position file is of another log");
                        }
                        follow(coordinator, stream, position.head().segments, sender.clone());
                    }
                }
            }
            Some((stream, segment)) = segments.recv() => {
                let Segment { index, bytes } = segment?;
                let position = positions
                    .entry(stream.to_string())
                    .or_insert_with(|| Position::start(stream, Some(key)));
                printed += print(stream, position, index, &bytes, key, args.format)?;
                if let Some(path) = &args.position {
                    write_whole(path, &serde_json::to_vec(&positions)?)?;
                }
                if args.limit.is_some_and(|limit| printed >= limit) {
                    return Ok(());
                }
            }
        }
    }
}

fn follow(
    coordinator: &Coordinator,
    stream: StreamId,
    from: u64,
    sender: mpsc::Sender<(StreamId, anyhow::Result<Segment>)>,
) {
    let mut history = coordinator.history();
    tokio::spawn(async move {
        let request = SegmentsRequest { stream: stream.to_string(), from, follow: true };
        let mut segments = match history.segments(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let _ = sender.send((stream, Err(failure(status)))).await;
                return;
            }
        };
        loop {
            let item = match segments.message().await {
                Ok(Some(segment)) => Ok(segment),
                Ok(None) => Err(anyhow::anyhow!("the Coordinator stops; start the watch again")),
                Err(status) => Err(failure(status)),
            };
            let last = item.is_err();
            if sender.send((stream, item)).await.is_err() || last {
                return;
            }
        }
    });
}

fn print(
    stream: StreamId,
    position: &mut Position,
    index: u64,
    bytes: &[u8],
    key: LogPublicKey,
    format: Format,
) -> anyhow::Result<u64> {
    let verified = position
        .advance(index, bytes)
        .map_err(|error| Refused(format!("the log does not verify: {error}")))?;
    let log = LogId::new(key);
    let mut out = std::io::stdout().lock();
    for (sequence, raw) in (verified.first..).zip(&verified.events) {
        let event = Event::from_cbor(raw)?;
        let line = match format {
            Format::Jsonl => record::native(stream, sequence, &event, raw),
            Format::Ocsf => record::ocsf(&log, stream, sequence, &event, raw),
            Format::Cloudevents => record::cloud_event(&log, stream, sequence, &event, raw),
        };
        writeln!(out, "{line}").context("cannot write")?;
    }
    out.flush().context("cannot write")?;
    Ok(verified.events.len() as u64)
}
