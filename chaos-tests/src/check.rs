//! The proof after a run: what clients saw, held against the log and the replicas.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use etcd_store::{EtcdOptions, EtcdStore};
use manifest::{SerialNumber, TransitionHash};
use storage_schema::{Event, EventStore as _, Fact, Log, Replicated, SledStore, StreamId, named_blobs};

use crate::{
    client,
    fleet::Fleet,
    linearizable::{self, Operation, Outcome},
    run::Seen,
    scenario::Happened,
};

/// A replica issues nothing when it does not know for this long what is in force (the Coordinator's
/// `STALE_AFTER`); a client may get what was issued a moment later.
const BOUND: Duration = Duration::from_secs(10 + 3);

/// Everything that must hold.
pub async fn all(fleet: &mut Fleet, seen: &Seen, happened: &Happened) -> anyhow::Result<()> {
    replicas_converge(fleet).await.context("all replicas converge")?;
    let log = tokio::task::block_in_place(|| read_log(fleet)).context("the log verifies")?;
    // A replica that its store lies to may say of the newest manifest that it is not the newest: it cannot
    // know better. It must not have made a change all the same; that is looked at below.
    let believed = |operation: &&Operation| {
        let lied_to = |answered| happened.lied_to(operation.sent..answered);
        operation.outcome != Outcome::Stale || !operation.answered.is_some_and(lied_to)
    };
    linearizable::check(&seen.operations.iter().filter(believed).cloned().collect::<Vec<_>>())
        .map_err(anyhow::Error::msg)
        .context("manifest changes are linearizable")?;
    changes_are_logged_once(&log, seen).context("every acknowledged change is in the log exactly once")?;
    certificates_have_their_event(&log, seen).context("no certificate without its event")?;
    certificates_are_current(&log, seen, happened)
        .context("no certificate under a manifest that was replaced for long")?;
    ensure!(
        seen.certificates.windows(2).all(|pair| pair[0].issued.secret == pair[1].issued.secret),
        "secrets are equal everywhere: a workload got another secret than before"
    );
    Ok(())
}

/// Every event of every stream, verified.
struct WholeLog {
    /// Of the control stream.
    control: Vec<Event>,
    /// Number of events for each certificate.
    issued: HashMap<SerialNumber, Vec<Vec<u8>>>,
}

/// Reads the log as each replica could read it alone: its own disk, and what etcd still has. All three must
/// give the same.
fn read_log(fleet: &mut Fleet) -> anyhow::Result<WholeLog> {
    // All at once: each that runs may write.
    (0..fleet.replicas.len()).for_each(|replica| fleet.kill(replica));
    let mut found: Option<WholeLog> = None;
    for replica in 0..fleet.replicas.len() {
        let etcd = Arc::new(EtcdStore::new(&EtcdOptions {
            endpoints: fleet.etcd.endpoints(),
            prefix: "contrast/".into(),
            tls: None,
            user: None,
            deadline: Duration::from_secs(20),
        })?);
        let local = SledStore::open(&fleet.replicas[replica].state)?;
        let log = read_whole(&Arc::new(Replicated::shared(local, etcd)))
            .with_context(|| format!("as replica {replica} has it"))?;
        if let Some(other) = &found {
            let size = |log: &WholeLog| (log.control.len(), log.issued.len());
            ensure!(size(other) == size(&log), "{:?} events, then {:?}", size(other), size(&log));
        }
        found = Some(log);
    }
    found.context("no replica")
}

fn read_whole(store: &Arc<Replicated<SledStore>>) -> anyhow::Result<WholeLog> {
    let mut control = Vec::new();
    let log = Log::open(Arc::clone(store), StreamId::Control, None, |_, event| control.push(event))?;
    let mut issued: HashMap<SerialNumber, Vec<Vec<u8>>> = HashMap::new();
    for stream in store.streams()?.into_iter().filter(|stream| *stream != StreamId::Control) {
        let mut evidence = Vec::new();
        Log::open(Arc::clone(store), stream, log.key(), |_, event| {
            evidence.extend(named_blobs(&event.fact));
            if let Fact::CertificateIssued { serial, certificate, .. } = event.fact {
                issued.entry(serial).or_default().push(certificate);
            }
        })?;
        for hash in evidence {
            ensure!(store.get_blob(&hash)?.is_some(), "evidence {hash} is lost");
        }
    }
    Ok(WholeLog { control, issued })
}

async fn replicas_converge(fleet: &Fleet) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let differ = match views(fleet).await {
            Ok((views, true)) if views.windows(2).all(|pair| pair[0] == pair[1]) => return Ok(()),
            Ok((views, complete)) => {
                let short = views.iter().map(|(events, latest, _)| format!("{events} {latest}"));
                let short: Vec<_> = short.collect();
                anyhow::anyhow!("they are at {short:?}; each holds every stream: {complete}")
            }
            Err(error) => error,
        };
        if Instant::now() > until {
            return Err(differ.context("60 s after the last fault"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How many events of the control stream a replica knows, the transition in force there, and the mesh CA.
type View = (u64, TransitionHash, String);

/// What each replica shows, and whether each holds everything.
async fn views(fleet: &Fleet) -> anyhow::Result<(Vec<View>, bool)> {
    let (mut views, mut is_complete) = (Vec::new(), true);
    for port in fleet.user_ports() {
        let status = client::status(port).await?;
        let (_, latest, mesh_ca) = client::history(port).await?;
        is_complete &= status.incomplete_streams == Some(0);
        views.push((status.control_events, latest, mesh_ca));
    }
    Ok((views, is_complete))
}

fn changes_are_logged_once(log: &WholeLog, seen: &Seen) -> anyhow::Result<()> {
    let mut times: BTreeMap<TransitionHash, u32> = BTreeMap::new();
    let mut previous = None;
    for event in &log.control {
        if let Fact::ManifestSet { transition, previous: named, .. } = &event.fact {
            ensure!(*named == previous, "a change names {named:?} as the one before, which is {previous:?}");
            previous = Some(*transition);
            *times.entry(*transition).or_default() += 1;
        }
    }
    for operation in &seen.operations {
        let found = times.get(&operation.next).copied().unwrap_or_default();
        match operation.outcome {
            Outcome::Made => ensure!(found == 1, "{} is there {found} times", operation.next),
            Outcome::Stale => ensure!(found == 0, "{} was refused and is there", operation.next),
            Outcome::Unknown => ensure!(found <= 1, "{} is there {found} times", operation.next),
        }
    }
    Ok(())
}

fn certificates_have_their_event(log: &WholeLog, seen: &Seen) -> anyhow::Result<()> {
    for received in &seen.certificates {
        let leaf =
            pem_bodies(&received.issued.chain).into_iter().next().context("no certificate in the chain")?;
        let found = log.issued.values().flatten().filter(|certificate| **certificate == leaf).count();
        ensure!(found == 1, "a certificate received at {:?} has {found} events", received.at);
    }
    for (serial, events) in &log.issued {
        ensure!(events.len() == 1, "certificate {serial} has {} events", events.len());
    }
    Ok(())
}

/// Each certificate came at most the bound after the answer to a change that replaced its manifest.
fn certificates_are_current(log: &WholeLog, seen: &Seen, happened: &Happened) -> anyhow::Result<()> {
    let mut order = HashMap::new();
    let mut mesh_cas = HashMap::new();
    for event in &log.control {
        match &event.fact {
            Fact::ManifestSet { transition, mesh_ca, .. } => {
                order.insert(*transition, order.len());
                mesh_cas.insert(mesh_ca.clone(), order.len() - 1);
            }
            Fact::RecoveredByUser { mesh_ca, .. } => {
                mesh_cas.insert(mesh_ca.clone(), order.len() - 1);
            }
            _ => {}
        }
    }
    // When each manifest was known by an answer to be in force.
    let acknowledged: Vec<(usize, Duration)> = seen
        .operations
        .iter()
        .filter(|operation| operation.outcome == Outcome::Made)
        .filter_map(|operation| Some((*order.get(&operation.next)?, operation.answered?)))
        .collect();
    for received in &seen.certificates {
        let mesh_ca = pem_bodies(&received.issued.mesh_ca).into_iter().next().context("no mesh CA")?;
        let generation = mesh_cas.get(&mesh_ca).context("a mesh CA that is not in the log")?;
        let replaced = acknowledged.iter().filter(|(later, _)| later > generation).map(|(_, at)| *at).min();
        if let Some(replaced) = replaced {
            let stopped = happened.stopped(received.replica, replaced..received.at);
            let late = received.at.saturating_sub(replaced + stopped);
            ensure!(late <= BOUND, "a certificate came {late:?} after its manifest was replaced");
        }
    }
    Ok(())
}

/// The DER content of each PEM block.
fn pem_bodies(text: &str) -> Vec<Vec<u8>> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    let body = |block: &str| {
        let body: String = block.split("-----END").next()?.split_whitespace().collect();
        BASE64_STANDARD.decode(body).ok()
    };
    blocks.filter_map(body).collect()
}
