//! `contrast recover`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coordinator_client::{SeedShareForm, Session};
use wire::user::RecoverResponse;
use zeroize::Zeroizing;

use crate::{
    client::{Address, HttpOptions, failed},
    files::{read, read_manifest},
    key_file::read_key,
    older_head,
    printer::{Printer, Refused},
    remembered::{self, Memory},
    seed_shares::SeedSharesFile,
};

/// Give a restarted Coordinator its seed back.
#[derive(Debug, clap::Args)]
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
    /// After a disaster: accept the history that the Coordinator has although it does not extend the remembered
    /// checkpoint. What came after it is lost for good. Recorded with this owner's signature, and shown by every `verify`
    /// from then on.
    #[arg(long)]
    accept_older_head: bool,
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
    let how = How { force: args.force, accept_older_head: args.accept_older_head };
    let address = Address::new(&args.coordinator, &args.http);
    let session = address.open(&manifest, Some(&key)).await?;
    report(send(&session, &shares, &key, &how, &memory, printer).await?, printer)
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

/// What an owner may say besides.
#[derive(Default)]
pub(crate) struct How {
    pub(crate) force: bool,
    pub(crate) accept_older_head: bool,
}

/// Holds what a Coordinator shows against what is remembered, or has the owner accept it. Gives the signature and the
/// public key of that, if it was needed.
async fn check_or_accept(
    coordinator: &Session,
    accept: bool,
    key: &Zeroizing<String>,
    memory: &Path,
    printer: &Printer,
) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let refused = match remembered::check(coordinator, memory).await {
        Ok(_) => return Ok(None),
        Err(error) if accept && error.is::<Refused>() => error,
        Err(error) => return Err(error),
    };
    let Some(remembered) = remembered::recall(memory)? else { return Err(refused) };
    let shown = remembered::shown(coordinator).await?;
    if shown.log != remembered.log {
        return Err(refused);
    }
    printer.note(&format!("{refused:#}\nwarning: accepted, as --accept-older-head says; this is recorded"));
    older_head::accept(&remembered, &shown.head, key).map(Some)
}

/// Once it is recovered, what it shows is what counts.
async fn remember(coordinator: &Session, accepted: bool, done: bool, memory: &Path) -> anyhow::Result<()> {
    match accepted {
        true if done => remembered::begin_anew(coordinator, memory).await,
        true => Ok(()), // other owners give their parts first
        false => remembered::check(coordinator, memory).await.map(drop),
    }
}

pub(crate) async fn send(
    session: &Session,
    shares: &SeedSharesFile,
    owner_key: &Zeroizing<String>,
    how: &How,
    memory: &Path,
    printer: &Printer,
) -> anyhow::Result<RecoverResponse> {
    let (seed, salt) = shares.open(owner_key)?;
    // Before the seed leaves: a Coordinator whose storage was rolled back does not get it. It checks that itself, too.
    let accepted = check_or_accept(session, how.accept_older_head, owner_key, memory, printer).await?;
    let (checkpoint, force, is_accepted) = (remembered::note(memory)?, how.force, accepted.is_some());
    let form = SeedShareForm { seed, salt, checkpoint, force, owner_key, accept_older_head: accepted };
    let answer = session.recover(form).await.map_err(failed)?;
    remember(session, is_accepted, answer.shares_received == answer.shares_needed, memory).await?;
    Ok(answer)
}
