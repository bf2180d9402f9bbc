//! Exchanges signed heads with the peers: a store that shows two replicas two pasts cannot hide it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actors::Active;

use super::{
    connection::Peers,
    heads::{judge, own_head},
};
use crate::desk::Peer;

/// A peer with another history, which is not among the peers here, would have asked within so many rounds.
const QUIET_ROUNDS: u32 = 3;

pub(super) async fn keep(peers: &Peers, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Ok(active) = peers.desk.in_force() else { continue };
        let addresses = peers.discovery.peers().await;
        peers.desk.standing.retain_peers(&addresses);
        let (mut agreeing, mut others) = (0, 0);
        for address in addresses {
            let outcome = exchange(peers, &address, &active).await;
            if let Err(error) = &outcome {
                tracing::debug!(peer = %address, error = %format!("{error:#}"), "no heads exchanged");
            }
            if matches!(&outcome, Ok(peer) if peer.replica == peers.desk.replica.to_string()) {
                continue; // this replica itself, under a name that stands for all of them
            }
            (agreeing, others) = (agreeing + u32::from(outcome.is_ok()), others + 1);
            peers.desk.standing.peer(&address, outcome.map_err(|error| format!("{error:#}")));
        }
        if let Some(since) = Instant::now().checked_sub(every * QUIET_ROUNDS)
            && others > 0
            && agreeing == others
        {
            peers.desk.standing.agreed(since);
        }
    }
}

async fn exchange(peers: &Peers, address: &str, active: &Arc<Active>) -> anyhow::Result<Peer> {
    let mut client = peers.connect(address, &active.manifest).await?;
    let ours = own_head(&peers.desk).await?;
    let answer = client.exchange(ours).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let answer = answer.into_inner();
    let size = judge(&peers.desk, active, &answer, address).await?;
    Ok(Peer {
        replica: hex::encode(&answer.replica),
        control_events: size,
        answered: Some(Instant::now()),
        error: String::new(),
    })
}
