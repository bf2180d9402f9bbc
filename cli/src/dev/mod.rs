//! `contrast dev`: a whole deployment on one machine, through the code that production runs.

mod echo;
mod plan;
mod process;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use attestation::simulated::SimulatedKind;
use coordinator_client::Session;
use manifest::Manifest;
use zeroize::Zeroizing;

use crate::{
    client,
    key_file::read_key,
    printer::Printer,
    recover, remembered,
    seed_shares::SeedSharesFile,
    set,
    source::{Recorded, Source},
    verify,
};
use plan::Plan;
use process::{Coordinator, Ports, initialize};
use report::{Report, Workload};

/// Run a whole deployment on this machine: Coordinator, one initializer per pod, proofs, recovery.
///
/// The hardware is simulated and protects nothing; everything else is what production runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files and folders of Kubernetes YAML; a shop of four services if none is given.
    paths: Vec<PathBuf>,
    /// What the simulated machine pretends to be.
    #[arg(long, value_enum, default_value_t = Simulated::Snp, env = "CONTRAST_DEV_PLATFORM")]
    platform: Simulated,
    /// Where everything is written; must be empty or new. A temporary directory if none is given.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Leave the Coordinator running, and print commands to try next.
    #[arg(long)]
    keep: bool,
    /// Port of the user API on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    user_port: u16,
    /// Port of the mesh API on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    mesh_port: u16,
    /// Port of the HTTP API on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    http_port: u16,
    /// Port of the probes on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    probe_port: u16,
}

/// Kinds of simulated machines.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Simulated {
    /// An AMD processor with SEV-SNP.
    Snp,
    /// An Intel platform with TDX.
    Tdx,
}

impl From<Simulated> for SimulatedKind {
    fn from(kind: Simulated) -> Self {
        match kind {
            Simulated::Snp => Self::Snp,
            Simulated::Tdx => Self::Tdx,
        }
    }
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let interrupted = tokio::signal::ctrl_c();
    // Dropping the deployment ends its processes and removes its temporary directory.
    tokio::select! {
        outcome = deployment(args, printer) => outcome,
        _ = interrupted => anyhow::bail!("interrupted; everything that was started has been stopped"),
    }
}

async fn deployment(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let temporary = match args.state_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("contrast-dev-").tempdir()?),
    };
    let directory = match (&args.state_dir, &temporary) {
        (Some(directory), _) => directory.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => anyhow::bail!("no state directory"),
    };

    let step = printer.step("Policies, manifest and owner keys");
    let plan = Plan::make(&args.paths, &directory, args.platform.into(), printer).await?;
    let pods = plan.pods.len();
    step.done(&format!(
        "{pods} pods, manifest {:.16}…, simulated root {:.16}…",
        plan.manifest.hash(),
        plan.root
    ));

    let step = printer.step("Coordinator on loopback");
    let ports = Ports::choose(args.user_port, args.mesh_port, args.http_port, args.probe_port)?;
    let mut coordinator = Coordinator::start(&plan, &ports).await?;
    step.done(&format!("user API {}, mesh API {}, HTTP API http://{}", ports.user, ports.mesh, ports.http));

    let user = ports.user.to_string();
    let step = printer.step("Set the manifest over attested TLS");
    let memory = directory.join("checkpoint.note");
    let by_nobody = session(&user, &plan.manifest, None).await?;
    let answer = set::send(&by_nobody, &plan.manifest, plan.policies(), &memory).await?;
    set::store(&directory, None, &answer, printer)?;
    step.done("Coordinator's evidence verified first; seed shares received");

    let step = printer.step("Verify as a data owner");
    let verified = verify::check(&by_nobody, &plan.manifest, &memory).await?;
    step.done(&format!("{}; manifest byte-equal, history adds up", verified.platform));

    let step = printer.step("One initializer per pod");
    let workloads: Vec<_> = plan.workloads().collect();
    let runs = workloads.iter().map(|pod| initialize(&plan, &ports, pod, &pod.directory));
    futures_util::future::try_join_all(runs).await?;
    let number = report::counted(workloads.len(), "workload");
    step.done(&format!("{number} attested and got certificate, key, CA and secret"));

    let [client, others @ ..] = workloads.as_slice() else {
        anyhow::bail!(
            "the YAML holds no confidential pod besides the Coordinator, so there is nothing to run"
        );
    };
    // A lone workload talks to itself, as two replicas of it would.
    let server = others.first().unwrap_or(client);
    let step = printer.step("Mutual TLS between workloads");
    let echoed = echo::between(&client.directory, &server.directory, &server.pod.name).await?;
    ensure!(echoed == "hello over mutual TLS", "the echo came back as {echoed:?}");
    step.done(&format!("{} called {} and got its echo", client.pod.name, server.pod.name));

    let step = printer.step("A workload that is not in the manifest");
    let refusal = process::refused(&plan, &ports, &directory.join("stranger")).await?;
    step.done(&format!("refused: {refusal}"));

    let step = printer.step("A client with a certificate from elsewhere");
    let refusal = echo::foreign_client(&server.directory, &server.pod.name).await?;
    step.done(&format!("refused: {refusal}"));

    let step = printer.step("Update the manifest");
    let updated = plan.updated()?;
    let owner = read_key(&directory.join("workload-owner.pem"))?;
    let stranger = keys::generate_workload_owner_key()?.0;
    let by_stranger = session(&user, &updated, Some(&stranger)).await?;
    let unauthorised = set::send(&by_stranger, &updated, plan.policies(), &memory).await;
    ensure!(unauthorised.is_err(), "a stranger's key changed the manifest");
    let by_owner = session(&user, &updated, Some(&owner)).await?;
    set::send(&by_owner, &updated, plan.policies(), &memory).await?;
    let before = verify::check(&by_owner, &updated, &memory).await?;
    let events_before = events(&user, &updated, &owner, &memory, printer).await?;
    step.done("a stranger's key was refused, the workload owner's accepted");

    let step = printer.step("Kill the Coordinator with SIGKILL, restart, recover");
    coordinator.kill().await?;
    coordinator = Coordinator::start(&plan, &ports).await?;
    let seed_key = read_key(&directory.join("seedshare-owner.pem"))?;
    let by_seed_owner = session(&user, &updated, Some(&seed_key)).await?;
    let waiting = verify::check(&by_seed_owner, &updated, &memory).await;
    ensure!(waiting.is_err(), "a restarted Coordinator served without its seed");
    let shares: SeedSharesFile = serde_json::from_slice(&std::fs::read(directory.join("seedshares.json"))?)?;
    let how = recover::How::default();
    recover::send(&by_seed_owner, &shares, &seed_key, &how, &memory, printer).await?;
    step.done("nothing was served before the seed share came back");

    let step = printer.step("History, certificates and secrets as before");
    let after = verify::check(&by_seed_owner, &updated, &memory).await?;
    ensure!(after.history == before.history, "the history changed over the restart");
    let events = events(&user, &updated, &owner, &memory, printer).await?;
    for event in &events_before {
        ensure!(
            events.contains(event),
            "event {} of {} is missing after the restart",
            event.sequence,
            event.stream
        );
    }
    let again = directory.join("again").join(&client.pod.name);
    initialize(&plan, &ports, client, &again).await?;
    let secret = |directory: &std::path::Path| std::fs::read(directory.join("secrets/workload-secret-seed"));
    ensure!(secret(&client.directory)? == secret(&again)?, "the workload secret changed over the restart");
    echo::chains_to_root(&client.directory, &after.root_pem)?;
    step.done(&format!(
        "{} events kept and proven, same secret, old certificate valid under the root",
        events_before.len()
    ));

    let workloads = workloads.iter().map(|pod| Workload::read(pod)).collect::<anyhow::Result<_>>()?;
    let report = Report::new(&updated, workloads, &events, &directory, &ports);
    std::fs::write(directory.join("manifest.json"), updated.bytes()).context("cannot write manifest.json")?;
    finish(args.keep, coordinator, temporary, report, printer).await
}

async fn session(
    address: &str,
    manifest: &Manifest,
    key: Option<&Zeroizing<String>>,
) -> anyhow::Result<Session> {
    client::attested(address, manifest, key).await.map(Session::Grpc)
}

/// Every event of every stream, verified.
async fn events(
    address: &str,
    manifest: &Manifest,
    key: &Zeroizing<String>,
    memory: &Path,
    printer: &Printer,
) -> anyhow::Result<Vec<Recorded>> {
    let coordinator = client::attested(address, manifest, Some(key)).await?;
    let known = remembered::check(&coordinator, memory).await?.context("there is no history")?;
    let source = Source::live(coordinator, true);
    let mut all = Vec::new();
    for stream in source.streams(printer).await? {
        all.extend(source.events(stream, known.log.key()).await?);
    }
    Ok(all)
}

/// Prints the report; either leaves everything running or takes it down in order.
async fn finish(
    keep: bool,
    coordinator: Coordinator,
    temporary: Option<tempfile::TempDir>,
    mut report: Report,
    printer: &Printer,
) -> anyhow::Result<()> {
    if keep {
        let pid = coordinator.leave_running();
        if let Some(directory) = temporary {
            let _ = directory.keep();
        }
        report.kept(pid);
    } else {
        coordinator.stop().await?;
    }
    printer.result(&report.text(), &report)
}
