//! The list of mesh peers that follows from the history: see [`continuity::Peers`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use continuity::{OlderCa, Peers};
use manifest::{Manifest, PolicyEntry, PolicyHash};

use super::state::{Active, SignedPeers, State};

/// The list as of this state, signed; `known` where it says the same already.
pub(super) fn signed(
    state: &State,
    active: &Active,
    known: Option<Arc<SignedPeers>>,
) -> Option<Arc<SignedPeers>> {
    if let Some(known) = known.filter(|known| {
        known.list.number == state.peers_number() && known.list.mesh_ca == active.ca.mesh_der()
    }) {
        return Some(known);
    }
    let list = list(state, active);
    match list.sign(active.ca.intermediate_der(), |message| active.ca.mesh_key().sign(message)) {
        Ok(bytes) => Some(Arc::new(SignedPeers { list, bytes })),
        Err(error) => {
            tracing::error!(%error, "no list of mesh peers");
            None
        }
    }
}

fn list(state: &State, active: &Active) -> Peers {
    let (policies, oldest) = named_without_a_gap(state, active);
    let (newest, before) =
        state.authorities().split_last().map_or((None, [].as_slice()), |(last, rest)| (Some(last), rest));
    let older = before.iter().filter(|ca| ca.generation >= oldest);
    let older = older.map(|ca| OlderCa { generation: ca.generation, certificate: ca.mesh.clone() });
    Peers {
        number: state.peers_number(),
        generation: active.generation,
        mesh_ca: newest.map_or_else(|| active.ca.mesh_der().to_vec(), |ca| ca.mesh.clone()),
        older: older.collect(),
        policies,
        evicted_policies: state.evicted().policies.clone(),
        evicted_keys: state.evicted().keys.clone(),
    }
}

/// For each policy of the manifest in force, the first of the manifests in a row up to it that name it with the same
/// rights; and the oldest manifest whose certificates may count at all. A change of who may be a Coordinator ends the
/// row for everybody: an earlier Coordinator may have issued to anybody.
fn named_without_a_gap(state: &State, active: &Active) -> (BTreeMap<PolicyHash, u64>, u64) {
    let newest = active.generation;
    let is_evicted = |policy: &PolicyHash| state.evicted().policies.contains(policy);
    let mut since: BTreeMap<PolicyHash, u64> = active
        .manifest
        .policies
        .keys()
        .filter(|policy| !is_evicted(policy))
        .map(|policy| (*policy, newest))
        .collect();
    let mut alive: BTreeSet<PolicyHash> = since.keys().copied().collect();
    let earliest = state.authorities().first().map_or(newest, |ca| ca.generation);
    let mut oldest = newest;
    let mut later = Manifest::clone(&active.manifest);
    for (index, bytes) in active.manifests.iter().enumerate().rev().skip(1) {
        let generation = index as u64 + 1;
        if generation < earliest || alive.is_empty() {
            break;
        }
        // What another version accepted and this one cannot read vouches for nobody.
        let Ok(manifest) = Manifest::read(bytes) else { break };
        if !manifest.same_coordinators(&later) {
            break;
        }
        alive.retain(|policy| {
            let entries = (manifest.policies.get(policy), later.policies.get(policy));
            matches!(entries, (Some(then), Some(now)) if has_no_more_rights(then, now))
        });
        for policy in &alive {
            since.insert(*policy, generation);
        }
        (oldest, later) = (generation, manifest);
    }
    (since, oldest)
}

/// Whether a certificate by the earlier entry says nothing that the later one does not.
fn has_no_more_rights(then: &PolicyEntry, now: &PolicyEntry) -> bool {
    then.workload_secret_id == now.workload_secret_id && then.sans.iter().all(|san| now.sans.contains(san))
}
