//! What an auditor's own tool needs: it verifies an export and counts the certificates of each policy.
//!
//! `contrast audit export --out audit.jsonl` makes the file; the first line of every checkpoint is the log's key. Copy this
//! program, with `storage-schema = { default-features = false }`, and put your own question in the place of the count.
//!
//! ```sh
//! cargo run -p storage-schema --no-default-features --example auditor -- audit.jsonl "$(head -1 checkpoint.note)"
//! ```

use std::{
    collections::BTreeMap, error::Error, fmt::Write as _, io::Write as _, ops::ControlFlow, path::Path,
};

use storage_schema::{
    Event, Fact, LogId, Position, StreamId,
    export::{ExportError, ExportFile, Line, Taken, base64, segment},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(log)) = (arguments.next(), arguments.next()) else {
        return Err("usage: auditor EXPORT LOG-KEY".into());
    };
    std::io::stdout().write_all(audit(Path::new(&file), log.parse()?)?.as_bytes())?;
    Ok(())
}

/// Verifies an export by the log's key, which comes from somewhere else than the export, and says what is in it.
pub(crate) fn audit(file: &Path, log: LogId) -> Result<String, Box<dyn Error>> {
    let (said, filtered) = ExportFile(file).log()?;
    if said != log {
        return Err(format!("{} is an export of the log {said}, not of {log}", file.display()).into());
    }
    if filtered {
        return Err(format!("{} was made with a filter; export the whole log", file.display()).into());
    }
    let mut audit = Audit { log, streams: BTreeMap::new(), certificates: BTreeMap::new() };
    ExportFile(file).each_line(|line| {
        audit.line(line).map_err(|error| Taken::<ExportError>::Bad(error.to_string()))?;
        Ok::<_, Taken<ExportError>>(ControlFlow::Continue(()))
    })?;
    audit.end()?;

    let mut text = String::new();
    for (stream, Stream { position, .. }) in &audit.streams {
        writeln!(text, "stream {stream}: {} events verified", position.head().size)?;
    }
    for (policy, count) in &audit.certificates {
        writeln!(text, "{count} certificates for policy {policy}")?;
    }
    Ok(text)
}

struct Audit {
    log: LogId,
    streams: BTreeMap<StreamId, Stream>,
    certificates: BTreeMap<String, u64>,
}

struct Stream {
    /// How far it is verified.
    position: Position,
    /// Events that wait for the segment that signs them.
    waiting: Vec<Vec<u8>>,
}

impl Audit {
    fn line(&mut self, line: Line) -> Result<(), Box<dyn Error>> {
        match line {
            // Contents are named by their hashes in events; this audit does not ask for any.
            Line::Export { .. } | Line::Blob { .. } => {}
            Line::Event { stream, raw, .. } => self.stream(&stream)?.waiting.push(base64(&raw)?),
            Line::Segment { stream, index, signed_head, .. } => {
                let Stream { position, waiting } = self.stream(&stream)?;
                let bytes = segment(&base64(&signed_head)?, &std::mem::take(waiting));
                // The next segment of its stream, signed with the log's key, with all of its events: or an error.
                let verified = position.advance(index, &bytes)?;
                for event in verified.events {
                    // Believe only this. What else the line says in readable form is not signed.
                    if let Fact::CertificateIssued { policy, .. } = Event::from_cbor(event)?.fact {
                        *self.certificates.entry(policy.to_string()).or_default() += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn stream(&mut self, name: &str) -> Result<&mut Stream, Box<dyn Error>> {
        let stream: StreamId = name.parse()?;
        let start =
            || Stream { position: Position::start(stream, Some(self.log.key())), waiting: Vec::new() };
        Ok(self.streams.entry(stream).or_insert_with(start))
    }

    /// Events at the end that no segment signs would have been added, or cut off from their segment.
    fn end(&self) -> Result<(), Box<dyn Error>> {
        match self.streams.iter().find(|(_, stream)| !stream.waiting.is_empty()) {
            Some((stream, Stream { waiting, .. })) => {
                Err(format!("stream {stream}: {} events at the end have no segment", waiting.len()).into())
            }
            None => Ok(()),
        }
    }
}
