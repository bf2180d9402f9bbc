//! A run: clients at work while a scenario unfolds, then the proof that nothing was lost.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use attestation::Issuer;
use manifest::TransitionHash;
use tokio::task::JoinSet;

use crate::{
    byzantine::Lie,
    check,
    client::{self, Attested, SetOutcome},
    fleet::{Fleet, Replica},
    host::Disturbance,
    linearizable::{Operation, Outcome},
    plan::{Plan, transition},
    proxy::Link,
    scenario::{Fault, Happened, Kind, Random, Scenario, tenths},
};

/// How long the replicas get to be ready again after the last fault.
const HEAL: Duration = Duration::from_secs(90);

/// What clients saw.
#[derive(Default)]
pub struct Seen {
    /// Every request for a change.
    pub operations: Vec<Operation>,
    /// Every certificate that was received.
    pub certificates: Vec<Received>,
    /// Longest time without any certificate.
    pub longest_pause: Duration,
    /// Requests that failed, by the beginning of the reason.
    pub failures: std::collections::BTreeMap<String, u64>,
}

/// A certificate in a client's hands.
pub struct Received {
    /// When, after the start of the run.
    pub at: Duration,
    /// Number of the replica that answered.
    pub replica: usize,
    /// What it got.
    pub issued: client::Issued,
}

/// What a run was and found.
#[derive(Debug)]
pub struct Report {
    /// Changes that were acknowledged.
    pub changes: usize,
    /// Changes whose outcome the client does not know.
    pub unknown: usize,
    /// Certificates that were received.
    pub certificates: usize,
    /// Faults that were made.
    pub faults: usize,
    /// Longest time without any certificate.
    pub longest_pause: Duration,
    /// Time until all replicas were ready after the last fault.
    pub healed_within: Duration,
}

/// Runs a scenario on a new deployment in `directory`.
pub async fn run(directory: &Path, seed: u64, scenario: &Scenario, seconds: u32) -> anyhow::Result<Report> {
    // Every second seed has an etcd that gives up what all replicas hold.
    let above = if seed % 2 == 1 { "0" } else { "1024" };
    let mut fleet = Fleet::start_with(directory, 3, 3, &["--etcd-trim-above", above]).await?;
    let first = fleet.plan.manifest(0)?;
    let shares = match client::set(fleet.replicas[0].user, &fleet.plan, &first, None).await {
        SetOutcome::Done(shares) => shares.context("no seed shares came with the first manifest")?,
        other => anyhow::bail!("the first manifest was not set: {other:?}"),
    };
    for replica in 0..3 {
        fleet.wait_ready(replica, HEAL).await?;
    }
    let start = Instant::now();
    let first_op = Operation {
        sent: Duration::ZERO,
        answered: Some(Duration::ZERO),
        previous: None,
        next: transition(None, &first),
        outcome: Outcome::Made,
    };
    let seen = Arc::new(Mutex::new(Seen { operations: vec![first_op], ..Seen::default() }));
    let stop = Arc::new(AtomicBool::new(false));
    let clients = spawn_clients(&fleet, seed, start, &seen, &stop)?;

    let mut world = World {
        fleet: &mut fleet,
        shares: &shares,
        copies: directory.join("copies"),
        refused: Default::default(),
        happened: Happened::default(),
    };
    let outcome = world.unfold(scenario, start, seconds).await;
    let healing = Instant::now();
    let healed = match outcome {
        Ok(()) => world.heal(start).await,
        Err(error) => Err(error),
    };
    let happened = world.happened;
    let healed_within = healing.elapsed();
    // Some work after the faults, too; on a busy machine it takes its time.
    let before = seen.lock().unwrap_or_else(PoisonError::into_inner).done();
    for look in 0..60 {
        let (changes, certificates) = seen.lock().unwrap_or_else(PoisonError::into_inner).done();
        if healed.is_err() || (look >= 2 && changes >= before.0 + 2 && certificates >= before.1 + 20) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stop.store(true, Ordering::Relaxed);
    clients.join_all().await;
    healed?;

    let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    check::all(&mut fleet, &seen, &happened).await?;
    Ok(Report {
        changes: seen.count(Outcome::Made),
        unknown: seen.count(Outcome::Unknown),
        certificates: seen.certificates.len(),
        faults: scenario.0.len(),
        longest_pause: seen.longest_pause,
        healed_within,
    })
}

fn spawn_clients(
    fleet: &Fleet,
    seed: u64,
    start: Instant,
    seen: &Arc<Mutex<Seen>>,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<JoinSet<()>> {
    let mut clients = JoinSet::new();
    let plan = Arc::new(fleet.plan.reopen());
    let numbers = Arc::new(AtomicU64::new(1));
    for owner in 0..2 {
        let (plan, seen, stop) = (Arc::clone(&plan), Arc::clone(seen), Arc::clone(stop));
        let (numbers, ports, random) =
            (Arc::clone(&numbers), fleet.user_ports(), Random::new(seed ^ (0xABCD + owner)));
        clients
            .spawn(async move { owner_at_work(&plan, &ports, random, &numbers, start, &seen, &stop).await });
    }
    let issuer = client::workload_issuer(&fleet.plan)?;
    for workload in 0..3 {
        let (issuer, seen, stop) = (Arc::clone(&issuer), Arc::clone(seen), Arc::clone(stop));
        let (ports, mut random) = (fleet.mesh_ports(), Random::new(seed ^ (0x1234 + workload)));
        clients.spawn(async move {
            // One of them stays with a connection for as long as it is served there.
            let mut kept = None;
            while !stop.load(Ordering::Relaxed) {
                let (replica, outcome, connection) = ask(kept.take(), &ports, &mut random, &issuer).await;
                kept = connection.filter(|_| workload == 0);
                seen.lock().unwrap_or_else(PoisonError::into_inner).asked(start.elapsed(), replica, outcome);
                tokio::time::sleep(Duration::from_millis(u64::from(20 + random.below(60)))).await;
            }
        });
    }
    Ok(clients)
}

/// A connection to a replica with this number.
type Kept = Option<(usize, Attested)>;

/// Asks for a certificate on a connection, or a new one; gives the connection back if it served.
async fn ask(
    kept: Kept,
    ports: &[u16],
    random: &mut Random,
    issuer: &Arc<dyn Issuer>,
) -> (usize, anyhow::Result<client::Issued>, Kept) {
    let (replica, mut connection) = match kept {
        Some(kept) => kept,
        None => {
            let replica = random.below(3) as usize;
            match Attested::open(ports[replica], issuer).await {
                Ok(connection) => (replica, connection),
                Err(error) => return (replica, Err(error), None),
            }
        }
    };
    let outcome = connection.certificate().await;
    let kept = outcome.is_ok().then_some((replica, connection));
    (replica, outcome, kept)
}

impl Seen {
    fn count(&self, outcome: Outcome) -> usize {
        self.operations.iter().filter(|operation| operation.outcome == outcome).count()
    }

    /// Changes and certificates.
    fn done(&self) -> (usize, usize) {
        (self.count(Outcome::Made), self.certificates.len())
    }

    fn asked(&mut self, at: Duration, replica: usize, outcome: anyhow::Result<client::Issued>) {
        match outcome {
            Ok(issued) => {
                let last = self.certificates.last().map_or(Duration::ZERO, |received| received.at);
                self.longest_pause = self.longest_pause.max(at.saturating_sub(last));
                self.certificates.push(Received { at, replica, issued });
            }
            Err(error) => self.failed(&error.to_string()),
        }
    }

    fn failed(&mut self, reason: &str) {
        let beginning: String = reason.chars().take(60).collect();
        *self.failures.entry(beginning).or_default() += 1;
    }
}

async fn owner_at_work(
    plan: &Plan,
    ports: &[u16],
    mut random: Random,
    numbers: &AtomicU64,
    start: Instant,
    seen: &Mutex<Seen>,
    stop: &AtomicBool,
) {
    let any = |random: &mut Random| ports[random.below(u32::try_from(ports.len()).unwrap_or(1)) as usize];
    let mut previous: Option<TransitionHash> = None;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(u64::from(50 + random.below(300)))).await;
        if previous.is_none() {
            match client::history(any(&mut random)).await {
                Ok((_, latest, _)) => previous = Some(latest),
                Err(error) => {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).failed(&error.to_string());
                    continue;
                }
            }
        }
        let Ok(manifest) = plan.manifest(numbers.fetch_add(1, Ordering::Relaxed)) else { return };
        let next = transition(previous, &manifest);
        let sent = start.elapsed();
        let outcome = client::set(any(&mut random), plan, &manifest, previous).await;
        let now = start.elapsed();
        let (outcome, answered) = match &outcome {
            SetOutcome::Done(_) => (Outcome::Made, Some(now)),
            SetOutcome::Stale(_) => (Outcome::Stale, Some(now)),
            SetOutcome::Unknown(reason) => {
                seen.lock().unwrap_or_else(PoisonError::into_inner).failed(reason);
                (Outcome::Unknown, None)
            }
            SetOutcome::Refused(reason) => {
                // Not made, and nothing is said about the history.
                seen.lock().unwrap_or_else(PoisonError::into_inner).failed(reason);
                previous = None;
                continue;
            }
        };
        seen.lock().unwrap_or_else(PoisonError::into_inner).operations.push(Operation {
            sent,
            answered,
            previous,
            next,
            outcome,
        });
        previous = (outcome == Outcome::Made).then_some(next);
    }
}

/// What a scenario acts on.
struct World<'a> {
    fleet: &'a mut Fleet,
    shares: &'a wire::user::SeedShareDocument,
    /// Old copies of local disks.
    copies: std::path::PathBuf,
    /// Replicas that refused to start on what they found.
    refused: std::collections::BTreeSet<usize>,
    happened: Happened,
}

/// Something that ends later.
enum Undo {
    Start(usize),
    Continue(usize),
    Link(usize),
    Member(usize),
    ContinueMember(usize),
    Host(usize),
}

impl World<'_> {
    async fn unfold(&mut self, scenario: &Scenario, start: Instant, seconds: u32) -> anyhow::Result<()> {
        let mut steps = scenario.0.iter().peekable();
        let mut undo: Vec<(Duration, usize, Undo)> = Vec::new();
        let mut last_look = Instant::now();
        loop {
            let now = start.elapsed();
            while let Some(place) = undo.iter().position(|(at, _, _)| *at <= now) {
                let (_, number, what) = undo.swap_remove(place);
                self.undo(&what)?;
                self.happened.ended(number, start.elapsed());
            }
            while let Some(step) = steps.next_if(|step| tenths(step.at) <= now) {
                let disk = matches!(step.fault.kind, Kind::LoseDisk | Kind::OldDisk | Kind::CorruptDisk);
                if disk && !self.another_is_complete(step.fault.place).await {
                    continue; // then the log itself would be lost, by the operator's fault
                }
                let began = start.elapsed();
                let number = self.happened.begins(step.fault, began);
                for (after, what) in self.make(step.fault)? {
                    undo.push((began + tenths(after), number, what));
                }
            }
            if last_look.elapsed() > Duration::from_secs(3) {
                self.recover_if_all_lost_the_seed().await;
                last_look = Instant::now();
            }
            if steps.peek().is_none() && undo.is_empty() && now >= tenths(seconds * 10) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn make(&mut self, Fault { kind, place, tenths }: Fault) -> anyhow::Result<Vec<(u32, Undo)>> {
        let fleet = &mut *self.fleet;
        let links = |link| fleet.replicas[place].proxies.iter().for_each(|proxy| proxy.set(link));
        let undo = match kind {
            Kind::KillReplica => {
                fleet.kill(place);
                Undo::Start(place)
            }
            Kind::PauseReplica => {
                fleet.signal(place, "STOP")?;
                Undo::Continue(place)
            }
            Kind::RestartReplica => {
                // A paused process could not end in order.
                fleet.signal(place, "CONT")?;
                fleet.signal(place, "TERM")?;
                Undo::Start(place)
            }
            Kind::LoseDisk => {
                fleet.kill(place);
                let _ = fs::remove_dir_all(&fleet.replicas[place].state);
                Undo::Start(place)
            }
            Kind::OldDisk => {
                fleet.kill(place);
                self.swap_disk(place)?;
                Undo::Start(place)
            }
            Kind::CorruptDisk => {
                fleet.kill(place);
                corrupt(&fleet.replicas[place].state)?;
                Undo::Start(place)
            }
            Kind::FullDisk => self.disturb(place, |host| host.disk_is_full = true)?,
            Kind::SlowDisk => self.disturb(place, |host| host.disk_delay_microseconds = 60_000)?,
            Kind::ClockAhead => self.disturb(place, |host| host.clock_ahead_seconds = 3600)?,
            Kind::ClockBack => self.disturb(place, |host| host.clock_ahead_seconds = -3600)?,
            Kind::CutPeers => {
                fleet.replicas[place].front.set(Link::Cut);
                Undo::Link(place)
            }
            Kind::CutStore => {
                links(Link::Cut);
                Undo::Link(place)
            }
            Kind::SilentStore => {
                links(Link::Silent);
                Undo::Link(place)
            }
            Kind::SlowStore => {
                links(Link::Slow(Duration::from_millis(120)));
                Undo::Link(place)
            }
            Kind::TruncateStore => {
                links(Link::Truncate(3000));
                Undo::Link(place)
            }
            Kind::ReorderStore => self.lie(place, Lie::Reorder),
            Kind::RewriteStore => self.lie(place, Lie::Rewrite),
            Kind::ReplayStore => self.lie(place, Lie::Replay),
            Kind::KillMember => {
                fleet.etcd.kill(place);
                Undo::Member(place)
            }
            Kind::PauseMember => {
                fleet.etcd.signal(place, "STOP")?;
                Undo::ContinueMember(place)
            }
            Kind::LoseQuorum => {
                fleet.etcd.kill(0);
                fleet.etcd.kill(2);
                return Ok(vec![(tenths, Undo::Member(0)), (tenths, Undo::Member(2))]);
            }
        };
        Ok(vec![(tenths, undo)])
    }

    fn disturb(&mut self, replica: usize, change: impl Fn(&mut Disturbance)) -> anyhow::Result<Undo> {
        let mut now = Disturbance::default();
        change(&mut now);
        self.fleet.replicas[replica].host.set(now)?;
        Ok(Undo::Host(replica))
    }

    fn lie(&mut self, replica: usize, lie: Lie) -> Undo {
        let Replica { proxies, liars, .. } = &self.fleet.replicas[replica];
        for (proxy, liar) in proxies.iter().zip(liars) {
            liar.set(lie);
            proxy.redirect(liar.address);
        }
        Undo::Link(replica)
    }

    /// The first time, keeps a copy of the disk as it is; later, puts the copy in its place.
    fn swap_disk(&self, replica: usize) -> anyhow::Result<()> {
        let (state, copy) = (&self.fleet.replicas[replica].state, self.copies.join(replica.to_string()));
        let (from, to) = if copy.exists() { (&copy, state) } else { (state, &copy) };
        let _ = fs::remove_dir_all(to);
        fs::create_dir_all(self.copies.as_path())?;
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status()?;
        ensure!(status.success(), "cannot copy {}", from.display());
        Ok(())
    }

    fn undo(&mut self, what: &Undo) -> anyhow::Result<()> {
        match *what {
            Undo::Start(replica) => {
                if let Some(process) = &mut self.fleet.replicas[replica].process
                    && process.ended().is_none()
                {
                    // Started meanwhile by the end of another fault, or still ending in order: by force now.
                    self.fleet.kill(replica);
                }
                self.fleet.restart(replica)
            }
            Undo::Continue(replica) => {
                let _ = self.fleet.signal(replica, "CONT"); // fails when it was killed meanwhile
                Ok(())
            }
            Undo::Link(replica) => {
                let Replica { proxies, liars, front, .. } = &self.fleet.replicas[replica];
                proxies.iter().chain([front]).for_each(|proxy| proxy.set(Link::Up));
                liars.iter().for_each(|liar| liar.set(Lie::None));
                Ok(())
            }
            Undo::Host(replica) => self.fleet.replicas[replica].host.set(Disturbance::default()),
            Undo::Member(member) if self.fleet.etcd.is_running(member) => Ok(()),
            Undo::Member(member) => self.fleet.etcd.restart(member),
            Undo::ContinueMember(member) => {
                let _ = self.fleet.etcd.signal(member, "CONT"); // the same
                Ok(())
            }
        }
    }

    /// Whether another replica than this one holds everything.
    async fn another_is_complete(&self, replica: usize) -> bool {
        let others = self.fleet.replicas.iter().enumerate().filter(|(number, _)| *number != replica);
        for (_, other) in others {
            let asked = tokio::time::timeout(Duration::from_secs(1), client::status(other.user)).await;
            if matches!(asked, Ok(Ok(status)) if status.incomplete_streams == Some(0)) {
                return true;
            }
        }
        false
    }

    /// Does what an operator does when no replica serves, and one of them waits for the seed. Those that do
    /// not answer may have it all the same: they follow.
    async fn recover_if_all_lost_the_seed(&mut self) {
        let mut waiting = Vec::new();
        for port in self.fleet.user_ports() {
            match tokio::time::timeout(Duration::from_secs(2), client::status(port)).await {
                Ok(Ok(status)) if status.state == "coordinator is in recovery mode" => waiting.push(port),
                Ok(Ok(_)) => return,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        if let Some(port) = waiting.first() {
            // Tried again if it fails.
            let recovery = client::recover(*port, &self.fleet.plan, self.shares);
            let _ = tokio::time::timeout(Duration::from_secs(15), recovery).await;
        }
    }

    /// Ends every fault, and waits until all replicas are ready.
    async fn heal(&mut self, start: Instant) -> anyhow::Result<()> {
        for replica in 0..self.fleet.replicas.len() {
            self.undo(&Undo::Link(replica))?;
            self.undo(&Undo::Host(replica))?;
            self.undo(&Undo::Continue(replica))?;
        }
        for member in 0..self.fleet.etcd.len() {
            self.undo(&Undo::ContinueMember(member))?;
            self.undo(&Undo::Member(member))?;
        }
        self.happened.all_ended(start.elapsed());
        let until = Instant::now() + HEAL;
        loop {
            for replica in 0..self.fleet.replicas.len() {
                self.restart_if_ended(replica)?;
            }
            self.recover_if_all_lost_the_seed().await;
            match self.all_ready().await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// What a cluster does with a process that ended; a disk that it refused is replaced, by an operator.
    fn restart_if_ended(&mut self, replica: usize) -> anyhow::Result<()> {
        let Some(process) = &mut self.fleet.replicas[replica].process else {
            return self.fleet.restart(replica);
        };
        if process.ended().is_none() {
            return Ok(());
        }
        let log = process.tail(3);
        self.fleet.kill(replica);
        let is_refused =
            ["damaged", "lost data", "does not verify", "segment"].iter().any(|word| log.contains(word));
        // Not at the first refusal, which may have been about what a lying store showed.
        if is_refused && !self.refused.insert(replica) {
            let _ = fs::remove_dir_all(&self.fleet.replicas[replica].state);
        }
        self.fleet.restart(replica)
    }

    async fn all_ready(&self) -> anyhow::Result<()> {
        for (number, replica) in self.fleet.replicas.iter().enumerate() {
            let asked = tokio::time::timeout(Duration::from_secs(3), client::status(replica.user)).await;
            let state = asked.context("no answer").and_then(|answer| answer).map(|status| status.state);
            let log = || replica.process.as_ref().map(|process| process.tail(8)).unwrap_or_default();
            match state {
                Ok(state) if state == "ready" => {}
                Ok(state) => anyhow::bail!("replica {number} is not ready but: {state}\n{}", log()),
                Err(error) => anyhow::bail!("replica {number}: {error:#}\n{}", log()),
            }
        }
        Ok(())
    }
}

/// Flips a byte in the middle of the largest file.
fn corrupt(directory: &Path) -> anyhow::Result<()> {
    let mut files: Vec<(u64, std::path::PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_file() {
            files.push((found.len(), entry.path()));
        }
    }
    files.sort();
    let Some((length, path)) = files.pop() else { return Ok(()) };
    let mut bytes = fs::read(&path)?;
    if let Some(byte) = bytes.get_mut(usize::try_from(length / 5)?) {
        *byte ^= 0x55;
    }
    Ok(fs::write(&path, bytes)?)
}
