//! `contrast audit`: the event log for compliance: export, check, prove, watch.

mod evidence;
mod export;
pub(crate) mod filtered;
mod ocsf;
mod proof;
mod record;
mod verify;
mod watch;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use storage_schema::LogId;

use crate::{
    printer::{Printer, Refused},
    remembered::{check, recall},
    source::{From, Source},
    usage::out_file,
};

/// Export the event log, check an export, prove single events, follow the log live.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Export(export::Args),
    /// Check an export without any Coordinator: signatures, chain, tree heads, and each certificate's
    /// evidence once more, against the manifest that was in force.
    Verify {
        /// A file of `contrast audit export --format jsonl`.
        file: PathBuf,
        /// The log's verifier key. By default that of the checkpoint.note beside the file; without one the export's own
        /// is taken, with a warning.
        #[arg(long, value_name = "KEY")]
        log_key: Option<LogId>,
    },
    /// Prove to a third party that a certificate is in the log.
    Prove {
        /// Serial number of the certificate, 32 hex digits.
        serial: manifest::SerialNumber,
        /// Where to write the proof; stdout if it is not given.
        #[arg(long, short, value_name = "FILE", value_parser = out_file)]
        out: Option<PathBuf>,
        #[command(flatten)]
        from: From,
    },
    /// Check what `prove` wrote. Needs nothing but the file.
    CheckProof {
        /// The proof.
        file: PathBuf,
        /// The log's verifier key. By default that of the checkpoint.note beside the file; without one the proof's own
        /// is taken, with a warning.
        #[arg(long, value_name = "KEY")]
        log_key: Option<LogId>,
    },
    Watch(watch::Args),
    /// Print the head of the control stream as a C2SP checkpoint, which a witness can cosign.
    Checkpoint {
        #[command(flatten)]
        from: From,
    },
}

/// The log whose key was given, or that was remembered beside the file.
fn log_of(given: Option<LogId>, file: &Path) -> anyhow::Result<Option<LogId>> {
    match given {
        Some(log) => Ok(Some(log)),
        None => Ok(recall(&file.with_file_name("checkpoint.note"))?.map(|checkpoint| checkpoint.log)),
    }
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Export(args) => export::run(args, printer).await,
        Command::Verify { file, log_key } => verify::run(&file, log_of(log_key, &file)?, printer),
        Command::Prove { serial, out, from } => proof::prove(serial, out.as_deref(), &from, printer).await,
        Command::CheckProof { file, log_key } => proof::check(&file, log_of(log_key, &file)?, printer),
        Command::Watch(args) => watch::run(args, printer).await,
        Command::Checkpoint { from } => {
            let (source, _) = from.open(printer).await?;
            let Source::Live { coordinator, .. } = source else {
                anyhow::bail!("a checkpoint is signed by a live Coordinator: give --coordinator");
            };
            let known = check(coordinator.as_ref(), &from.memory_path()).await?;
            let note = known.map(|known| known.note).filter(|note| !note.is_empty());
            let note = note.ok_or_else(|| Refused("the Coordinator waits for its seed".into()))?;
            printer.result(&note, &serde_json::json!({ "checkpoint": note }))
        }
    }
}
