//! `contrast recover`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use manifest::Manifest;
use wire::user::{RecoverRequest, RecoverResponse};
use zeroize::Zeroizing;

use crate::{
    client::{Coordinator, failure, read, read_manifest},
    http::{HttpCoordinator, HttpOptions, IN_RECOVERY, is_http},
    key_file::read_key,
    printer::{Printer, Refused},
    remembered::{self, Memory},
    seed_shares::SeedSharesFile,
};

/// Give a restarted Coordinator its seed back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  contrast recover -c coordinator.example:1313\n  \
    contrast recover -c https://coordinator.example --seedshare-owner-key seedshare-owner.pem")]
pub(crate) struct Args {
    /// The Coordinator, as host:port, or as the URL of its HTTP API.
    #[arg(long, short, env = "CONTRAST_COORDINATOR")]
    coordinator: String,
    /// The manifest in force: the Coordinator is verified by it before it gets the seed.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    /// The seed shares document that the first `set` wrote.
    #[arg(long, default_value = "seedshares.json")]
    seed_shares: PathBuf,
    /// Private key of a seedshare owner.
    #[arg(long, default_value = "seedshare-owner.pem")]
    seedshare_owner_key: PathBuf,
    /// Recover even if other replicas are healthy.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    http: HttpOptions,
    #[command(flatten)]
    memory: Memory,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let key = read_key(&args.seedshare_owner_key)?;
    let shares = serde_json::from_slice(&read(&args.seed_shares)?)
        .with_context(|| args.seed_shares.display().to_string())?;
    let memory = args.memory.path(&args.manifest);
    if is_http(&args.coordinator) {
        let coordinator = HttpCoordinator::new(&args.coordinator, &args.http, &manifest)?;
        let answer = send_http(&coordinator, &shares, &key, &memory).await?;
        return report(answer, printer);
    }
    let answer = send(&args.coordinator, &manifest, &shares, &key, args.force, &memory).await?;
    report(answer, printer)
}

/// Done, or how many more owners must send their shares.
pub(crate) fn report(answer: RecoverResponse, printer: &Printer) -> anyhow::Result<()> {
    let RecoverResponse { shares_received: received, shares_needed: needed } = answer;
    let recovered = received == needed;
    let text = match recovered {
        true => "Recovered.".to_owned(),
        false => {
            format!("Share accepted: {received} of {needed} are there. Let the other owners recover, too.")
        }
    };
    let value = serde_json::json!({
        "recovered": recovered, "shares_received": received, "shares_needed": needed
    });
    printer.result(&text, &value)
}

async fn send_http(
    coordinator: &HttpCoordinator<'_>,
    shares: &SeedSharesFile,
    key: &Zeroizing<String>,
    memory: &Path,
) -> anyhow::Result<RecoverResponse> {
    let (seed, salt) = shares.open(key)?;
    remembered::check(coordinator, memory).await?;
    let checkpoint = remembered::note(memory)?;
    let standing = coordinator.standing(0).await?.context("a log with fewer than no events")?;
    let (shares_received, shares_needed) =
        coordinator.recover(&standing.hpke_key, &seed, &salt, key, &checkpoint).await?;
    if shares_received == shares_needed {
        // That it took the seed is the word of whoever answered; that it serves again is under evidence.
        let state = coordinator.standing(0).await?.context("a log with fewer than no events")?.state;
        if state == IN_RECOVERY {
            let text = "somebody on the way answered that the seed was taken, but the Coordinator still waits for it";
            return Err(Refused(text.into()).into());
        }
    }
    remembered::check(coordinator, memory).await?;
    Ok(RecoverResponse { shares_received, shares_needed })
}

pub(crate) async fn send(
    address: &str,
    manifest: &Manifest,
    shares: &SeedSharesFile,
    key: &Zeroizing<String>,
    force: bool,
    memory: &Path,
) -> anyhow::Result<RecoverResponse> {
    let (seed, salt) = shares.open(key)?;
    let coordinator = Coordinator::connect(address, manifest, Some(key)).await?;
    // Before the seed leaves: a Coordinator whose storage was rolled back does not get it. It checks that itself, too.
    remembered::check(&coordinator, memory).await?;
    let checkpoint = remembered::note(memory)?;
    let request = RecoverRequest { seed: seed.to_vec(), salt, force, checkpoint };
    let answer = coordinator.user().recover(request).await.map_err(failure)?.into_inner();
    remembered::check(&coordinator, memory).await?;
    Ok(answer)
}
