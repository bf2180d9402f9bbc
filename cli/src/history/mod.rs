//! `contrast history`: what the manifest was, when, by whom, and what changed.

pub(crate) mod moment;
mod render;
mod timeline;
mod verify;

use clap::Subcommand;

use program::now;

use crate::{printer::Printer, source::From};
pub(crate) use render::changes;
use timeline::Timeline;

/// Ask what the manifest was, when, by whom, and what changed.
///
/// Everything shown was verified first: signatures, hash chain, Merkle tree, and that a live
/// Coordinator extends the checkpoint remembered from last time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Each manifest: number, time, who set it, what changed.
    List {
        #[command(flatten)]
        from: From,
    },
    /// One manifest, byte for byte; or its policies.
    Show {
        /// `latest`, a number, or the beginning of a manifest's or transition's hash.
        #[arg(default_value = "latest")]
        which: String,
        /// Print the policy documents instead.
        #[arg(long)]
        policies: bool,
        #[command(flatten)]
        from: From,
    },
    /// What changed between two manifests, policies included.
    Diff {
        /// The older one, as for `show`.
        old: String,
        /// The newer one.
        #[arg(default_value = "latest")]
        new: String,
        #[command(flatten)]
        from: From,
    },
    /// What was in force at a time.
    At {
        /// Such as "tuesday noon", "2h ago", "2026-11-24 12:00"; UTC.
        time: String,
        #[command(flatten)]
        from: From,
    },
    /// Search manifests and policies of the whole history.
    Grep {
        /// A regular expression.
        pattern: String,
        #[command(flatten)]
        from: From,
    },
    /// Verify the whole log: every segment of every stream that may be read.
    Verify {
        #[command(flatten)]
        from: From,
    },
}

pub(crate) async fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let timeline = async |from: &From| {
        let (source, key) = from.open(printer).await?;
        Timeline::read(&source, key).await
    };
    match args.command {
        Command::List { from } => render::list(&timeline(&from).await?, printer),
        Command::Show { which, policies, from } => {
            render::show(&timeline(&from).await?, &which, policies, printer)
        }
        Command::Diff { old, new, from } => render::diff(&timeline(&from).await?, &old, &new, printer),
        Command::At { time, from } => {
            let at = moment::parse(&time, now())?;
            render::at(&timeline(&from).await?, at, printer)
        }
        Command::Grep { pattern, from } => render::grep(&timeline(&from).await?, &pattern, printer),
        Command::Verify { from } => verify::run(&from, printer).await,
    }
}
