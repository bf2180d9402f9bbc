//! `contrast audit watch`: events as they are recorded.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use keys::LogPublicKey;
use storage_schema::{Event, LogId, Position, StreamId};
use wire::history::{Segment, SegmentsRequest};

use super::{
    export::write_whole,
    ocsf,
    record::{self, Format},
};
use crate::{
    client::failure,
    printer::{Printer, Refused},
    source::{From, Source},
};

/// How often events are looked for.
const LOOK: Duration = Duration::from_millis(500);
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

fn position_in(positions: &mut Positions, stream: StreamId, key: LogPublicKey) -> &mut Position {
    positions.entry(stream.to_string()).or_insert_with(|| Position::start(stream, Some(key)))
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let (source, key) = args.from.open(printer).await?;
    let Source::Live { coordinator, .. } = &source else { bail!("only a live Coordinator can be watched") };
    let mut positions: Positions = match &args.position {
        Some(path) if path.exists() => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| path.display().to_string())?
        }
        _ => Positions::new(),
    };
    let (mut streams, mut looked) = (Vec::new(), None);
    let mut printed = 0;
    loop {
        if looked.is_none_or(|at: Instant| at.elapsed() > DISCOVER) {
            streams = source.streams(printer).await?;
            looked = Some(Instant::now());
        }
        // One after the other: there are as many as replicas that ever started.
        for stream in &streams {
            let position = position_in(&mut positions, *stream, key);
            if position.key() != Some(key) {
                bail!("{stream}: the position file is of another log");
            }
            let from = position.head().segments;
            let request = SegmentsRequest { stream: stream.to_string(), from, follow: false };
            let mut segments = coordinator.log().segments(request).await.map_err(failure)?.into_inner();
            while let Some(Segment { index, bytes }) = segments.message().await.map_err(failure)? {
                let position = position_in(&mut positions, *stream, key);
                printed += print(*stream, position, index, &bytes, key, args.format)?;
                if let Some(path) = &args.position {
                    write_whole(path, &serde_json::to_vec(&positions)?)?;
                }
                if args.limit.is_some_and(|limit| printed >= limit) {
                    return Ok(());
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
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
            Format::Ocsf => ocsf::line(&log, stream, sequence, &event, raw),
            Format::Cloudevents => record::cloud_event(&log, stream, sequence, &event, raw),
        };
        writeln!(out, "{line}").context("cannot write")?;
    }
    out.flush().context("cannot write")?;
    Ok(verified.events.len() as u64)
}
