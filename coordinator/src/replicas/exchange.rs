//! Exchanges signed heads with the peers: a store that shows two replicas two pasts cannot hide it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actors::{Active, Phase};
use anyhow::Context as _;
use storage_schema::{LogError, StreamId, open_signed_head};
use wire::replica::Head as WireHead;

use super::{
    api::own_head,
    connection::Peers,
    standing::{Peer, STALE_AFTER},
};
use crate::wiring::Actors;

/// A peer with another history, which is not among the peers here, would have asked within so many rounds.
const QUIET_ROUNDS: u32 = 3;

pub(super) async fn keep(peers: &Peers, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let phase = peers.actors.snapshot.borrow().phase.clone();
        let Phase::Active(active) = phase else { continue };
        let addresses = peers.discovery.peers().await;
        peers.actors.standing.retain_peers(&addresses);
        let (mut agreeing, mut others) = (0, 0);
        for address in addresses {
            let outcome = exchange(peers, &address, &active).await;
            if let Err(error) = &outcome {
                tracing::debug!(peer = %address, error = %format!("{error:#}"), "no heads exchanged");
            }
            if matches!(&outcome, Ok(peer) if peer.replica == peers.actors.replica.to_string()) {
                continue; // this replica itself, under a name that stands for all of them
            }
            (agreeing, others) = (agreeing + u32::from(outcome.is_ok()), others + 1);
            peers.actors.standing.peer(&address, outcome.map_err(|error| format!("{error:#}")));
        }
        if let Some(since) = Instant::now().checked_sub(every * QUIET_ROUNDS)
            && others > 0
            && agreeing == others
        {
            peers.actors.standing.agreed(since);
        }
    }
}

async fn exchange(peers: &Peers, address: &str, active: &Arc<Active>) -> anyhow::Result<Peer> {
    let mut client = peers.connect(address, &active.manifest).await?;
    let ours = own_head(&peers.actors).await?;
    let answer = client.exchange(ours).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let answer = answer.into_inner();
    let size = judge(&peers.actors, active, &answer, address).await?;
    Ok(Peer {
        replica: hex::encode(&answer.replica),
        control_events: size,
        answered: Some(Instant::now()),
        error: String::new(),
    })
}

/// Holds a peer's head against the control stream here. Gives its number of events.
pub(super) async fn judge(
    actors: &Actors,
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
        let archive = Arc::clone(&actors.archive);
        let size = head.size;
        let root = tokio::task::spawn_blocking(move || archive.root_at(StreamId::Control, Some(key), size));
        match root.await? {
            Ok(root) if root == head.root => return Ok(head.size),
            Ok(root) => {
                actors.standing.forked();
                let (ours, theirs) = (hex::encode(root), hex::encode(head.root));
                let text = format!(
                    "the history forked: over {size} events of the control stream the tree head is {ours} here \
                     and {theirs} at {from}; both are signed by this deployment's key"
                );
                actors.standing.alarm(text.clone());
                anyhow::bail!(text);
            }
            // It may be on its way to us, but not for ever.
            Err(LogError::Beyond { size: ours, .. }) => {
                if shown.elapsed() > STALE_AFTER {
                    if !actors.standing.knows_what_was_there(shown) {
                        anyhow::bail!("{from} knows more, and the store does not answer here");
                    }
                    let text = format!(
                        "{from} has a signed head of {size} events of the control stream, the store shows {ours} \
                         here: it was rolled back or hides the rest"
                    );
                    actors.standing.forked();
                    actors.standing.alarm(text.clone());
                    anyhow::bail!(text);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
