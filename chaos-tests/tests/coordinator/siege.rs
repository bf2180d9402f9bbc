//! Everything at once, for a while: a Coordinator with the memory that it has by default, in a control group that
//! enforces it, and all floods from another one. `SIEGE_SECONDS` says for how long; `./test siege` takes ten minutes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use attestation::{Issuer, simulated::SimulatedMachine};
use chaos_tests::deployment::{Deployment, WEB};
use manifest::PolicyHash;

use crate::{
    attacks::{certificate, from},
    done, stderr,
};

/// What `contrast coordinator` asks for, in MiB, if nobody says otherwise (docs/limits.md).
const MEMORY: u64 = 512;
/// Longest that somebody with a right may wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// A control group, gone when dropped. Both versions are spoken.
struct Group {
    directory: PathBuf,
    /// Files of the limit, of the most that was used, and of how often the kernel killed for memory.
    files: [&'static str; 3],
}

impl Group {
    /// `Err`: this machine lets us make none.
    fn new(name: &str, limit: Option<u64>) -> std::io::Result<Self> {
        let name = format!("contrast-{name}-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let group = match first.is_dir() {
            true => Self {
                directory: first.join(name),
                files: ["memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"],
            },
            false => Self {
                directory: Path::new("/sys/fs/cgroup").join(name),
                files: ["memory.max", "memory.peak", "memory.events"],
            },
        };
        fs::create_dir(&group.directory)?;
        if let Some(limit) = limit {
            fs::write(group.directory.join(group.files[0]), limit.to_string())?;
        }
        Ok(group)
    }

    /// Where its processes are named.
    fn procs(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    fn most_used(&self) -> u64 {
        fs::read_to_string(self.directory.join(self.files[1])).unwrap().trim().parse().unwrap()
    }

    fn killed(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join(self.files[2])).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.map_or(0, |count| count.trim().parse().unwrap())
    }
}

/// A command whose process, and what it starts, is in a group.
fn within(procs: &Path, program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs).arg(program);
    command
}

impl Drop for Group {
    fn drop(&mut self) {
        // Only when its last process is gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Attackers(Child);

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What took how long, of those that have a right.
#[derive(Default)]
struct Good(Vec<(&'static str, Duration)>);

impl Good {
    fn note(&mut self, what: &'static str, since: Instant) {
        let took = since.elapsed();
        assert!(took < DEADLINE, "{what} took {took:?}");
        self.0.push((what, took));
    }

    fn percentiles(&self, what: &str) -> (usize, Duration, Duration) {
        let mut took: Vec<Duration> =
            self.0.iter().filter(|(kind, _)| *kind == what).map(|(_, took)| *took).collect();
        took.sort();
        (took.len(), took[took.len() / 2], took[took.len() * 99 / 100])
    }
}

#[test]
fn a_coordinator_in_its_memory_survives_all_floods_at_once_and_serves_who_has_a_right() {
    let seconds = std::env::var("SIEGE_SECONDS").map_or(60, |text| text.parse().unwrap());
    let groups = Group::new("coordinator", Some(MEMORY << 20))
        .and_then(|own| Ok((own, Group::new("attackers", None)?)));
    let (own, theirs) = match groups {
        Ok(groups) => groups,
        Err(error) => {
            // Whoever asks for a siege by name wants one.
            assert!(
                std::env::var_os("SIEGE_SECONDS").is_none(),
                "no control group can be made here: {error}"
            );
            println!("not tried: no control group can be made here: {error}");
            return;
        }
    };
    let procs = own.procs();
    let deployment = Deployment::start_by(move |program| within(&procs, program), &[], |_, _| {}).unwrap();
    done(&deployment, &["set"]);
    let pid = deployment.pid();
    let machine = SimulatedMachine::open(&deployment.path("machine")).unwrap();
    let issuer: Arc<dyn Issuer> = Arc::new(machine.guest(PolicyHash::of(WEB)));
    let ports = deployment.ports;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();

    let mut attack = within(&theirs.procs(), &chaos_tests::program("attackers"));
    for (name, port) in [
        ("--user", ports.user),
        ("--mesh", ports.mesh),
        ("--http", ports.http),
        ("--transit", ports.transit),
        ("--probe", ports.probe),
    ] {
        attack.arg(name).arg(port.to_string());
    }
    let rounds = deployment.path("rounds.json");
    attack.arg("--rounds").arg(&rounds);
    let mut attackers = Attackers(attack.spawn().unwrap());

    let (started, mut good) = (Instant::now(), Good::default());
    let mut round = 0_u32;
    while started.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..5 {
            let began = Instant::now();
            let issued = runtime.block_on(certificate(ports.mesh, Arc::clone(&issuer)));
            assert!(issued.is_ok(), "a certificate, after {:?}: {issued:?}", started.elapsed());
            good.note("certificate", began);
        }
        for path in ["/probe/liveness", "/probe/readiness", "/probe/startup"] {
            let began = Instant::now();
            let answer = deployment.get(ports.probe, path);
            let answered = answer.as_ref().is_ok_and(|answer| !answer.is_empty());
            assert!(answered, "{path} after {:?}: {answer:?}", started.elapsed());
            good.note("probe", began);
        }
        // The owner reads, and every tenth time changes the manifest.
        let began = Instant::now();
        let checkpoint = ["audit", "checkpoint", "--auditor-key", "workload-owner.pem"];
        let read = deployment.contrast(&checkpoint).unwrap();
        assert!(read.status.success(), "after {:?}: {}", started.elapsed(), stderr(&read));
        good.note("owner reads", began);
        if round % 10 == 9 {
            let began = Instant::now();
            let mut next = deployment.manifest().unwrap().body().clone();
            next.minimum_api_version = if round % 20 == 9 { "v1".into() } else { String::new() };
            fs::write(deployment.path("manifest.json"), next.to_json()).unwrap();
            let set = deployment.contrast(&["set", "--workload-owner-key", "workload-owner.pem"]).unwrap();
            assert!(set.status.success(), "after {:?}: {}", started.elapsed(), stderr(&set));
            good.note("owner sets", began);
        }
        round += 1;
        assert!(attackers.0.try_wait().unwrap().is_none(), "the attackers gave up");
    }
    let rounds: BTreeMap<String, u64> = serde_json::from_slice(&fs::read(&rounds).unwrap()).unwrap();
    println!("rounds of each attack: {rounds:?}");
    assert!(!rounds.is_empty() && rounds.values().all(|count| *count > 0), "{rounds:?}");
    let used = own.most_used();
    println!("memory: {} MiB of {MEMORY} at most; {} rounds in {:?}", used >> 20, round, started.elapsed());
    for what in ["certificate", "probe", "owner reads"] {
        println!("{what}: count, p50, p99: {:?}", good.percentiles(what));
    }
    assert_eq!(own.killed(), 0, "the kernel killed for memory");
    assert_eq!(deployment.pid(), pid);
    assert!(Path::new(&format!("/proc/{pid}/exe")).exists(), "{}", deployment.log());
    assert!(!deployment.log().contains("panicked"), "{}", deployment.log());
    drop(attackers);
    // And afterwards it is open to strangers again.
    let calm = Instant::now();
    while runtime.block_on(from([127, 0, 0, 2], ports.user)).is_err() {
        assert!(calm.elapsed() < DEADLINE);
    }
    done(&deployment, &["verify"]);
    drop(deployment);
}
