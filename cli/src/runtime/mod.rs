//! `contrast runtime`: what nodes run.

mod measure;

use clap::Subcommand;

use crate::printer::Printer;

/// Look into runtime bundles.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Measure(measure::Args),
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Measure(args) => measure::run(&args, printer),
    }
}
