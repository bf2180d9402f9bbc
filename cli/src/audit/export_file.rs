//! Reading an export: lines of JSON, of which nothing is believed before it was verified.
//!
//! Lines, by their `type`: `export` (first, names the log), `blob` (before the events that name it),
//! `event`, and after the events of a segment its `segment` line with the signed head. In a filtered
//! export the segment line also carries the tree before the segment, and the leaf hash of each event
//! that was left out, so that those which are there can still be verified.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use storage_schema::{BlobHash, LogId, StreamId, merkle::Frontier};

/// Longest line, in bytes: a blob of 16 MiB in base64, and more.
const MAX_LINE: u64 = 32 << 20;

/// What a line says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Line {
    /// The first.
    Export {
        /// Of this format.
        version: u32,
        /// The log's verifier key.
        log: String,
        /// When it was made.
        made: String,
        /// Whether events are left out.
        filtered: bool,
    },
    /// Content that events name by hash.
    Blob {
        /// SHA-256, hex.
        hash: String,
        /// Base64.
        content: String,
    },
    /// See [`super::record::native`].
    Event {
        /// Of this stream.
        stream: String,
        /// Base64.
        raw: String,
        /// The rest, for the reader.
        #[serde(flatten)]
        readable: serde_json::Map<String, Value>,
    },
    /// Ends the events of a segment.
    Segment {
        /// Of this stream.
        stream: String,
        /// Its place.
        index: u64,
        /// Base64.
        signed_head: String,
        /// In a filtered export: the tree before this segment.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Frontier>,
        /// In a filtered export: for each event its leaf hash in base64, or nothing if it is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        leaves: Option<Vec<Option<String>>>,
    },
}

/// Reads a file line by line; an error names the line.
pub(crate) fn each_line(
    file: &Path,
    mut take: impl FnMut(usize, Line) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let place = file.display().to_string();
    let mut reader = BufReader::new(File::open(file).with_context(|| format!("cannot read {place}"))?);
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let read = std::io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut text);
        if read.with_context(|| format!("cannot read {place}"))? == 0 {
            ensure!(number > 1, "{place} is empty");
            return Ok(());
        }
        let at = || format!("{place}, line {number}");
        ensure!(text.ends_with(b"\n"), "{}: cut off or longer than {MAX_LINE} bytes", at());
        let line: Line = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not a line of `contrast audit export --format jsonl`", at()))?;
        match (&line, number) {
            (Line::Export { version: 1, .. }, 1) => {}
            (Line::Export { version, .. }, 1) => bail!("{}: export version {version}, this is 1", at()),
            (_, 1) => bail!("{}: an export begins with its `export` line", at()),
            (Line::Export { .. }, _) => bail!("{}: a second `export` line", at()),
            _ => {}
        }
        take(number, line).with_context(at)?;
    }
    Ok(())
}

pub(crate) fn base64(text: &str) -> anyhow::Result<Vec<u8>> {
    BASE64_STANDARD.decode(text).context("not base64")
}

/// The log that the file says it is of.
pub(crate) fn log(file: &Path) -> anyhow::Result<(LogId, bool)> {
    let mut found = None;
    let mut first = true;
    each_line(file, |_, line| {
        if let (Line::Export { log, filtered, .. }, true) = (&line, first) {
            found = Some((log.parse::<LogId>()?, *filtered));
        }
        first = false;
        if found.is_some() { bail!("enough") } else { Ok(()) }
    })
    .or_else(|error| if found.is_some() { Ok(()) } else { Err(error) })?;
    found.context("no `export` line")
}

/// The streams that have a segment in the file.
pub(crate) fn streams(file: &Path) -> anyhow::Result<Vec<StreamId>> {
    let mut streams = BTreeSet::new();
    each_line(file, |_, line| {
        if let Line::Segment { stream, .. } = line {
            streams.insert(stream.parse::<StreamId>()?);
        }
        Ok(())
    })?;
    Ok(streams.into_iter().collect())
}

/// The segments of a stream as they were stored, put together from their parts.
pub(crate) fn each_segment(
    file: &Path,
    wanted: StreamId,
    mut take: impl FnMut(u64, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut events: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    each_line(file, |_, line| match line {
        Line::Export { filtered: true, .. } => bail!("a filtered export is not a whole log"),
        Line::Event { stream, raw, .. } => {
            let raw = base64(&raw)?;
            let length = u32::try_from(raw.len()).context("too long an event")?;
            let events = events.entry(stream).or_default();
            events.extend_from_slice(&length.to_be_bytes());
            events.extend_from_slice(&raw);
            Ok(())
        }
        Line::Segment { stream, index, signed_head, .. } => {
            let events = events.remove(&stream).unwrap_or_default();
            if stream.parse::<StreamId>()? != wanted {
                return Ok(());
            }
            take(index, &[base64(&signed_head)?, events].concat())
        }
        Line::Export { .. } | Line::Blob { .. } => Ok(()),
    })
}

/// Content by hash, in the order asked for.
pub(crate) fn blobs(file: &Path, hashes: &[BlobHash]) -> anyhow::Result<Vec<Vec<u8>>> {
    let wanted: BTreeSet<String> = hashes.iter().map(ToString::to_string).collect();
    let mut found = HashMap::new();
    each_line(file, |_, line| {
        if let Line::Blob { hash, content } = line
            && wanted.contains(&hash)
        {
            found.insert(hash, base64(&content)?);
        }
        Ok(())
    })?;
    let blob = |hash: &BlobHash| {
        found.get(&hash.to_string()).cloned().with_context(|| format!("blob {hash} is not in the export"))
    };
    hashes.iter().map(blob).collect()
}
