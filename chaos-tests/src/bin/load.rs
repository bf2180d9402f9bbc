//! Load generator: real attested TLS connections with simulated evidence, each asking for one
//! certificate. Runs its own deployment, one Coordinator on sled or several on etcd, and reports rate, latency and
//! the Coordinators' CPU.
//!
//! The clients share the machine with the Coordinator, so the rate is a lower bound; CPU per
//! certificate is the figure to compare with the floor. `--every` prints how memory and what is written grow.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use attestation::{Issuer, simulated::SimulatedMachine};
use chaos_tests::{
    client::{self, SetOutcome, certificate},
    fleet::Fleet,
    program,
};
use clap::Parser;
use manifest::PolicyHash;
use tokio::task::JoinSet;

/// Ask a Coordinator of its own for certificates, over and over.
#[derive(Parser)]
#[command(
    after_help = "Example:\n  cargo build --release --workspace --bins && ./target/release/load --seconds 20"
)]
struct Args {
    /// Clients at once.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Also print a line each so many seconds: what was issued, memory, bytes written and on disk, CPU.
    #[arg(long, value_name = "SECONDS")]
    every: Option<u64>,
    /// Where the deployment is made, and stays; a temporary directory if none is given.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// So many Coordinators on an etcd cluster of three, which share this machine, instead of one on sled. A client
    /// asks them in turn.
    #[arg(long, value_name = "N")]
    replicas: Option<usize>,
}

/// What the clients meet.
struct Deployment {
    /// Ports for workloads, one of each Coordinator.
    ports: Arc<[u16]>,
    /// The workload's hardware.
    issuer: Arc<dyn Issuer>,
    watched: Coordinators,
    /// Ends the Coordinators, however this program ends.
    _running: Running,
}

enum Running {
    One(Pid),
    Several(Box<Fleet>),
}

impl Drop for Running {
    fn drop(&mut self) {
        match self {
            Self::One(pid) => drop(Command::new("kill").arg(pid.0.to_string()).status()),
            Self::Several(fleet) => (0..fleet.replicas.len()).for_each(|number| fleet.kill(number)),
        }
    }
}

/// A process.
#[derive(Clone, Copy)]
struct Pid(u64);

/// One Coordinator on sled, as `contrast dev` starts it.
fn one(state: &Path) -> anyhow::Result<Deployment> {
    let mesh = free_port()?;
    let output = Command::new(program("contrast"))
        .args(["dev", "--keep", "--output", "json", "--mesh-port", &mesh.to_string(), "--state-dir"])
        .arg(state)
        .output()
        .context("cannot run contrast: build the workspace first")?;
    ensure!(output.status.success(), "contrast dev: {}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let pid = Pid(report["running_pid"].as_u64().context("no running_pid in the report")?);
    let policy: PolicyHash = report["workloads"][0]["policy"].as_str().context("no policy")?.parse()?;
    Ok(Deployment {
        ports: Arc::new([mesh]),
        issuer: Arc::new(SimulatedMachine::open(&state.join("machine"))?.guest(policy)),
        watched: Coordinators(vec![(pid, state.to_owned())]),
        _running: Running::One(pid),
    })
}

/// Several Coordinators on etcd, with a first manifest.
async fn several(directory: &Path, count: usize) -> anyhow::Result<Deployment> {
    const SOON: Duration = Duration::from_secs(60);
    std::fs::create_dir_all(directory)?;
    let mut fleet = Fleet::start(directory, 3, count).await?;
    let set = client::set(fleet.replicas[0].user, &fleet.plan, &fleet.plan.manifest(0)?, None).await;
    ensure!(matches!(set, SetOutcome::Done(_)), "{set:?}");
    let mut watched = Vec::new();
    for number in 0..count {
        fleet.wait_ready(number, SOON).await?;
        let replica = &fleet.replicas[number];
        let process = replica.process.as_ref().context("a replica that does not run")?;
        watched.push((Pid(process.id().into()), replica.state.clone()));
    }
    Ok(Deployment {
        ports: fleet.mesh_ports().into(),
        issuer: client::workload_issuer(&fleet.plan)?,
        watched: Coordinators(watched),
        _running: Running::Several(Box::new(fleet)),
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let directory = tempfile::tempdir()?;
    let state = args.state_dir.clone().unwrap_or_else(|| directory.path().join("state"));
    let deployment = match args.replicas {
        None => one(&state)?,
        Some(count) => several(&state, count).await?,
    };
    let watched = deployment.watched.clone();
    let (memory_before, cpu_before, started) =
        (watched.resident_kib()?, watched.cpu_seconds()?, Instant::now());
    let issued = Arc::new(AtomicU64::new(0));
    let samples = args.every.map(|every| {
        tokio::spawn(watched.clone().print_each(Duration::from_secs(every), Arc::clone(&issued)))
    });
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        let until = started + Duration::from_secs(args.seconds);
        let (ports, issuer) = (Arc::clone(&deployment.ports), Arc::clone(&deployment.issuer));
        clients.spawn(one_client(number, ports, issuer, until, Arc::clone(&issued)));
    }
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    if let Some(samples) = samples {
        samples.abort();
    }
    let cpu = watched.cpu_seconds()? - cpu_before;
    latencies.sort();
    ensure!(!latencies.is_empty(), "not one certificate was issued");
    let count = latencies.len();
    let at = |percent: usize| latencies[(count - 1) * percent / 100].as_secs_f64() * 1e3;
    let figures = serde_json::json!({
        "clients": args.clients,
        "certificates": count,
        "certificates_per_second": count as f64 / elapsed,
        "p50_ms": at(50),
        "p99_ms": at(99),
        "coordinator_cpu_ms_per_certificate": cpu * 1e3 / count as f64,
        "coordinator_resident_kib_idle": memory_before,
        "coordinator_resident_kib_after": watched.resident_kib()?,
    });
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!("{figures:#}");
    }
    Ok(())
}

/// The Coordinators as they are seen from outside: processes, and the directories of their state.
#[derive(Clone)]
struct Coordinators(Vec<(Pid, PathBuf)>);

impl Coordinators {
    /// Prints a line for each interval, for ever. Bytes and CPU are those of all Coordinators together.
    #[expect(clippy::print_stdout, reason = "the result")]
    async fn print_each(self, every: Duration, issued: Arc<AtomicU64>) -> anyhow::Result<()> {
        println!(
            "seconds | certificates | per second | resident MiB | CPU ms each | KB written each | KB on disk each"
        );
        let started = Instant::now();
        let (written_before, disk_before) = (self.written_bytes()?, self.disk_bytes()?);
        let (mut at, mut before, mut cpu_before) = (started, 0, self.cpu_seconds()?);
        loop {
            tokio::time::sleep(every).await;
            let (now, all, cpu) = (Instant::now(), issued.load(Ordering::Relaxed), self.cpu_seconds()?);
            let (seconds, count) = (now.duration_since(at).as_secs_f64(), (all - before) as f64);
            let each = |bytes: u64| bytes as f64 / 1e3 / (all as f64).max(1.0);
            let resident = self.resident_kib()?.into_iter().map(|kib| format!("{:.1}", kib as f64 / 1024.0));
            println!(
                "{:7.0} | {all:12} | {:10.0} | {:>12} | {:11.2} | {:15.1} | {:15.1}",
                now.duration_since(started).as_secs_f64(),
                count / seconds,
                resident.collect::<Vec<_>>().join(" "),
                (cpu - cpu_before) * 1e3 / count.max(1.0),
                each(self.written_bytes()?.saturating_sub(written_before)),
                each(self.disk_bytes()?.saturating_sub(disk_before)),
            );
            (at, before, cpu_before) = (now, all, cpu);
        }
    }

    fn resident_kib(&self) -> anyhow::Result<Vec<u64>> {
        self.0.iter().map(|(pid, _)| resident_kib(*pid)).collect()
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.0.iter().map(|(pid, _)| cpu_seconds(*pid)).sum()
    }

    fn written_bytes(&self) -> anyhow::Result<u64> {
        self.0.iter().map(|(pid, _)| written_bytes(*pid)).sum()
    }

    fn disk_bytes(&self) -> anyhow::Result<u64> {
        self.0.iter().map(|(_, state)| disk_bytes(state)).sum()
    }
}

/// What a process had written to disks, in bytes (proc(5): io).
fn written_bytes(pid: Pid) -> anyhow::Result<u64> {
    let io = fs::read_to_string(format!("/proc/{}/io", pid.0))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:")).context("write_bytes")?;
    Ok(line.trim().parse()?)
}

/// What the files in a directory take of the disk, in bytes.
fn disk_bytes(directory: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // What is removed meanwhile takes nothing.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn one_client(
    number: usize,
    ports: Arc<[u16]>,
    issuer: Arc<dyn Issuer>,
    until: Instant,
    issued: Arc<AtomicU64>,
) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let started = Instant::now();
        certificate(ports[(number + latencies.len()) % ports.len()], &issuer).await?;
        latencies.push(started.elapsed());
        issued.fetch_add(1, Ordering::Relaxed);
    }
    Ok(latencies)
}

/// User and system time of a process (proc(5): fields 14 and 15 of stat, in 1/100 s on Linux).
fn cpu_seconds(pid: Pid) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.0))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks = |n: usize| fields.split_whitespace().nth(n).and_then(|field| field.parse::<f64>().ok());
    Ok((ticks(11).context("utime")? + ticks(12).context("stime")?) / 100.0)
}

fn resident_kib(pid: Pid) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.0))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
