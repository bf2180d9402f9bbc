//! The heads that replicas show each other: this one's own, and the verdict on another one's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actors::Active;
use anyhow::Context as _;
use storage_schema::{EventStore as _, LogError, StreamId, open_signed_head, signed_head};
use wire::replica::Head as WireHead;

use crate::desk::{Desk, Failure, STALE_AFTER};

/// The head of the control stream here, signed: of the verified copy, which a shared store that lies now
/// cannot take back.
pub(super) async fn own_head(desk: &Desk) -> Result<WireHead, Failure> {
    let read = |desk: &Desk| {
        let control = StreamId::Control;
        let segments = match desk.store.copied(&control)? {
            0 => desk.archive.head(control, None)?.segments, // this replica joined a moment ago
            copied => copied,
        };
        let Some(last) = segments.checked_sub(1) else { return Ok(Vec::new()) };
        let segment = desk.store.read(&control, last, 1)?.into_iter().next();
        let signed = segment.and_then(|(_, bytes)| signed_head(&bytes).map(<[u8]>::to_vec));
        Ok(signed.unwrap_or_default())
    };
    let signed_head = desk.blocking(read).await?;
    Ok(WireHead { signed_head, replica: desk.replica.as_bytes().to_vec() })
}

/// Holds a peer's head against the control stream here. Gives its number of events.
pub(super) async fn judge(
    desk: &Desk,
    active: &Arc<Active>,
    theirs: &WireHead,
    from: &str,
) -> anyhow::Result<u64> {
    let key = active.engine.log_key().public();
    let (head, _, _) = open_signed_head(&theirs.signed_head, Some(key)).context("the peer's head")?;
    if head.stream != StreamId::Control {
        anyhow::bail!("the peer showed the head of stream {}", head.stream);
    }
    let shown = Instant::now();
    loop {
        let archive = Arc::clone(&desk.archive);
        let size = head.size;
        let root = tokio::task::spawn_blocking(move || archive.root_at(StreamId::Control, Some(key), size));
        match root.await? {
            Ok(root) if root == head.root => return Ok(head.size),
            Ok(root) => {
                desk.standing.forked();
                let (ours, theirs) = (hex::encode(root), hex::encode(head.root));
                let text = format!(
                    "the history forked: over {size} events of the control stream the tree head is {ours} here \
                     and {theirs} at {from}; both are signed by this deployment's key"
                );
                desk.standing.alarm(text.clone());
                anyhow::bail!(text);
            }
            // It may be on its way to us, but not for ever.
            Err(LogError::Beyond { size: ours, .. }) => {
                if shown.elapsed() > STALE_AFTER {
                    if !desk.standing.knows_what_was_there(shown) {
                        anyhow::bail!("{from} knows more, and the store does not answer here");
                    }
                    let text = format!(
                        "{from} has a signed head of {size} events of the control stream, the store shows {ours} \
                         here: it was rolled back or hides the rest"
                    );
                    desk.standing.forked();
                    desk.standing.alarm(text.clone());
                    anyhow::bail!(text);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
