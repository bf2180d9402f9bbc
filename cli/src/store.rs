//! `contrast store`: moves the event log between engines.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, ensure};
use etcd_store::{EtcdArgs, EtcdStore};
use storage_schema::{LogId, MigrateError, Migrated, SledStore, migrate};

use crate::{
    printer::{Printer, Refused},
    remembered::{Memory, recall},
};

/// Move the event log from one engine to another.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Migrate(MigrateArgs),
}

/// Copy the log of a stopped Coordinator into etcd, or with --back into a directory; every segment is
/// verified on the way and once more at the end. It can be repeated.
#[derive(Debug, clap::Args)]
struct MigrateArgs {
    /// State directory of the Coordinator; with --back a new one.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// From etcd into the directory.
    #[arg(long)]
    back: bool,
    /// The log's verifier key; `contrast verify` prints it. By default that of the remembered checkpoint.
    #[arg(long, value_name = "KEY")]
    log_key: Option<LogId>,
    /// The manifest, beside which the last checkpoint is remembered.
    #[arg(long, short, default_value = "manifest.json")]
    manifest: PathBuf,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    etcd: EtcdArgs,
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let Command::Migrate(args) = args.command;
    let options = args.etcd.options()?.context("give --etcd-endpoints")?;
    ensure!(args.back || args.state_dir.is_dir(), "{} is not a directory", args.state_dir.display());
    let pinned = match args.log_key {
        Some(log) => Some(log.key()),
        None => recall(&args.memory.path(&args.manifest))?.map(|checkpoint| checkpoint.log.key()),
    };
    let bar = printer.progress("events", None);
    let watched = bar.clone();
    let work = move || {
        let etcd = Arc::new(EtcdStore::new(&options)?);
        let sled = Arc::new(SledStore::open(&args.state_dir)?);
        let progress = |done: &Migrated| watched.set_position(done.events);
        let moved = match args.back {
            false => migrate(&sled, &etcd, pinned, progress),
            true => migrate(&etcd, &sled, pinned, progress),
        };
        moved.map_err(refused)
    };
    let moved = tokio::task::spawn_blocking(work).await??;
    bar.finish_and_clear();
    let Migrated { streams, segments, events, blobs } = moved;
    ensure!(events > 0, "the source holds no event");
    let text = format!(
        "Moved and verified: {events} events in {segments} segments of {streams} streams, {blobs} blobs"
    );
    printer.result(
        &text,
        &serde_json::json!({ "streams": streams, "segments": segments, "events": events, "blobs": blobs }),
    )
}

/// A log that does not verify, or a destination with another one, is a refusal.
fn refused(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::Store(error) => error.into(),
        other => Refused(other.to_string()).into(),
    }
}
