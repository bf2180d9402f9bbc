//! Exports: the log as lines of JSON, of which nothing is believed before it was verified.
//!
//! Lines, by their `type`: `export` (first, names the log), `blob` (before the events that name it),
//! `event`, and after the events of a segment its `segment` line with the signed head. In a filtered
//! export the segment line also carries the tree before the segment, and the leaf hash of each event
//! that was left out, so that those which are there can still be verified.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufRead as _, BufReader},
    ops::ControlFlow,
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{BlobHash, LogId, StreamId, merkle::Frontier};

/// Longest line, in bytes: a blob of 16 MiB in base64, and more.
const MAX_LINE: u64 = 32 << 20;

/// Of this format.
const VERSION: u32 = 1;

/// What a line says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
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
    /// An event. `raw` is what was signed; the rest repeats it for the reader.
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

/// Why an export cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file.
    #[error("cannot read {0}: {1}")]
    Io(String, std::io::Error),
    /// A line that is not one of an export.
    #[error("{file}, line {line}: {what}")]
    Line {
        /// The file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// Something that should be in the file and is not.
    #[error("{file}: {what}")]
    Missing {
        /// The file.
        file: String,
        /// What it lacks.
        what: String,
    },
}

/// Decodes the base64 of a line's field.
pub fn base64(text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(text).map_err(|error| format!("not base64: {error}"))
}

impl Line {
    /// Reads one line, without its end; `number` counts from 1.
    pub fn parse(text: &[u8], number: usize) -> Result<Self, String> {
        let line: Self = serde_json::from_slice(text)
            .map_err(|error| format!("not a line of `contrast audit export --format jsonl`: {error}"))?;
        match (&line, number) {
            (Self::Export { version: VERSION, .. }, 1) => Ok(line),
            (Self::Export { version, .. }, 1) => Err(format!("export version {version}, this is {VERSION}")),
            (_, 1) => Err("an export begins with its `export` line".into()),
            (Self::Export { .. }, _) => Err("a second `export` line".into()),
            _ => Ok(line),
        }
    }
}

/// An export in a file.
pub struct ExportFile<'a>(pub &'a Path);

impl ExportFile<'_> {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn at(&self, line: usize, what: String) -> ExportError {
        ExportError::Line { file: self.name(), line, what }
    }

    /// Reads line by line until `take` says to stop. An error of `take` gets the line's number.
    pub fn each_line<E: From<ExportError>>(
        &self,
        mut take: impl FnMut(Line) -> Result<ControlFlow<()>, Taken<E>>,
    ) -> Result<(), E> {
        let io = |error| ExportError::Io(self.name(), error);
        let mut reader = BufReader::new(File::open(self.0).map_err(io)?);
        let mut text = Vec::new();
        for number in 1.. {
            text.clear();
            let read = std::io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut text).map_err(io)?;
            if read == 0 && number > 1 {
                return Ok(());
            }
            let Some(line) = text.strip_suffix(b"\n") else {
                let what = format!("cut off or longer than {MAX_LINE} bytes");
                return Err(self.at(number, what).into());
            };
            let line = Line::parse(line, number).map_err(|what| self.at(number, what))?;
            match take(line) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(Taken::Bad(what)) => return Err(self.at(number, what).into()),
                Err(Taken::Other(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// The log that the file says it is of, and whether events are left out.
    pub fn log(&self) -> Result<(LogId, bool), ExportError> {
        let mut found = None;
        self.each_line(|line| {
            if let Line::Export { log, filtered, .. } = line {
                let log = log.parse::<LogId>().map_err(|error| Taken::Bad(error.to_string()))?;
                found = Some((log, filtered));
            }
            Ok::<_, Taken<ExportError>>(ControlFlow::Break(()))
        })?;
        found.ok_or_else(|| self.missing("no `export` line".into()))
    }

    fn missing(&self, what: String) -> ExportError {
        ExportError::Missing { file: self.name(), what }
    }

    /// The streams that have a segment in the file.
    pub fn streams(&self) -> Result<Vec<StreamId>, ExportError> {
        let mut streams = BTreeSet::new();
        self.each_line(|line| {
            if let Line::Segment { stream, .. } = line {
                streams.insert(stream_id(&stream)?);
            }
            Ok::<_, Taken<ExportError>>(ControlFlow::Continue(()))
        })?;
        Ok(streams.into_iter().collect())
    }

    /// The segments of a stream as they were stored, put together from their parts.
    pub fn each_segment<E: From<ExportError>>(
        &self,
        wanted: StreamId,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut events = Vec::new();
        self.each_line(|line| {
            match line {
                Line::Export { filtered: true, .. } => {
                    return Err(Taken::Bad("this export was made with a filter, so it is not a whole log: `history` shows its manifests, and `audit verify` checks what is there; for the rest export without --since, --kind, --workload and the like".into()));
                }
                Line::Event { stream, raw, .. } if stream_id(&stream)? == wanted => {
                    events.push(base64(&raw).map_err(Taken::Bad)?);
                }
                Line::Segment { stream, index, signed_head, .. } if stream_id(&stream)? == wanted => {
                    let bytes = segment(&base64(&signed_head).map_err(Taken::Bad)?, &events);
                    events.clear();
                    take(index, &bytes).map_err(Taken::Other)?;
                }
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Content by hash, in the order asked for; not compared with the hash.
    pub fn blobs(&self, hashes: &[BlobHash]) -> Result<Vec<Vec<u8>>, ExportError> {
        let wanted: BTreeSet<String> = hashes.iter().map(ToString::to_string).collect();
        let mut found = HashMap::new();
        self.each_line(|line| {
            if let Line::Blob { hash, content } = line
                && wanted.contains(&hash)
            {
                found.insert(hash, base64(&content).map_err(Taken::Bad)?);
            }
            Ok::<_, Taken<ExportError>>(ControlFlow::Continue(()))
        })?;
        let blob = |hash: &BlobHash| {
            found
                .get(&hash.to_string())
                .cloned()
                .ok_or_else(|| self.missing(format!("blob {hash} is not in it")))
        };
        hashes.iter().map(blob).collect()
    }
}

/// Why a line was not taken.
pub enum Taken<E> {
    /// The line is wrong; the reader adds where.
    Bad(String),
    /// Anything else.
    Other(E),
}

fn stream_id<E>(text: &str) -> Result<StreamId, Taken<E>> {
    text.parse().map_err(|error| Taken::Bad(format!("stream: {error}")))
}

/// A segment from its signed head and its events.
pub fn segment(signed_head: &[u8], events: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = signed_head.to_vec();
    for event in events {
        // Longer ones do not come from a line of at most 32 MiB.
        bytes.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(event);
    }
    bytes
}
