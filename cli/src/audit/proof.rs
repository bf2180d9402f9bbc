//! Inclusion proofs that a third party can check.

use std::path::Path;

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use manifest::SerialNumber;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use storage_schema::{
    Checkpoint, Event, LogId,
    export::base64,
    merkle::{Hash, leaf_hash, verify_inclusion},
};
use wire::history::ProveRequest;

use super::record;
use crate::{
    client::failure,
    files::read,
    printer::{Printer, Refused},
    source::{From, Source},
};

/// The file. `event` is what was proven; `readable` repeats it.
#[derive(Serialize, Deserialize)]
struct Proof {
    version: u32,
    /// Verifier key.
    log: String,
    /// C2SP checkpoint of the event's stream.
    checkpoint: String,
    sequence: u64,
    /// Base64.
    event: String,
    /// RFC 6962 path, base64.
    inclusion: Vec<String>,
    readable: Value,
}

pub(super) async fn prove(
    serial: SerialNumber,
    out: Option<&Path>,
    from: &From,
    printer: &Printer,
) -> anyhow::Result<()> {
    let (source, key) = from.open(printer).await?;
    let Source::Live { coordinator, .. } = source else {
        anyhow::bail!("a proof ends in a checkpoint, which a live Coordinator signs: give --coordinator");
    };
    let request = ProveRequest { serial: serial.as_bytes().to_vec() };
    let answer = coordinator.log().prove(request).await.map_err(failure)?.into_inner();
    let event = Event::from_cbor(&answer.event)?;
    let proof = Proof {
        version: 1,
        log: LogId::new(key).to_string(),
        checkpoint: answer.checkpoint,
        sequence: answer.sequence,
        readable: record::native(answer.stream.parse()?, answer.sequence, &event, &answer.event),
        event: BASE64_STANDARD.encode(answer.event),
        inclusion: answer.inclusion.iter().map(|node| BASE64_STANDARD.encode(node)).collect(),
    };
    verify(&proof, LogId::new(key)).context("the Coordinator's proof does not hold")?;
    let text = serde_json::to_string_pretty(&proof)?;
    match out {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            printer.note(&format!(
                "proof written to {}; pin the log when checking: --log-key '{}'",
                path.display(),
                proof.log
            ));
            Ok(())
        }
        None => printer.result(&text, &proof),
    }
}

pub(super) fn check(file: &Path, pinned: Option<LogId>, printer: &Printer) -> anyhow::Result<()> {
    let proof: Proof = serde_json::from_slice(&read(file)?).with_context(|| file.display().to_string())?;
    let named: LogId = proof.log.parse().with_context(|| file.display().to_string())?;
    if pinned.is_none() {
        printer.warning(&format!(
            "the proof names its own log, so a forged one would pass; pin it: --log-key '{named}'"
        ));
    }
    let log = pinned.unwrap_or(named);
    let (checkpoint, event) =
        verify(&proof, log).map_err(|error| Refused(format!("{}: {error:#}", file.display())))?;
    let text = format!(
        "Proven: {} at {}\n  event {} of stream {}, below the tree head of {} events\n  {}\n  log {log}",
        event.fact.kind(),
        event.at,
        proof.sequence,
        checkpoint.stream,
        checkpoint.size,
        serde_json::to_string(&proof.readable["fact"]["sans"])?,
    );
    printer.result(&text, &proof.readable)
}

fn verify(proof: &Proof, log: LogId) -> anyhow::Result<(Checkpoint, Event)> {
    anyhow::ensure!(proof.version == 1, "proof version {}, this is 1", proof.version);
    let checkpoint = Checkpoint::open(&proof.checkpoint, log)?;
    let raw = base64(&proof.event).map_err(anyhow::Error::msg)?;
    let node = |node: &String| {
        let node = base64(node).map_err(anyhow::Error::msg)?;
        Hash::try_from(node).ok().context("a node is not 32 bytes long")
    };
    let path: Vec<Hash> = proof.inclusion.iter().map(node).collect::<anyhow::Result<_>>()?;
    let Checkpoint { stream, size, root, .. } = &checkpoint;
    let holds = verify_inclusion(&leaf_hash(&raw), proof.sequence, *size, &path, root);
    anyhow::ensure!(holds, "the event is not in the log, or not at this place");
    let event = Event::from_cbor(&raw)?;
    let truth = record::native(*stream, proof.sequence, &event, &raw);
    anyhow::ensure!(truth == proof.readable, "the readable part is not what was proven");
    Ok((checkpoint, event))
}
