//! Keeps etcd below its quota: what every replica holds a verified copy of, and a checkpoint covers, is
//! deleted there, oldest first. The control stream stays whole. See docs/replicas.md.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use actors::Active;
use anyhow::{Context as _, bail};
use manifest::ReplicaId;
use storage_schema::{EventStore as _, StreamId, removable};
use wire::replica::HeldRequest;

use super::{api::MOST_STREAMS, connection::Peers, options::ReplicaOptions};
use crate::desk::Desk;

/// Exchanges of heads between two looks.
const ROUNDS: u32 = 4;

pub(super) async fn keep(peers: &Peers, options: &ReplicaOptions) {
    let above = options.etcd_trim_above.saturating_mul(1 << 20);
    let mut hindrance = None;
    loop {
        tokio::time::sleep(options.exchange_every() * ROUNDS).await;
        let Ok(active) = peers.desk.in_force() else { continue };
        if !peers.desk.standing.is_current() {
            continue;
        }
        match round(peers, &active, above).await {
            Ok(segments) => {
                hindrance = None;
                if segments > 0 {
                    tracing::info!(segments, "deleted in etcd: every replica holds them");
                }
            }
            // Said once, until something else stands in the way: it may last as long as a peer is away.
            Err(error) => {
                let error = format!("{error:#}");
                if hindrance.as_ref() != Some(&error) {
                    tracing::warn!(error, "etcd holds more than it should, and nothing can be deleted");
                }
                hindrance = Some(error);
            }
        }
    }
}

/// Gives the number of segments that were deleted.
async fn round(peers: &Peers, active: &Arc<Active>, above: u64) -> anyhow::Result<u64> {
    let desk = peers.desk.clone();
    let candidates = tokio::task::spawn_blocking(move || candidates(&desk, above)).await??;
    if candidates.is_empty() {
        return Ok(0);
    }
    let mut held = candidates;
    if !held_by_all(peers, active, &mut held).await? {
        return Ok(0);
    }
    let (desk, active) = (peers.desk.clone(), Arc::clone(active));
    tokio::task::spawn_blocking(move || delete(&desk, &active, &held)).await?
}

/// For each replica stream, the segments that are both in etcd and here, if etcd holds too much.
fn candidates(desk: &Desk, above: u64) -> anyhow::Result<BTreeMap<StreamId, Range<u64>>> {
    let mut found = BTreeMap::new();
    let Some(etcd) = desk.standing.etcd() else { return Ok(found) };
    if etcd.health()?.bytes_in_use < above {
        return Ok(found);
    }
    for stream in etcd.streams()?.into_iter().filter(|stream| *stream != StreamId::Control) {
        let held = desk.standing.held(&stream);
        let Some(first) = etcd.first_index(&stream)? else { continue };
        // The last one stays in any case.
        if first + 1 < held {
            found.insert(stream, first..held);
        }
        if found.len() == MOST_STREAMS {
            break;
        }
    }
    Ok(found)
}

/// Cuts the ranges to what every replica holds. One replica does the work: that of the lowest id.
async fn held_by_all(
    peers: &Peers,
    active: &Arc<Active>,
    ranges: &mut BTreeMap<StreamId, Range<u64>>,
) -> anyhow::Result<bool> {
    let own = peers.desk.replica;
    let request = HeldRequest { streams: ranges.keys().map(StreamId::to_string).collect() };
    let mut others = 0;
    for address in peers.discovery.peers().await {
        let asking = async {
            let mut client = peers.connect(&address, &active.manifest).await?;
            let answer = client.held(request.clone()).await;
            anyhow::Ok(answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner())
        };
        let answer = asking.await.with_context(|| format!("{address} was not heard"))?;
        let replica = ReplicaId::try_from(answer.replica.as_slice())?;
        if replica == own {
            continue; // under a name that stands for all of them
        }
        if replica < own {
            return Ok(false);
        }
        if answer.segments.len() != ranges.len() {
            bail!("{address} answered for {} of {} streams", answer.segments.len(), ranges.len());
        }
        for (range, segments) in ranges.values_mut().zip(answer.segments) {
            range.end = range.end.min(segments);
        }
        others += 1;
    }
    if others == 0 {
        // Two copies are the least: a log on one disk alone would be worse than a full etcd.
        bail!("this replica knows no other one that could hold a copy (--peers, --peers-service)");
    }
    Ok(true)
}

fn delete(desk: &Desk, active: &Arc<Active>, ranges: &BTreeMap<StreamId, Range<u64>>) -> anyhow::Result<u64> {
    let Some(etcd) = desk.standing.etcd() else { return Ok(0) };
    let state = Arc::clone(&desk.snapshot.borrow().state);
    let covered: BTreeMap<StreamId, u64> = state.heads().map(|head| (head.stream, head.size)).collect();
    let mut deleted = 0;
    for (stream, range) in ranges {
        let covered = covered.get(stream).copied().unwrap_or_default();
        let key = active.engine.log_key().public();
        let old = removable(desk.store.local(), *stream, range.clone(), covered, key)?;
        etcd.remove_blobs(&old.blobs)?;
        deleted += etcd.trim(stream, old.segments.end)?;
    }
    Ok(deleted)
}
