//! Replicas of a Coordinator on one etcd cluster, each behind proxies of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;
use manifest::PolicyHash;

use crate::{
    byzantine::Byzantine,
    client,
    etcd::Cluster,
    host::Host,
    plan::{COORDINATOR, Plan},
    process::{Process, free_port},
    program,
    proxy::Proxy,
};

const START: Duration = Duration::from_secs(60);

/// The replicas.
pub struct Fleet {
    /// What they run.
    pub plan: Plan,
    /// What they share.
    pub etcd: Cluster,
    /// The replicas, running or not.
    pub replicas: Vec<Replica>,
    /// Policy of each replica that is started from now on.
    pub policy: PolicyHash,
    /// Further arguments of each replica that is started from now on.
    pub arguments: Vec<String>,
    directory: PathBuf,
}

/// One of them.
pub struct Replica {
    /// The process, if it runs.
    pub process: Option<Process>,
    /// Port for operators.
    pub user: u16,
    /// Port for workloads and peers.
    pub mesh: u16,
    /// Port for probes.
    pub probe: u16,
    /// To each member of etcd.
    pub proxies: Vec<Proxy>,
    /// Before each member of etcd, in use only when a proxy was redirected.
    pub liars: Vec<Byzantine>,
    /// Where its peers reach it.
    pub front: Proxy,
    /// Its clock and its disk.
    pub host: Host,
    /// Its local copy.
    pub state: PathBuf,
}

impl Fleet {
    /// Makes a plan, starts etcd, and starts `replicas` Coordinators.
    pub async fn start(directory: &Path, members: usize, replicas: usize) -> anyhow::Result<Self> {
        Self::start_with(directory, members, replicas, &[]).await
    }

    /// The same, with further arguments of each replica.
    pub async fn start_with(
        directory: &Path,
        members: usize,
        replicas: usize,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let plan = Plan::make(directory)?;
        let etcd = Cluster::start(&directory.join("etcd"), members, false)?;
        let mut fleet = Self {
            plan,
            etcd,
            replicas: Vec::new(),
            policy: PolicyHash::of(COORDINATOR),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            directory: directory.to_owned(),
        };
        for _ in 0..replicas {
            fleet.add().await?;
        }
        for replica in 0..replicas {
            fleet.restart(replica)?;
        }
        for replica in 0..replicas {
            fleet.wait_listening(replica).await?;
        }
        Ok(fleet)
    }

    /// Plans one more replica; [`Fleet::restart`] starts it.
    pub async fn add(&mut self) -> anyhow::Result<usize> {
        let (mut proxies, mut liars) = (Vec::new(), Vec::new());
        for member in 0..self.etcd.len() {
            let target = SocketAddr::from(([127, 0, 0, 1], self.etcd.port(member)));
            proxies.push(Proxy::start(target).await?);
            liars.push(Byzantine::start(target).await?);
        }
        let number = self.replicas.len();
        let state = self.directory.join(format!("replica-{number}"));
        let [user, mesh, probe] = [free_port()?, free_port()?, free_port()?];
        let front = Proxy::start(SocketAddr::from(([127, 0, 0, 1], mesh))).await?;
        let numbers = self.directory.join(format!("replica-{number}.host"));
        let host = Host::new(&self.directory.join("host.so"), &numbers)?;
        self.replicas.push(Replica { process: None, user, mesh, probe, proxies, liars, front, host, state });
        Ok(number)
    }

    /// Starts a replica on the state it had; one that runs is killed.
    pub fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        let endpoints: Vec<String> = {
            let proxies = &self.replicas[number].proxies;
            proxies.iter().map(|proxy| format!("http://127.0.0.1:{}", proxy.port)).collect()
        };
        self.restart_on(number, &endpoints)
    }

    /// Starts a replica on other endpoints of etcd.
    pub fn restart_on(&mut self, number: usize, endpoints: &[String]) -> anyhow::Result<()> {
        self.kill(number);
        let peers: Vec<String> =
            self.replicas.iter().map(|replica| format!("127.0.0.1:{}", replica.front.port)).collect();
        let replica = &mut self.replicas[number];
        let mut command = Command::new(program("coordinator"));
        command
            .arg("--state-dir")
            .arg(&replica.state)
            .args(["--user-listen", &format!("127.0.0.1:{}", replica.user)])
            .args(["--mesh-listen", &format!("127.0.0.1:{}", replica.mesh)])
            .args(["--probe-listen", &format!("127.0.0.1:{}", replica.probe)])
            .arg("--simulated-machine")
            .arg(&self.plan.machine)
            .args(["--policy-hash", &self.policy.to_string()])
            .args(["--etcd-endpoints", &endpoints.join(","), "--peers", &peers.join(",")])
            .args(["--exchange-seconds", "2"])
            .args(&self.arguments)
            .env("NO_COLOR", "1")
            .env_remove("RUST_BACKTRACE"); // the reason of an end shall be in the last lines
        if !self.arguments.iter().any(|argument| argument == "--checkpoint-seconds") {
            command.args(["--checkpoint-seconds", "5"]);
        }
        replica.host.carry(&mut command);
        let log = self.directory.join(format!("replica-{number}.log"));
        replica.process = Some(Process::start(&mut command, &log)?);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self, number: usize) {
        self.replicas[number].process = None;
    }

    /// SIGSTOP, SIGCONT and the like.
    pub fn signal(&self, number: usize, name: &str) -> anyhow::Result<()> {
        self.replicas[number].process.as_ref().map_or(Ok(()), |process| process.signal(name))
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, number: usize) -> anyhow::Result<()> {
        match self.replicas[number].process.take() {
            Some(process) => process.stop(Duration::from_secs(45)).map(drop),
            None => Ok(()),
        }
    }

    /// Waits until a replica accepts connections.
    pub async fn wait_listening(&mut self, number: usize) -> anyhow::Result<()> {
        let until = std::time::Instant::now() + START;
        loop {
            let replica = &mut self.replicas[number];
            if tokio::net::TcpStream::connect(("127.0.0.1", replica.probe)).await.is_ok() {
                return Ok(());
            }
            let process = replica.process.as_mut().context("it was not started")?;
            if let Some(status) = process.ended() {
                anyhow::bail!("replica {number} ended ({status}): {}", process.tail(5));
            }
            anyhow::ensure!(std::time::Instant::now() < until, "replica {number}: {}", process.tail(5));
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until a replica says that it is ready.
    pub async fn wait_ready(&mut self, number: usize, limit: Duration) -> anyhow::Result<()> {
        self.wait_state(number, "ready", limit).await
    }

    /// Waits until a replica says that it is in this state.
    pub async fn wait_state(&mut self, number: usize, state: &str, limit: Duration) -> anyhow::Result<()> {
        self.wait_listening(number).await?;
        let until = std::time::Instant::now() + limit;
        loop {
            let status = client::status(self.replicas[number].user).await;
            let found = match &status {
                Ok(status) if status.state == state => return Ok(()),
                Ok(status) => format!("{}; alarms: {:?}", status.state, status.alarms),
                Err(error) => format!("{error:#}"),
            };
            if std::time::Instant::now() > until {
                let log = self.replicas[number].process.as_ref().map(|process| process.tail(8));
                anyhow::bail!(
                    "replica {number} is not {state:?} within {limit:?} but: {found}\n{}",
                    log.unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a replica holds everything that others wrote so far.
    pub async fn wait_complete(&mut self, number: usize, limit: Duration) -> anyhow::Result<()> {
        let until = std::time::Instant::now() + limit;
        loop {
            let status = client::status(self.replicas[number].user).await?;
            if status.incomplete_streams == Some(0) {
                return Ok(());
            }
            if std::time::Instant::now() > until {
                let log = self.replicas[number].process.as_ref().map(|process| process.tail(8));
                anyhow::bail!("replica {number} lacks streams: {status:?}\n{}", log.unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ports for operators, of all replicas.
    pub fn user_ports(&self) -> Vec<u16> {
        self.replicas.iter().map(|replica| replica.user).collect()
    }

    /// Ports for workloads, of all replicas.
    pub fn mesh_ports(&self) -> Vec<u16> {
        self.replicas.iter().map(|replica| replica.mesh).collect()
    }
}
