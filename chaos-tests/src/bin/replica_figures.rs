//! Figures of several replicas on one machine: certificates a second, time until a change is in force
//! everywhere, time without service when the replica in use dies. etcd, clients and replicas share the
//! machine, so rates are lower bounds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use chaos_tests::{
    client::{self, SetOutcome},
    filler,
    fleet::Fleet,
    plan::transition,
};
use clap::Parser;
use manifest::TransitionHash;
use serde_json::json;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(60);
/// For a log of any length.
const LATER: Duration = Duration::from_secs(300);

/// Measure replicas on this machine.
#[derive(Parser)]
#[command(
    after_help = "Example:\n  cargo build --release --workspace --bins && ./target/release/replica_figures"
)]
struct Args {
    /// Clients at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Seconds for each rate.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Manifest changes whose way is measured.
    #[arg(long, default_value_t = 100)]
    changes: u64,
    /// Times that the replica in use is killed.
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// Workloads that attest at once, as fast as all three replicas take them.
    #[arg(long, default_value_t = 10_000)]
    workloads: usize,
    /// Events in the log before a replica is killed and started again.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let directory = tempfile::tempdir()?;
    let mut fleet = Fleet::start(directory.path(), 3, 1).await?;
    let first = fleet.plan.manifest(0)?;
    let outcome = client::set(fleet.replicas[0].user, &fleet.plan, &first, None).await;
    let SetOutcome::Done(Some(shares)) = outcome else { anyhow::bail!("{outcome:?}") };
    let mut rates = Vec::new();
    for replicas in 1..=3 {
        if replicas > 1 {
            let number = fleet.add().await?;
            fleet.restart(number)?;
        }
        fleet.wait_ready(replicas - 1, SOON).await?;
        rates.push(shown("rate", rate(&fleet, &args).await?));
    }
    let latest = transition(None, &first);
    let changes = shown("change in force everywhere", changes(&fleet, latest, args.changes).await?);
    let pauses = shown("replica killed", pauses(&mut fleet, args.kills).await?);
    let crowd = shown("crowd", crowd(&fleet, &args).await?);
    let starts = shown("start", starts(&mut fleet, &shares, args.events).await?);
    let figures = json!({
        "rates": rates, "change_in_force_everywhere": changes, "replica_killed": pauses,
        "crowd": crowd, "start": starts,
    });
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!("{figures:#}");
    }
    Ok(())
}

/// Shows a figure as soon as it is there: all of them together take minutes.
#[expect(clippy::print_stderr, reason = "progress")]
fn shown(what: &str, figure: serde_json::Value) -> serde_json::Value {
    eprintln!("{what}: {figure}");
    figure
}

fn milliseconds(mut all: Vec<Duration>) -> serde_json::Value {
    all.sort();
    let at =
        |percent: usize| all.get((all.len().saturating_sub(1)) * percent / 100).map(Duration::as_secs_f64);
    let ms = |percent| at(percent).unwrap_or_default() * 1e3;
    json!({ "count": all.len(), "p50_ms": ms(50), "p99_ms": ms(99), "max_ms": ms(100) })
}

/// User and system time of a process, in seconds (proc(5): fields 14 and 15 of stat).
fn cpu(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks = |n: usize| fields.split_whitespace().nth(n).and_then(|field| field.parse::<f64>().ok());
    Ok((ticks(11).context("utime")? + ticks(12).context("stime")?) / 100.0)
}

async fn rate(fleet: &Fleet, args: &Args) -> anyhow::Result<serde_json::Value> {
    let issuer = client::workload_issuer(&fleet.plan)?;
    let pids: Vec<u32> =
        fleet.replicas.iter().filter_map(|replica| Some(replica.process.as_ref()?.id())).collect();
    let before = pids.iter().map(|pid| cpu(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let (started, until) = (Instant::now(), Instant::now() + Duration::from_secs(args.seconds));
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        let (issuer, ports) = (Arc::clone(&issuer), fleet.mesh_ports());
        clients.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                let begun = Instant::now();
                client::certificate(ports[(number + took.len()) % ports.len()], &issuer).await?;
                took.push(begun.elapsed());
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(client) = clients.join_next().await {
        all.extend(client??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    let used = pids.iter().zip(before).map(|(pid, before)| Ok(cpu(*pid)? - before));
    let used = used.collect::<anyhow::Result<Vec<f64>>>()?;
    let count = all.len() as f64;
    Ok(json!({
        "replicas": pids.len(),
        "certificates_per_second": count / elapsed,
        "latency": milliseconds(all),
        "cpu_ms_per_certificate": used.iter().sum::<f64>() * 1e3 / count,
        "cpu_share_of_each_replica": used.iter().map(|seconds| seconds / elapsed).collect::<Vec<_>>(),
    }))
}

/// From the answer to a change until the last replica shows it.
async fn changes(fleet: &Fleet, mut latest: TransitionHash, count: u64) -> anyhow::Result<serde_json::Value> {
    let (mut acknowledged, mut everywhere) = (Vec::new(), Vec::new());
    let mut watchers = Vec::new();
    for port in fleet.user_ports() {
        watchers.push(client::Session::open(port).await?);
    }
    for number in 1..=count {
        let manifest = fleet.plan.manifest(number)?;
        let port = fleet.replicas[usize::try_from(number)? % fleet.replicas.len()].user;
        let begun = Instant::now();
        let outcome = client::set(port, &fleet.plan, &manifest, Some(latest)).await;
        ensure!(matches!(outcome, SetOutcome::Done(_)), "{outcome:?}");
        let answered = Instant::now();
        acknowledged.push(answered - begun);
        latest = transition(Some(latest), &manifest);
        for watcher in &mut watchers {
            while watcher.generation().await? < number + 1 {}
        }
        everywhere.push(answered.elapsed());
    }
    Ok(
        json!({ "acknowledged": milliseconds(acknowledged), "after_that_everywhere": milliseconds(everywhere) }),
    )
}

/// Kills the replica that a client uses; the client tries the next one until it has a certificate.
async fn pauses(fleet: &mut Fleet, kills: usize) -> anyhow::Result<serde_json::Value> {
    let issuer = client::workload_issuer(&fleet.plan)?;
    let (mut without, mut again) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        let victim = kill % fleet.replicas.len();
        let ports = fleet.mesh_ports();
        let stop = Arc::new(AtomicBool::new(false));
        let client = tokio::spawn({
            let (issuer, stop) = (Arc::clone(&issuer), Arc::clone(&stop));
            async move {
                let (mut last, mut longest, mut at) = (Instant::now(), Duration::ZERO, victim);
                while !stop.load(Ordering::Relaxed) {
                    match client::certificate(ports[at % ports.len()], &issuer).await {
                        Ok(_) => {
                            longest = longest.max(last.elapsed());
                            last = Instant::now();
                        }
                        Err(_) => at += 1,
                    }
                }
                longest
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        fleet.kill(victim);
        tokio::time::sleep(Duration::from_secs(2)).await;
        stop.store(true, Ordering::Relaxed);
        without.push(client.await?);
        let begun = Instant::now();
        fleet.restart(victim)?;
        fleet.wait_ready(victim, SOON).await?;
        again.push(begun.elapsed());
    }
    Ok(json!({ "longest_between_certificates": milliseconds(without), "ready_again": milliseconds(again) }))
}

/// So many workloads at once, each with one certificate. A few hundred connections are open at a time: the
/// rest waits, as at a load balancer.
async fn crowd(fleet: &Fleet, args: &Args) -> anyhow::Result<serde_json::Value> {
    const OPEN: usize = 300;
    let issuer = client::workload_issuer(&fleet.plan)?;
    let (next, ports) = (Arc::new(AtomicUsize::new(0)), fleet.mesh_ports());
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..OPEN {
        let (issuer, next, ports, workloads) =
            (Arc::clone(&issuer), Arc::clone(&next), ports.clone(), args.workloads);
        clients.spawn(async move {
            let (mut took, mut again) = (Vec::new(), 0_usize);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= workloads {
                    return (took, again);
                }
                let asked = Instant::now();
                while client::certificate(ports[(number + again) % ports.len()], &issuer).await.is_err() {
                    again += 1;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                took.push(asked.elapsed());
            }
        });
    }
    let (mut all, mut refused) = (Vec::new(), 0);
    while let Some(client) = clients.join_next().await {
        let (took, again) = client?;
        all.extend(took);
        refused += again;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let memory = fleet.replicas.iter().filter_map(|replica| resident_mib(replica.process.as_ref()?.id()));
    Ok(json!({
        "workloads": all.len(), "seconds": seconds, "per_second": all.len() as f64 / seconds,
        "tried_again": refused, "latency": milliseconds(all), "resident_mib_of_each_replica": memory.collect::<Vec<_>>(),
    }))
}

/// Resident memory of a process (proc(5)).
fn resident_mib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// Time until a replica is ready with a long log: the first time, and after a kill.
async fn starts(
    fleet: &mut Fleet,
    shares: &wire::user::SeedShareDocument,
    events: u64,
) -> anyhow::Result<serde_json::Value> {
    for number in 0..fleet.replicas.len() {
        fleet.stop(number)?;
    }
    let begun = Instant::now();
    filler::fill(fleet, shares, events)?;
    let written = begun.elapsed().as_secs_f64();
    for number in 0..fleet.replicas.len() {
        fleet.restart(number)?;
    }
    let mut first = Vec::new();
    let begun = Instant::now();
    fleet.wait_state(0, "coordinator is in recovery mode", LATER).await?;
    first.push(begun.elapsed());
    client::recover(fleet.replicas[0].user, &fleet.plan, shares).await?;
    for number in 0..fleet.replicas.len() {
        fleet.wait_ready(number, LATER).await?;
    }
    let mut killed = Vec::new();
    for victim in [1, 2, 1, 2, 1] {
        fleet.wait_complete(victim, LATER).await?;
        fleet.kill(victim);
        let begun = Instant::now();
        fleet.restart(victim)?;
        fleet.wait_ready(victim, LATER).await?;
        killed.push(begun.elapsed());
    }
    let memory = fleet.replicas.iter().filter_map(|replica| resident_mib(replica.process.as_ref()?.id()));
    Ok(json!({
        "events": events, "written_in_seconds": written, "first_start_of_three_at_once": milliseconds(first),
        "ready_after_kill": milliseconds(killed), "resident_mib_of_each_replica": memory.collect::<Vec<_>>(),
    }))
}
