//! `contrast audit verify`: an export, checked by nothing but itself and the log's key.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    path::Path,
};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use storage_schema::{
    BlobHash, Event, Fact, LogId, Position, StreamId,
    export::{ExportError, ExportFile, Line, Taken, base64, segment},
    merkle::Frontier,
};

use super::{
    evidence::{Judge, Verdict},
    filtered, record,
};
use crate::printer::{Printer, Refused};

#[derive(Default, Serialize)]
struct Outcome {
    log: String,
    filtered: bool,
    events: u64,
    segments: u64,
    certificates_verified_again: u64,
    certificates_not_repeatable: u64,
    /// Streams, or beginnings of them, that no replica's key signed: of versions before replicas signed.
    signed_by_log_key_alone: Vec<String>,
    streams: BTreeMap<String, u64>,
}

pub(crate) fn run(file: &Path, pinned: Option<LogId>, printer: &Printer) -> anyhow::Result<()> {
    let (log, filtered) = ExportFile(file).log()?;
    match pinned {
        Some(pinned) if pinned != log => {
            return Err(Refused(format!("the export is of the log {log}, not of {pinned}")).into());
        }
        Some(_) => {}
        None => printer.warning(&format!(
            "the export names its own key, so a forged one would pass; pin it: --log-key '{log}'"
        )),
    }
    let progress = printer.progress("events", None);
    let mut check = Check::new(log, filtered);
    let outcome = ExportFile(file).each_line(|line| {
        progress.set_position(check.outcome.events);
        check.line(line).map_err(|error| Taken::<ExportError>::Bad(format!("{error:#}")))?;
        Ok(ControlFlow::Continue(()))
    });
    progress.finish_and_clear();
    let outcome = outcome.map_err(anyhow::Error::from).and_then(|()| check.end());
    outcome.map_err(|error| Refused(format!(
            "the export does not verify: {error:#}\n  next: export again from the Coordinator and compare; keep this file, it \
             is evidence"
        )))?;
    let outcome = check.outcome;
    let mut text = format!(
        "Verified: {} events in {} segments, log {log}\n  {} certificates: evidence verified once more against the \
         manifest in force\n",
        outcome.events, outcome.segments, outcome.certificates_verified_again
    );
    if outcome.certificates_not_repeatable > 0 {
        text += &format!(
            "  {} certificates of an older version, which did not record the nonce\n",
            outcome.certificates_not_repeatable
        );
    }
    if !outcome.signed_by_log_key_alone.is_empty() {
        text += &format!(
            "  signed by the log's key alone, as versions before replicas signed left it: {}. Whoever owns the seed, or \
             enough shares of it, could have written that\n",
            outcome.signed_by_log_key_alone.join(", ")
        );
    }
    if filtered {
        text += "  filtered: what is there is genuine; events were left out\n";
    }
    for (stream, events) in &outcome.streams {
        text += &format!("  {stream}: {events} events\n");
    }
    printer.result(&text, &outcome)
}

fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    base64(text).map_err(anyhow::Error::msg)
}

/// An event line that waits for its segment.
struct Unproven {
    raw: Vec<u8>,
    readable: Map<String, Value>,
}

struct Check {
    log: LogId,
    filtered: bool,
    outcome: Outcome,
    positions: HashMap<StreamId, Position>,
    waiting: HashMap<StreamId, Vec<Unproven>>,
    /// Manifests and policies stay; evidence goes when its certificate was judged.
    blobs: HashMap<BlobHash, Vec<u8>>,
    judge: Judge,
    by_log_alone: BTreeSet<StreamId>,
}

impl Check {
    fn new(log: LogId, filtered: bool) -> Self {
        let outcome = Outcome { log: log.to_string(), filtered, ..Outcome::default() };
        Self {
            log,
            filtered,
            outcome,
            positions: HashMap::new(),
            waiting: HashMap::new(),
            blobs: HashMap::new(),
            judge: Judge::default(),
            by_log_alone: BTreeSet::new(),
        }
    }

    fn line(&mut self, line: Line) -> anyhow::Result<()> {
        match line {
            Line::Export { .. } => Ok(()),
            Line::Blob { hash, content } => {
                let content = bytes(&content)?;
                let found = BlobHash::of(&content);
                ensure!(found.to_string() == hash, "the blob's content has the hash {found}, not {hash}");
                self.blobs.insert(found, content);
                Ok(())
            }
            Line::Event { stream, raw, mut readable } => {
                let id: StreamId = stream.parse()?;
                readable.insert("type".into(), "event".into());
                readable.insert("stream".into(), stream.into());
                readable.insert("raw".into(), raw.clone().into());
                self.waiting.entry(id).or_default().push(Unproven { raw: bytes(&raw)?, readable });
                Ok(())
            }
            Line::Segment { stream, index, signed_head, before, leaves } => {
                let stream: StreamId = stream.parse()?;
                let events = self.waiting.remove(&stream).unwrap_or_default();
                let head = bytes(&signed_head)?;
                let first_of_each = if self.filtered {
                    let (before, leaves) =
                        before.zip(leaves).context("a filtered segment without its tree")?;
                    self.filtered_segment(stream, &head, before, &leaves, &events)?
                } else {
                    self.whole_segment(stream, index, &head, &events)?
                };
                self.outcome.segments += 1;
                for (sequence, event) in first_of_each.into_iter().zip(events) {
                    self.event(stream, sequence, &event)?;
                }
                Ok(())
            }
        }
    }

    /// A segment of a whole export: the next one of its stream. Gives the events' places.
    fn whole_segment(
        &mut self,
        stream: StreamId,
        index: u64,
        head: &[u8],
        events: &[Unproven],
    ) -> anyhow::Result<Vec<u64>> {
        let raw: Vec<Vec<u8>> = events.iter().map(|event| event.raw.clone()).collect();
        let bytes = segment(head, &raw);
        let start = || Position::start(stream, Some(self.log.key()));
        let position = self.positions.entry(stream).or_insert_with(start);
        let first = position.advance(index, &bytes)?.first;
        if !position.is_signed_by_replicas() {
            self.by_log_alone.insert(stream);
        }
        Ok((first..).take(events.len()).collect())
    }

    /// A segment of a filtered export: with the leaf hashes of what was left out, it yields the head.
    fn filtered_segment(
        &self,
        stream: StreamId,
        head: &[u8],
        before: Frontier,
        leaves: &[Option<String>],
        events: &[Unproven],
    ) -> anyhow::Result<Vec<u64>> {
        let events = events.iter().map(|event| event.raw.as_slice());
        filtered::places(self.log.key(), stream, head, before, leaves, events)
    }

    /// An event that is proven to be in the log: is its readable form true, and was it rightly so?
    fn event(&mut self, stream: StreamId, sequence: u64, unproven: &Unproven) -> anyhow::Result<()> {
        let event = Event::from_cbor(&unproven.raw)?;
        let place = || format!("stream {stream}, event {sequence}");
        let truth = record::native(stream, sequence, &event, &unproven.raw);
        ensure!(
            truth.as_object() == Some(&unproven.readable),
            "{}: what the line says is not what was signed",
            place()
        );
        self.judge.authority(&event.fact);
        match &event.fact {
            fact @ Fact::ManifestSet { manifest, .. } => {
                let blob = self.blobs.get(&BlobHash::from_bytes(*manifest.as_bytes()));
                self.judge.manifest_set(fact, blob).with_context(place)?;
            }
            Fact::CertificateIssued { evidence, .. } => {
                let blob = self.blobs.remove(&BlobHash::from_bytes(*evidence.as_bytes()));
                match self.judge.certificate_issued(&event, blob.as_ref()).with_context(place)? {
                    Verdict::Repeated => self.outcome.certificates_verified_again += 1,
                    Verdict::NotRepeatable => self.outcome.certificates_not_repeatable += 1,
                }
            }
            Fact::ReplicaVouched { evidence, .. } => {
                let blob = self.blobs.remove(&BlobHash::from_bytes(*evidence.as_bytes()));
                self.judge.replica_vouched(&event, blob).with_context(place)?;
            }
            fact @ Fact::Checkpoint { .. } => self.judge.checkpoint(fact),
            fact @ Fact::ServiceCertificateIssued { .. } => {
                self.judge.service_certificate_issued(fact).with_context(place)?;
            }
            _ => {}
        }
        self.outcome.events += 1;
        *self.outcome.streams.entry(stream.to_string()).or_default() += 1;
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        for (stream, position) in &self.positions {
            if !self.judge.is_replicas(*stream, position.replica_key())? {
                self.by_log_alone.insert(*stream);
            }
        }
        self.outcome.signed_by_log_key_alone = self.by_log_alone.iter().map(ToString::to_string).collect();
        let left: usize = self.waiting.values().map(Vec::len).sum();
        ensure!(left == 0, "{left} events at the end have no segment: the file is cut off");
        Ok(())
    }
}
