//! `contrast recover`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use manifest::Manifest;
use wire::user::RecoverRequest;
use zeroize::Zeroizing;

use crate::{
    client::{Coordinator, failure, read, read_manifest},
    printer::{Printer, Refused},
    remembered::{self, Memory},
    set::{SeedSharesFile, read_key},
};

/// Give a restarted Coordinator its seed back.
///
/// Example: contrast recover -c coordinator.example:1313 --seedshare-owner-key seedshare-owner.pem
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The Coordinator, as host:port.
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
    memory: Memory,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let manifest = read_manifest(&args.manifest)?;
    let key = read_key(&args.seedshare_owner_key)?;
    let shares = serde_json::from_slice(&read(&args.seed_shares)?)
        .with_context(|| args.seed_shares.display().to_string())?;
    let memory = args.memory.path(&args.manifest);
    send(&args.coordinator, &manifest, &shares, &key, args.force, &memory).await?;
    printer.result("Recovered.", &serde_json::json!({ "recovered": true }))
}

pub(crate) async fn send(
    address: &str,
    manifest: &Manifest,
    shares: &SeedSharesFile,
    key: &Zeroizing<String>,
    force: bool,
    memory: &Path,
) -> anyhow::Result<()> {
    let opened = shares.seed_shares.iter().find_map(|share| {
        let ciphertext = hex::decode(&share.encrypted_seed).ok()?;
        keys::decrypt_seed_share(&ciphertext, key).ok()
    });
    let seed = opened.ok_or_else(|| Refused("no seed share in the document opens with this key".into()))?;
    let salt = hex::decode(&shares.salt).context("seed shares document: Salt is not hex")?;
    let coordinator = Coordinator::connect(address, manifest, Some(key)).await?;
    // Before the seed leaves: a Coordinator whose storage was rolled back does not get it.
    remembered::check(&coordinator, memory).await?;
    let request = RecoverRequest { seed: seed.expose().to_vec(), salt, force };
    coordinator.user().recover(request).await.map_err(failure)?;
    remembered::check(&coordinator, memory).await?;
    Ok(())
}
