//! Exports in which events were left out: what is there is still proven.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use anyhow::{Context as _, ensure};
use keys::LogPublicKey;
use storage_schema::{
    Event, StreamId,
    export::{ExportFile, Line, Taken, base64},
    merkle::{Frontier, Hash, leaf_hash},
    open_signed_head,
};

use crate::source::Recorded;

/// The places of events in a stream: with the leaf hashes of those that were left out, they yield the signed head.
pub(super) fn places<'a>(
    key: LogPublicKey,
    stream: StreamId,
    signed_head: &[u8],
    before: Frontier,
    leaves: &[Option<String>],
    events: impl IntoIterator<Item = &'a [u8]>,
) -> anyhow::Result<Vec<u64>> {
    let (head, _, _) = open_signed_head(signed_head, Some(key))?;
    ensure!(head.stream == stream, "the segment is of stream {}", head.stream);
    let (mut tree, mut events, mut places) = (before, events.into_iter(), Vec::new());
    for leaf in leaves {
        let leaf: Hash = match leaf {
            Some(leaf) => {
                let leaf = base64(leaf).map_err(anyhow::Error::msg)?;
                leaf.try_into().ok().context("a leaf hash is not 32 bytes long")?
            }
            None => {
                places.push(tree.size());
                leaf_hash(events.next().context("an event is missing")?)
            }
        };
        tree.push(leaf);
    }
    ensure!(events.next().is_none(), "there are events that the segment does not have");
    ensure!(
        (tree.size(), tree.root()) == (head.size, head.root),
        "stream {stream}: the events do not yield the signed tree head {}",
        hex::encode(head.root)
    );
    Ok(places)
}

/// The events of a stream that a filtered export holds, each proven to be in the log.
pub(crate) fn events(file: &Path, stream: StreamId, key: LogPublicKey) -> anyhow::Result<Vec<Recorded>> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    let name = stream.to_string();
    let bad = |error: anyhow::Error| Taken::<anyhow::Error>::Bad(format!("{error:#}"));
    ExportFile(file).each_line(|line| {
        match line {
            Line::Event { stream: of, raw, .. } if of == name => {
                waiting.push(base64(&raw).map_err(Taken::Bad)?);
            }
            Line::Segment { stream: of, signed_head, before, leaves, .. } if of == name => {
                let head = base64(&signed_head).map_err(Taken::Bad)?;
                let tree = before.zip(leaves).context("a filtered segment without its tree");
                let (before, leaves) = tree.map_err(bad)?;
                let raws = waiting.iter().map(Vec::as_slice);
                let places = places(key, stream, &head, before, &leaves, raws).map_err(bad)?;
                for (sequence, raw) in places.into_iter().zip(&waiting) {
                    let event = Event::from_cbor(raw).map_err(|error| bad(error.into()))?;
                    found.insert(sequence, event);
                }
                waiting.clear();
            }
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    ensure!(waiting.is_empty(), "{}: events at the end have no segment: it is cut off", file.display());
    Ok(found.into_iter().map(|(sequence, event)| Recorded { stream, sequence, event }).collect())
}
