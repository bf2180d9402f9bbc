//! The real programs, as processes of their own.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use manifest::PolicyHash;
use tokio::process::{Child, Command};

use super::plan::{Plan, PlannedPod};

const START: Duration = Duration::from_secs(60);
/// A Coordinator that drains may take this long.
const STOP: Duration = Duration::from_secs(60);

/// Loopback addresses of one Coordinator.
pub(super) struct Ports {
    pub(super) user: SocketAddr,
    pub(super) mesh: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) probe: SocketAddr,
}

impl Ports {
    /// Checks that the wanted ports are free, and picks free ones for 0.
    pub(super) fn choose(user: u16, mesh: u16, http: u16, probe: u16) -> anyhow::Result<Self> {
        // All are held until all are chosen, so that no two are the same.
        let hold = |flag: &str, port: u16| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
                format!("{flag} {port}: the port is in use; stop what uses it, or give another (0 takes a free one)")
            })
        };
        let held = [
            hold("--user-port", user)?,
            hold("--mesh-port", mesh)?,
            hold("--http-port", http)?,
            hold("--probe-port", probe)?,
        ];
        let [user, mesh, http, probe] = held.map(|listener| listener.local_addr());
        Ok(Self { user: user?, mesh: mesh?, http: http?, probe: probe? })
    }
}

/// A program beside this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let path = this.with_file_name(name);
    ensure!(path.is_file(), "{} is missing: build it with `cargo build --release`", path.display());
    Ok(path)
}

/// A Coordinator process; killed when dropped.
pub(super) struct Coordinator {
    child: Child,
}

impl Drop for Coordinator {
    /// Waits until it is gone: who drops this may delete its directory next.
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        for _ in 0..1000 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Coordinator {
    /// Starts it and waits until its startup probe answers.
    pub(super) async fn start(plan: &Plan, ports: &Ports) -> anyhow::Result<Self> {
        let path = plan.directory.join("coordinator.log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let mut child = Command::new(program("coordinator")?)
            .arg("--state-dir")
            .arg(plan.directory.join("event-log"))
            .args(["--user-listen", &ports.user.to_string(), "--mesh-listen", &ports.mesh.to_string()])
            .args(["--probe-listen", &ports.probe.to_string(), "--http-listen", &ports.http.to_string()])
            .arg("--simulated-machine")
            .arg(&plan.machine)
            .args(["--policy-hash", &plan.coordinator_policy()?.to_string()])
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the Coordinator")?;
        let started = async {
            loop {
                if let Some(status) = child.try_wait()? {
                    let log = std::fs::read_to_string(&path).unwrap_or_default();
                    bail!(
                        "the Coordinator ended ({status}): {}",
                        log.lines().rfind(|line| line.contains(" ERROR ")).unwrap_or("no error in its log")
                    );
                }
                if tokio::net::TcpStream::connect(ports.probe).await.is_ok() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outcome = tokio::time::timeout(START, started).await;
        outcome.with_context(|| format!("no start within {START:?}; see {}", path.display()))??;
        Ok(Self { child })
    }

    /// SIGKILL: no chance to tidy up.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill the Coordinator")
    }

    /// SIGTERM, and waits until it has drained.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            let status = Command::new("kill").arg(pid.to_string()).status().await?;
            ensure!(status.success(), "cannot send SIGTERM to the Coordinator");
        }
        let stopped = tokio::time::timeout(STOP, self.child.wait()).await;
        stopped.context("the Coordinator did not stop on SIGTERM")??;
        Ok(())
    }

    /// Its process id; it is not killed any more.
    pub(super) fn leave_running(self) -> u32 {
        let pid = self.child.id().unwrap_or_default();
        std::mem::forget(self);
        pid
    }
}

fn initializer(plan: &Plan, ports: &Ports, policy: PolicyHash, directory: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program("initializer")?);
    command
        .arg("--once")
        .args(["--coordinator", &ports.mesh.to_string(), "--policy-hash", &policy.to_string()])
        .arg("--directory")
        .arg(directory)
        .arg("--simulated-machine")
        .arg(&plan.machine)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

/// Runs a pod's initializer; its files are in `directory` afterwards.
pub(super) async fn initialize(
    plan: &Plan,
    ports: &Ports,
    pod: &PlannedPod,
    directory: &Path,
) -> anyhow::Result<()> {
    let output = initializer(plan, ports, pod.policy, directory)?.output().await?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "initializer of {}: {}", pod.pod.name, log.trim());
    ensure!(directory.join("done").is_file(), "initializer of {} left no done marker", pod.pod.name);
    Ok(())
}

/// Runs an initializer with a policy that the manifest does not list; returns why it was refused.
pub(super) async fn refused(plan: &Plan, ports: &Ports, directory: &Path) -> anyhow::Result<String> {
    let policy = PolicyHash::of(b"a policy that nobody put in the manifest");
    let output = initializer(plan, ports, policy, directory)?.output().await?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "a workload that is not in the manifest got a certificate");
    ensure!(log.contains("is not in the current manifest"), "refused for another reason: {log}");
    let reason = log.lines().find_map(|line| line.split_once("refused this pod: ")).map(|(_, reason)| reason);
    Ok(reason.unwrap_or(&log).to_owned())
}
