//! Gets the secrets from a peer, whenever there is a history that this replica has no keys for.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actors::{Adopt, Phase};
use anyhow::Context as _;
use keys::{CaKey, ReplicaSecret, Salt, Seed};
use manifest::{Manifest, TransitionHash};
use storage_schema::Fact;
use wire::replica::JoinRequest;
use zeroize::Zeroizing;

use super::connection::Peers;

/// Pause between two rounds in which no peer could help.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn keep(peers: &Peers) {
    let mut changed = peers.desk.snapshot.clone();
    let mut said = HashMap::new();
    loop {
        if changed.wait_for(|now| matches!(now.phase, Phase::NeedsRecovery)).await.is_err() {
            return;
        }
        if !round(peers, &mut said).await {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Asks one peer after the other.
/// `said` is the last reason that was logged of each: a peer that waits itself says the same each second.
async fn round(peers: &Peers, said: &mut HashMap<String, String>) -> bool {
    let manifest = match peers.latest_manifest().await {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return false,
        Err(error) => {
            tracing::warn!(error = %format!("{error:#}"), "no manifest to verify peers by");
            return false;
        }
    };
    for address in peers.discovery.peers().await {
        match join(peers, &address, &manifest).await {
            Ok(()) => return true,
            Err(error) => {
                let error = format!("{error:#}");
                if said.get(&address) != Some(&error) {
                    tracing::info!(peer = %address, %error, "no secrets from this peer; it is asked again each second");
                    said.insert(address.clone(), error.clone());
                }
                peers.desk.standing.peer(&address, Err(error));
            }
        }
    }
    false
}

async fn join(peers: &Peers, address: &str, manifest: &Arc<Manifest>) -> anyhow::Result<()> {
    let mut client = peers.connect(address, manifest).await?;
    let answer =
        client.join(JoinRequest {}).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let answer = answer.into_inner();
    let (seed, secret) = (Zeroizing::new(answer.seed), Zeroizing::new(answer.replica_secret));
    let mesh_key = Zeroizing::new(String::from_utf8(answer.mesh_ca_key).context("mesh CA key")?);
    let secret =
        <[u8; 32]>::try_from(secret.as_slice()).context("a replica secret of 32 bytes was expected")?;
    let adopt = Adopt {
        seed: Seed::from_bytes(&seed)?,
        salt: Salt::from_bytes(&answer.salt)?,
        replica_secret: ReplicaSecret::from_bytes(secret),
        mesh_key: CaKey::from_sec1_pem(&mesh_key)?,
        transition: TransitionHash::try_from(answer.transition.as_slice())?,
        signed_head: answer.signed_head,
        from: address.to_owned(),
    };
    let outcome = peers.desk.ledger.ask(adopt).await?;
    if let Err(error) = &outcome {
        use actors::AdoptError::{Forked, Head, Key, StoreBehind, WrongSeed};
        if matches!(error, WrongSeed(_) | Head(_) | StoreBehind { .. } | Forked { .. } | Key(_)) {
            peers.desk.standing.alarm(format!("peer {address}: {error}"));
        }
    }
    outcome?;
    if let Ok(active) = peers.desk.in_force() {
        let facts = vec![Fact::RecoveryReceived { from: address.to_owned() }];
        if let Err(error) = peers.desk.record(&active, facts).await {
            tracing::error!(%error, "that the secrets came from a peer could not be recorded");
        }
    }
    Ok(())
}
