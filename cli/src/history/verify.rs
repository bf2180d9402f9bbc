//! `contrast history verify`: the whole log, as far as it may be read.

use std::collections::BTreeMap;

use serde::Serialize;
use storage_schema::{Fact, Head, LogId, Position, StreamHead, StreamId, merkle::Frontier};

use crate::{
    printer::{Printer, Refused},
    source::From,
};

#[derive(Serialize)]
struct Outcome {
    log: String,
    streams: Vec<Verified>,
    checkpoints: u64,
}

#[derive(Serialize)]
struct Verified {
    stream: String,
    events: u64,
    segments: u64,
    tree_head: String,
}

pub(super) async fn run(from: &From, printer: &Printer) -> anyhow::Result<()> {
    let (source, key) = from.open(printer).await?;
    let mut covered: BTreeMap<StreamId, Vec<StreamHead>> = BTreeMap::new();
    let (mut streams, mut checkpoints) = (Vec::new(), 0);
    for stream in source.streams(printer).await? {
        let step = printer.step(&format!("Stream {stream}"));
        let mut position = Position::start(stream, Some(key));
        // The heads that checkpoints of the control stream demand of this one, smallest first.
        let mut demanded = covered.remove(&stream).unwrap_or_default().into_iter().peekable();
        let mut tree = Frontier::default();
        source
            .each_segment(&mut position, u64::MAX, |_, events, encoded| {
                for ((_, event), encoded) in events.iter().zip(encoded) {
                    tree.push(storage_schema::merkle::leaf_hash(encoded));
                    while let Some(head) = demanded.next_if(|head| head.size <= tree.size()) {
                        if head.size == tree.size() && head.root != tree.root() {
                            return Err(rewritten(&head));
                        }
                    }
                    if let Fact::Checkpoint { heads } = &event.fact {
                        checkpoints += 1;
                        for head in heads {
                            covered.entry(head.stream).or_default().push(head.clone());
                        }
                    }
                }
                Ok(())
            })
            .await?;
        if let Some(head) = demanded.next() {
            return Err(rewritten(&head));
        }
        let Head { size, segments, root, .. } = position.head();
        step.done(&format!("{size} events in {segments} segments"));
        streams.push(Verified {
            stream: stream.to_string(),
            events: size,
            segments,
            tree_head: hex::encode(root),
        });
    }
    let outcome = Outcome { log: LogId::new(key).to_string(), streams, checkpoints };
    let mut text = format!("Verified: log {}\n", outcome.log);
    for Verified { stream, events, tree_head, .. } in &outcome.streams {
        text += &format!("  {stream}: {events} events, tree head {tree_head}\n");
    }
    printer.result(&text, &outcome)
}

fn rewritten(head: &StreamHead) -> anyhow::Error {
    let StreamHead { stream, size, root } = head;
    let text = format!(
        "the log does not verify: a checkpoint covers {size} events of stream {stream} with the tree head {}; \
         the stream has others or fewer",
        hex::encode(root)
    );
    Refused(text).into()
}
