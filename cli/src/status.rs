//! `contrast status`.

use std::path::PathBuf;

use serde_json::json;
use wire::replica::{StatusRequest, StatusResponse};

use crate::{
    client::{attested, failure},
    files::read_manifest,
    printer::{Printer, Refused},
    workloads::trusted_workloads,
};

/// Show the replicas of a Coordinator: state, how far each has read, its store, what it was warned of.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A replica, as host:port; give each of them.
    #[arg(long, short, env = "CONTRAST_COORDINATOR", required = true, value_delimiter = ',')]
    coordinator: Vec<String>,
    /// The manifest in force: each replica is verified by it.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let ask = async |address: &String| {
        let coordinator = attested(address, &manifest, None).await?;
        let answer = coordinator.cluster().status(StatusRequest {}).await;
        anyhow::Ok(answer.map_err(failure)?.into_inner())
    };
    let mut found = Vec::new();
    for address in &args.coordinator {
        found.push((address, ask(address).await));
    }
    let most = found.iter().filter_map(|(_, answer)| Some(answer.as_ref().ok()?.control_events)).max();
    let most = most.unwrap_or_default();
    let (mut text, mut values, mut bad) = (String::new(), Vec::new(), 0);
    for (address, answer) in &found {
        match answer {
            Ok(status) => {
                bad += usize::from(status.state != "ready" || !status.alarms.is_empty());
                text.push_str(&describe(address, status, most));
                values.push(value(address, status, most));
            }
            Err(error) => {
                bad += 1;
                text.push_str(&format!("{address}  not reached: {error:#}\n"));
                values.push(json!({ "coordinator": address, "error": format!("{error:#}") }));
            }
        }
    }
    text.push_str(trusted_workloads(&manifest).trim_start_matches('\n'));
    text.push('\n');
    printer.result(&text, &values)?;
    if bad > 0 {
        return Err(Refused(format!("{bad} of {} replicas need attention", found.len())).into());
    }
    Ok(())
}

fn describe(address: &str, status: &StatusResponse, most: u64) -> String {
    let shares = status.store.as_ref().is_some_and(|store| store.engine == "etcd");
    let confirmed = match status.confirmed_ms {
        Some(ms) => format!("; confirmed {ms} ms ago"),
        None if shares => "; confirmed never".to_owned(),
        None => String::new(), // nobody else could know more
    };
    let mut text = format!(
        "{address}  {}\n  replica {}, version {}\n  manifest {} in force; {} events read, {} behind{confirmed}\n",
        status.state,
        status.replica,
        status.version,
        status.generation,
        status.control_events,
        most - status.control_events.min(most),
    );
    if status.state.contains("recover") {
        text.push_str("  a seedshare owner has to run `contrast recover`\n");
    }
    if let Some(store) = &status.store {
        let members = match store.engine.as_str() {
            "etcd" => {
                let (answering, members) = (store.answering, store.members);
                let (bytes, in_use) = (store.bytes, store.bytes_in_use);
                format!(", {answering} of {members} members answer, {bytes} bytes, {in_use} of them in use")
            }
            _ => String::new(),
        };
        text.push_str(&format!("  store {}{members}, refused {} times\n", store.engine, store.refusals));
        for complaint in &store.complaints {
            text.push_str(&format!("    {complaint}\n"));
        }
    }
    if let Some(streams @ 1..) = status.incomplete_streams {
        text.push_str(&format!("  {streams} streams are not completely here yet\n"));
    }
    for peer in &status.peers {
        let answered = peer.answered_ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms ago"));
        let error = if peer.error.is_empty() { String::new() } else { format!("; {}", peer.error) };
        text.push_str(&format!(
            "  peer {}  {} events, answered {answered}{error}\n",
            peer.address, peer.control_events
        ));
    }
    if status.evicted_policies + status.evicted_keys > 0 {
        let (policies, keys) = (status.evicted_policies, status.evicted_keys);
        text.push_str(&format!("  shut out of the mesh: {policies} policies, {keys} certificate keys\n"));
    }
    for alarm in &status.alarms {
        text.push_str(&format!("  ALARM {alarm}\n"));
    }
    text
}

fn value(address: &str, status: &StatusResponse, most: u64) -> serde_json::Value {
    let store = status.store.clone().unwrap_or_default();
    let peers = status.peers.iter().map(|peer| {
        json!({
            "address": peer.address, "replica": peer.replica, "control_events": peer.control_events,
            "answered_ms": peer.answered_ms, "error": peer.error,
        })
    });
    json!({
        "coordinator": address,
        "state": status.state,
        "replica": status.replica,
        "version": status.version,
        "generation": status.generation,
        "control_events": status.control_events,
        "behind": most - status.control_events.min(most),
        "confirmed_ms": status.confirmed_ms,
        "store": {
            "engine": store.engine, "members": store.members, "answering": store.answering,
            "bytes": store.bytes, "bytes_in_use": store.bytes_in_use, "complaints": store.complaints, "refusals": store.refusals,
        },
        "peers": peers.collect::<Vec<_>>(),
        "incomplete_streams": status.incomplete_streams,
        "evicted_policies": status.evicted_policies,
        "evicted_keys": status.evicted_keys,
        "alarms": status.alarms,
    })
}
