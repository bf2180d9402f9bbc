//! A log of many events without waiting for as many certificates: written into a stopped deployment with its
//! own log key, as a replica that issued them long ago would have left them.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use etcd_store::{EtcdArgs, EtcdStore};
use keys::{LogKey, Salt, Seed, SeedEngine};
use manifest::{EvidenceHash, ReplicaId, RequestId, SerialNumber, Timestamp, TransitionHash};
use storage_schema::{Event, EventStore, Fact, Log, SledStore, StreamId};
use wire::user::SeedShareDocument;

use crate::{fleet::Fleet, now, plan::Plan};

/// Events of one segment: a group commit under load.
const GROUP: u64 = 200;
const WRITER: ReplicaId = ReplicaId::from_bytes([0xF1; 16]);

/// The log key, as seedshare owners could derive it.
fn log_key(plan: &Plan, shares: &SeedShareDocument) -> anyhow::Result<SeedEngine> {
    let share = shares.seed_shares.first().context("no seed share")?;
    let seed = keys::decrypt_seed_share(&share.encrypted_seed, &plan.seedshare_key)?;
    Ok(SeedEngine::new(Seed::from_bytes(&seed)?, Salt::from_bytes(&shares.salt)?)?)
}

/// As large as the event of a real certificate.
fn issued(number: u64, evidence: EvidenceHash, at: Timestamp) -> Event {
    let mut serial = [0xF1; 16];
    serial[8..].copy_from_slice(&number.to_be_bytes());
    let fact = Fact::CertificateIssued {
        serial: SerialNumber::from_bytes(serial),
        certificate: vec![7; 900],
        policy: Plan::workload(),
        sans: vec!["workload".into(), "*".into()],
        platform: "sev-snp".into(),
        evidence,
        tcb: "bootloader 4, TEE 0, SNP 24, microcode 219".into(),
        transition: TransitionHash::ZERO,
        nonce: vec![3; 32],
        verdict: "ReferenceValues.snp[0]".into(),
        attested_key: Vec::new(),
        hpke_key: Vec::new(),
    };
    Event { at, replica: WRITER, request: RequestId::from_bytes([0xF1; 16]), fact }
}

/// Writes `events` events into a stream of every replica's copy, and what would be left of them into etcd:
/// the last segment. No replica may run.
pub fn fill(fleet: &Fleet, shares: &SeedShareDocument, events: u64) -> anyhow::Result<()> {
    let engine = log_key(&fleet.plan, shares)?;
    let stream = StreamId::Replica(WRITER);
    // The same in every copy.
    let (at, mut last) = (now(), None);
    for replica in &fleet.replicas {
        ensure!(replica.process.is_none(), "a replica runs");
        let store = Arc::new(SledStore::open(&replica.state)?);
        let evidence = EvidenceHash::from_bytes(*store.put_blob(b"evidence of nobody")?.as_bytes());
        last = Some(write(&store, stream, engine.log_key(), evidence, events, at)?);
    }
    let (index, segment) = last.context("no replica")?;
    let args = EtcdArgs {
        etcd_endpoints: fleet.etcd.endpoints(),
        etcd_prefix: "contrast/".into(),
        ..EtcdArgs::default()
    };
    let etcd = EtcdStore::new(&args.options()?.context("no etcd")?)?;
    // A place holder takes each place before, and goes at once, as if it had been given up.
    etcd.append(&stream, 0, b"given up")?;
    for place in 1..=index {
        etcd.append(&stream, place, if place == index { &segment } else { b"given up" })?;
        if place % 1000 == 0 || place == index {
            etcd.trim(&stream, place)?;
        }
    }
    Ok(())
}

fn write(
    store: &Arc<SledStore>,
    stream: StreamId,
    key: &LogKey,
    evidence: EvidenceHash,
    events: u64,
    at: Timestamp,
) -> anyhow::Result<(u64, Vec<u8>)> {
    let mut log = Log::open(Arc::clone(store), stream, Some(key.public()), |_, _| {})?;
    for first in (0..events).step_by(usize::try_from(GROUP)?) {
        let group: Vec<Event> =
            (first..events.min(first + GROUP)).map(|number| issued(number, evidence, at)).collect();
        log.append(&group, key)?;
    }
    let index = log.head().segments.checked_sub(1).context("no event")?;
    let page = store.read(&stream, index, 1)?;
    page.into_iter().next().context("the last segment is not there")
}
